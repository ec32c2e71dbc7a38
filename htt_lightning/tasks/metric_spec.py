"""Unit, direction and format of metrics, and Delta_m."""

import math
from collections.abc import Mapping
from typing import NamedTuple


class MetricSpec(NamedTuple):
    """Unit and direction of a metric.

    Attributes:
        unit: ``%``, ``m``, ``deg``, or empty.
        higher_is_better: Direction.
    """

    unit: str = "%"
    higher_is_better: bool = True

    def relative_gain(self, value: float, reference: float) -> float:
        """Compute the relative improvement over a reference in percent, positive if better; NaN if that is zero.

        >>> MetricSpec("m", higher_is_better=False).relative_gain(0.4, 0.5)
        20.0
        """
        gain = 100 * (value - reference) / reference if reference else math.nan
        return gain if self.higher_is_better else -gain

    def column_header(self, name: str) -> str:
        """Join the name of the metric, its unit and an arrow for the better direction.

        >>> MetricSpec().column_header("miou")
        'miou % ↑'
        """
        return " ".join(filter(None, [name, self.unit, "↑" if self.higher_is_better else "↓"]))

    def format(self, value: float) -> str:
        """Format a value with as many digits as papers give, or a dash for NaN.

        >>> MetricSpec().format(31.234)
        '31.23'
        """
        return "-" if math.isnan(value) else f"{value:.{2 if self.unit in ('%', 'deg') else 4}f}"


def delta_m(specs: Mapping[str, MetricSpec], values: Mapping[str, float], baselines: Mapping[str, float]) -> float:
    """Compute Delta_m from the primary metrics by task: the mean relative gain in percent.

    Baselines are single-task networks with the same backbone and label mask.

    >>> delta_m({"semseg": MetricSpec()}, {"semseg": 44.0}, {"semseg": 40.0})
    10.0
    """
    return sum(spec.relative_gain(values[task], baselines[task]) for task, spec in specs.items()) / len(specs)
