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
"""Largest mean angle in degrees from normals to their nearest bins without a warning."""


@dataclass
class LabelStatistics:
    """Sums over a task's labels: maps, empty maps, pixels, valid pixels, pixels by class, and further quantities."""

    labels: int = 0
    empty: int = 0
    pixels: int = 0
    valid: int = 0
    low: float = math.inf
    high: float = -math.inf
    classes: Counter[str] = field(default_factory=Counter)
    extra: Counter[str] = field(default_factory=Counter)

    def add(self, other: "LabelStatistics") -> None:
        """Add the statistics of other labels."""
        self.labels, self.empty = self.labels + other.labels, self.empty + other.empty
        self.pixels, self.valid = self.pixels + other.pixels, self.valid + other.valid
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        self.classes.update(other.classes)
        self.extra.update(other.extra)

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers, None where there are no values."""
        valid = self.valid or None
        return {
            "labels": self.labels,
            "empty": self.empty,
            "range": valid and (self.low, self.high),
            "missing_percent": 100 * (1 - self.valid / self.pixels) if self.pixels else None,
            "classes_percent": {name: valid and 100 * count / valid for name, count in self.classes.items()},
            "extra": {name: valid and total / valid for name, total in self.extra.items()},
        }


def label_statistics(task: Task, array: np.ndarray) -> LabelStatistics:
    """Compute the statistics of one label map; raise ``DataError`` if its type, shape or a class is invalid."""
    is_index, shape = task.field_channels is None, array.shape
    valid_shape = len(shape) > 1 and shape == task.empty_target(*shape[:2]).shape
    if not valid_shape or array.dtype.kind not in ("iu" if is_index else "f"):
        channels = "" if task.field_channels in (None, 1) else f" {task.field_channels}"
        expected = f"{'integer' if is_index else 'float'} h w{channels}"
        raise DataError(f"A map of {task.name} must be {expected}, got {array.dtype} {shape}.")
    array = task.postprocess_target(array)
    valid = array != IGNORE_INDEX if is_index else np.isfinite(array.reshape(*shape[:2], -1)).all(-1)
    values, names = array[valid], task.class_names
    found = LabelStatistics(1, int(not len(values)), valid.size, len(values))
    if values.size:
        found.low, found.high = float(values.min()), float(values.max())
    if is_index:
        if values.size and not 0 <= found.low <= found.high < len(names):
            allowed = f"classes 0 to {len(names) - 1}, or {IGNORE_INDEX} where missing"
            raise DataError(f"A map of {task.name} must have {allowed}, got {found.low:g} to {found.high:g}.")
        found.classes.update(dict(zip(names, np.bincount(values, minlength=len(names)).tolist(), strict=True)))
    found.extra.update({name: float(quantity.sum()) for name, quantity in extra_quantities(task, values).items()})
    return found


def extra_quantities(task: Task, values: np.ndarray) -> dict[str, np.ndarray]:
    """Compute how well a task represents valid pixels ``n`` or ``n c``; arrays ``n``, whose means are reported."""
    if isinstance(task, Depth):
        return {"outside_bins_percent": 100.0 * ((values < task.min_depth) | (values > task.max_depth))}
    if isinstance(task, Normals):
        target = torch.from_numpy(values.astype(np.float32).T.copy())[None, ..., None]
        nearest = task.bin_centers(target)[task.nearest_bin(target)[0, :, 0]].double().numpy()
        length = np.linalg.norm(values.astype(np.float64), axis=1)
        cosine = (values * nearest).sum(1) / np.maximum(length, 1e-12) / np.linalg.norm(nearest, axis=1)
        angle = np.degrees(np.arccos(cosine.clip(-1, 1)))
        return {"not_unit_percent": 100.0 * (np.abs(length - 1) > UNIT_TOLERANCE), "degrees_to_bins": angle}
    return {}


def label_warnings(task: Task, found: LabelStatistics, is_sample: bool = False) -> list[str]:
    """Return warnings about labels that can be read, but may be wrong; of a sample, those that hold for any part."""
    if not found.valid:
        return ["Every pixel is missing."] if found.labels and not is_sample else []
    extra = Counter({name: total / found.valid for name, total in found.extra.items()})
    warnings = []
    if absent := [name for name, count in found.classes.items() if not count and not is_sample]:
        warnings.append(f"No pixel has the class {', '.join(absent)}.")
    if isinstance(task, Depth) and (outside := extra["outside_bins_percent"]) > 50:
        bins = f"the bins, {task.min_depth:g} to {task.max_depth:g}"
        scale = ", or scale: 0.001 if files hold millimeters" if found.high > 50 * task.max_depth else ""
        warnings.append(f"{outside:.1f} % of the pixels are outside of {bins}. Set min_depth and max_depth{scale}.")
    if extra["not_unit_percent"]:
        warnings.append(f"{extra['not_unit_percent']:.3g} % of the vectors are not of unit length.")
    if (angle := extra["degrees_to_bins"]) > MAX_MEAN_BIN_ANGLE:
        axes = "x right, y up, z to the camera"
        warnings.append(f"The nearest bin is {angle:.1f} degrees away on average. Check the axes: {axes}.")
    return warnings
