"""Statistics of label maps: missing pixels, value ranges, class shares, and warnings about them."""

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from htt_lightning.errors import DataError
from htt_lightning.tasks import IGNORE_INDEX, Depth, Normals, Task

UNIT_TOLERANCE = 0.02
"""Largest deviation of a unit vector's length from 1."""

MAX_MEAN_BIN_ANGLE = 30
"""Largest mean angle in degrees between normals and their nearest bins that raises no warning."""


@dataclass
class RunningRange:
    """Count, sum, minimum and maximum of values."""

    count: int = 0
    total: float = 0.0
    min: float = math.inf
    max: float = -math.inf

    def update(self, values: np.ndarray) -> None:
        """Add finite values of any shape."""
        if values.size:
            other = values.size, float(values.sum(dtype=np.float64)), float(values.min()), float(values.max())
            self.merge(RunningRange(*other))

    def merge(self, other: "RunningRange") -> None:
        """Add the values of another range."""
        self.count, self.total = self.count + other.count, self.total + other.total
        self.min, self.max = min(self.min, other.min), max(self.max, other.max)

    @property
    def range(self) -> tuple[float, float] | None:
        """Minimum and maximum; None without values."""
        return (self.min, self.max) if self.count else None

    @property
    def mean(self) -> float | None:
        """Mean; None without values."""
        return self.total / self.count if self.count else None


@dataclass
class LabelStatistics:
    """Statistics of a task's labels.

    Attributes:
        labels: Number of label maps.
        empty: Number of maps without a valid pixel.
        pixels: Number of pixels.
        valid: Number of valid pixels.
        values: Range of the valid pixels, over all channels.
        classes: Number of pixels by class name; empty for fields.
        extra: Further quantities of valid pixels, by name.
    """

    labels: int = 0
    empty: int = 0
    pixels: int = 0
    valid: int = 0
    values: RunningRange = field(default_factory=RunningRange)
    classes: Counter[str] = field(default_factory=Counter)
    extra: dict[str, RunningRange] = field(default_factory=dict)

    def merge(self, other: "LabelStatistics") -> None:
        """Add the statistics of other labels of the task."""
        self.labels, self.empty = self.labels + other.labels, self.empty + other.empty
        self.pixels, self.valid = self.pixels + other.pixels, self.valid + other.valid
        self.values.merge(other.values)
        self.classes.update(other.classes)
        for name, values in other.extra.items():
            self.extra.setdefault(name, RunningRange()).merge(values)

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers, None where there are no values."""
        valid = self.valid or None
        return {
            "labels": self.labels,
            "empty": self.empty,
            "range": self.values.range,
            "missing_percent": 100 * (1 - self.valid / self.pixels) if self.pixels else None,
            "classes_percent": {name: valid and 100 * count / valid for name, count in self.classes.items()},
            "extra": {name: values.mean for name, values in self.extra.items()},
        }


def label_statistics(task: Task, array: np.ndarray) -> LabelStatistics:
    """Compute the statistics of one label map.

    Args:
        task: The task.
        array: The map as a dataset returns it.

    Raises:
        DataError: Type, shape or a class of the map is invalid.
    """
    is_index, shape = task.field_channels is None, array.shape
    if (
        len(shape) < 2
        or shape != task.empty_target(*shape[:2]).shape
        or array.dtype.kind not in ("iu" if is_index else "f")
    ):
        expected = (
            "integer h w"
            if is_index
            else f"float h w {task.field_channels}"
            if task.field_channels != 1
            else "float h w"
        )
        raise DataError(f"A map of {task.name} must be {expected}, got {array.dtype} {shape}.")
    array = task.postprocess_target(array)
    valid = array != IGNORE_INDEX if is_index else np.isfinite(array.reshape(*shape[:2], -1)).all(-1)
    values, names = array[valid], task.class_names
    if is_index and values.size and not (values.min() >= 0 and values.max() < len(names)):
        raise DataError(
            f"A map of {task.name} must have classes 0 to {len(names) - 1}, or {IGNORE_INDEX} where missing, got "
            f"{values.min()} to {values.max()}."
        )
    found = LabelStatistics(1, int(not len(values)), valid.size, len(values))
    found.values.update(values)
    if is_index:
        found.classes.update(dict(zip(names, np.bincount(values, minlength=len(names)).tolist(), strict=True)))
    for name, quantity in extra_quantities(task, values).items():
        found.extra[name] = RunningRange()
        found.extra[name].update(quantity)
    return found


def extra_quantities(task: Task, values: np.ndarray) -> dict[str, np.ndarray]:
    """Compute what decides whether a task can represent its labels.

    Args:
        task: The task.
        values: Values of valid pixels, ``n``, or ``n c`` with several channels.

    Returns:
        Arrays ``n`` by name; the mean of a name that ends in ``percent`` is a share.
    """
    if isinstance(task, Depth):
        return {"outside_bins_percent": 100.0 * ((values < task.min_depth) | (values > task.max_depth))}
    if isinstance(task, Normals):
        target = torch.from_numpy(values.astype(np.float32).T.copy())[None, ..., None]
        nearest = task.bin_centers(target)[task.nearest_bin(target)[0, :, 0]].double().numpy()
        length: np.ndarray = np.linalg.norm(values.astype(np.float64), axis=1)
        cosine = (values * nearest).sum(1) / np.maximum(length, 1e-12) / np.linalg.norm(nearest, axis=1)
        angle: np.ndarray = np.degrees(np.arccos(cosine.clip(-1, 1)))
        return {"not_unit_percent": 100.0 * (np.abs(length - 1) > UNIT_TOLERANCE), "degrees_to_bins": angle}
    return {}


def label_warnings(task: Task, found: LabelStatistics) -> list[str]:
    """Return warnings about labels that can be read, but may be wrong.

    Args:
        task: The task.
        found: Statistics of its labels.
    """
    if not found.labels:
        return []
    if not found.valid:
        return ["Every pixel is missing."]
    extra = {name: values.mean or 0.0 for name, values in found.extra.items()}
    warnings = []
    if absent := [name for name, count in found.classes.items() if not count]:
        warnings.append(f"No pixel has the class {', '.join(absent)}.")
    if isinstance(task, Depth) and (share := extra["outside_bins_percent"]) > 50:
        warnings.append(
            f"{share:.1f} % of the pixels lie outside of min_depth {task.min_depth:g} to max_depth {task.max_depth:g}."
        )
    if isinstance(task, Normals) and (share := extra["not_unit_percent"]):
        warnings.append(f"{share:.3g} % of the vectors are not of unit length.")
    if isinstance(task, Normals) and (angle := extra["degrees_to_bins"]) > MAX_MEAN_BIN_ANGLE:
        warnings.append(
            f"The mean angle to the nearest bin is {angle:.1f} degrees. Check the axes: x right, y up, z to the camera."
        )
    return warnings
