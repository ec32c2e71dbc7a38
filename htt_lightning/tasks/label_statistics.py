"""What label maps hold, in sums that add up over a dataset."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np


@dataclass(frozen=True)
class RunningRange:
    """How many values there are, their sum and how far they reach; the spread of two sets is the sum of theirs.

    Attributes:
        count: Number of values.
        total: Their sum.
        low: The least; infinite where there is none.
        high: The greatest; infinite where there is none.
    """

    count: int = 0
    total: float = 0.0
    low: float = math.inf
    high: float = -math.inf

    @staticmethod
    def of(values: np.ndarray) -> "RunningRange":
        """The spread of an array of finite numbers, of any shape."""
        if not values.size:
            return RunningRange()
        return RunningRange(values.size, float(values.sum(dtype=np.float64)), float(values.min()), float(values.max()))

    def __add__(self, other: "RunningRange") -> "RunningRange":
        return RunningRange(
            self.count + other.count,
            self.total + other.total,
            min(self.low, other.low),
            max(self.high, other.high),
        )

    @property
    def reach(self) -> tuple[float, float] | None:
        """Least and greatest value."""
        return (self.low, self.high) if self.count else None

    @property
    def mean(self) -> float | None:
        """The mean value."""
        return self.total / self.count if self.count else None


@dataclass(frozen=True)
class LabelStatistics:
    """What maps of one task hold; the tally of two sets of maps is the sum of theirs.

    Attributes:
        maps: Number of maps.
        empty: Those of which every pixel is missing.
        resized: Those that are stored at another size than their image's.
        stretched: Those of them that have another shape as well.
        pixels: Number of pixels.
        valid: Those that are not missing.
        values: Of valid pixels, all components together.
        classes: Number of pixels by name of the class; nothing for a field.
        shares: Number of valid pixels for which something holds that the task looks at.
        spreads: Of further numbers per valid pixel.
    """

    maps: int = 0
    empty: int = 0
    resized: int = 0
    stretched: int = 0
    pixels: int = 0
    valid: int = 0
    values: RunningRange = RunningRange()
    classes: Mapping[str, int] = field(default_factory=dict)
    shares: Mapping[str, int] = field(default_factory=dict)
    spreads: Mapping[str, RunningRange] = field(default_factory=dict)

    def __add__(self, other: "LabelStatistics") -> "LabelStatistics":
        spreads = {**self.spreads, **other.spreads}
        return LabelStatistics(
            self.maps + other.maps,
            self.empty + other.empty,
            self.resized + other.resized,
            self.stretched + other.stretched,
            self.pixels + other.pixels,
            self.valid + other.valid,
            self.values + other.values,
            _added(self.classes, other.classes),
            _added(self.shares, other.shares),
            {key: self.spreads.get(key, RunningRange()) + other.spreads.get(key, RunningRange()) for key in spreads},
        )

    def without(self, shares: Collection[str]) -> "LabelStatistics":
        """The tally as if nothing had been found in some of the shares."""
        return replace(self, shares={key: 0 if key in shares else count for key, count in self.shares.items()})

    def percent(self, count: int) -> float | None:
        """A number of valid pixels in percent of all of them."""
        return 100 * count / self.valid if self.valid else None

    def figures(self) -> dict[str, Any]:
        """Everything in plain numbers, None where there is nothing to take them from."""
        return {
            "labels": self.maps,
            "empty": self.empty,
            "resized": self.resized,
            "stretched": self.stretched,
            "range": self.values.reach,
            "missing_percent": 100 * (1 - self.valid / self.pixels) if self.pixels else None,
            "classes_percent": {name: self.percent(count) for name, count in self.classes.items()},
            "further": {f"{name}_percent": self.percent(count) for name, count in self.shares.items()}
            | {f"{name}_mean": spread.mean for name, spread in self.spreads.items()}
            | {f"{name}_max": spread.high if spread.count else None for name, spread in self.spreads.items()},
        }


def _added(ours: Mapping[str, int], theirs: Mapping[str, int]) -> dict[str, int]:
    return {key: ours.get(key, 0) + theirs.get(key, 0) for key in {**ours, **theirs}}
