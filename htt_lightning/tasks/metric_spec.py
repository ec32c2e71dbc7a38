"""What kind of number a figure is: unit, direction, how it is written, and how much better it is than another."""

import math
from collections.abc import Mapping
from typing import NamedTuple


class MetricSpec(NamedTuple):
    """What kind of number a figure is.

    Attributes:
        unit: ``%``, ``m``, ``deg``, or empty.
        higher_is_better: Its direction.
    """

    unit: str = "%"
    higher_is_better: bool = True

    def relative_gain(self, value: float, reference: float) -> float:
        """Relative improvement in percent; positive is better, NaN where the reference is zero.

        Args:
            value: A figure.
            reference: The same of another network.
        """
        gain = 100 * (value - reference) / reference if reference else math.nan
        return gain if self.higher_is_better else -gain

    def column_header(self, name: str) -> str:
        """How a column is headed: name, unit and an arrow for the better direction.

        Args:
            name: Of the figure.
        """
        return " ".join(filter(None, [name, self.unit, "↑" if self.higher_is_better else "↓"]))

    def format(self, value: float) -> str:
        """A value with as many digits as papers give, a dash for NaN.

        Args:
            value: A figure.
        """
        return "-" if math.isnan(value) else f"{value:.{2 if self.unit in ('%', 'deg') else 4}f}"


def delta_m(kinds: Mapping[str, MetricSpec], headlines: Mapping[str, float], single: Mapping[str, float]) -> float:
    """Relative multi-task gain in percent (protocol.md 5).

    Args:
        kinds: Of the headline metrics by task; each one's direction decides the sign.
        headlines: Headline metrics by task.
        single: Those of single-task models with the same backbone and label mask.

    Returns:
        Mean over tasks of the relative gain; positive is better.
    """
    return sum(kind.relative_gain(headlines[task], single[task]) for task, kind in kinds.items()) / len(kinds)
