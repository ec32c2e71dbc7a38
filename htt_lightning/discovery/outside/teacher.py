"""Base class of teachers from outside: from a map of another program to a label with its confidence."""

import json
from abc import ABC, abstractmethod
from dataclasses import asdict
from typing import Any, ClassVar

import numpy as np

from htt_lightning.discovery.outside.alignment import Alignment
from htt_lightning.discovery.outside.axes import parse_axes
from htt_lightning.discovery.outside.options import TeacherOptions
from htt_lightning.tasks import IGNORE_INDEX, Depth, InverseDepth, Normals, Task

LabelWithConfidence = tuple[np.ndarray, np.ndarray]
"""A map as datasets return it, missing pixels marked as ``Task`` defines it, and its confidence, float32 ``h w``."""


class OutsideTeacher(ABC):
    """Teacher of one task from outside.

    Attributes:
        task: The task.
        option: Option of the teacher, for messages.
        alignment: Fit to given labels; None before it is fitted, and for tasks other than depth.
    """

    reads_images: ClassVar[bool]
    """Whether labels are computed from images, not read."""

    def __init__(self, task: Task, options: TeacherOptions) -> None:
        self.task, self.options, self.option = task, options, f"teachers.{task.name}"
        options.check(task, self.option)
        self.alignment: Alignment | None = None
        self.axes = parse_axes(options.axes, self.option) if isinstance(task, Normals) else None

    @property
    def is_inverse(self) -> bool:
        """Whether values are linear in one over the label."""
        return (self.options.space == "inverse") != isinstance(self.task, InverseDepth)

    @abstractmethod
    def source(self) -> dict[str, Any]:
        """Describe the origin of the labels in plain values that identify it."""

    def provenance(self) -> dict[str, Any]:
        """Describe source, options and alignment in plain values, as the manifest holds them."""
        place = ("hub", "revision", "maps", "confidence")
        given = {key: value for key, value in asdict(self.options).items() if key not in place and value is not None}
        found = {"alignment": asdict(self.alignment)} if self.alignment else {}
        plain: dict[str, Any] = json.loads(json.dumps({**self.source(), "options": given, **found}))  # as it is read
        return plain

    def finish(self, values: np.ndarray, confidence: np.ndarray) -> LabelWithConfidence:
        """Align a map, and give its missing pixels a value with confidence 0, as pseudo-labels have no holes."""
        if self.alignment is not None:
            values = self.alignment.align(values)
            confidence = confidence * self.alignment.confidence(values)
        if self.task.field_channels is None:
            missing = values == IGNORE_INDEX
        else:
            missing = ~np.isfinite(values if values.ndim == 2 else values[..., 0])
        if isinstance(self.task, Depth):
            low, high = self.task.output_range
            missing |= (values < low) | (values > high)
        if not missing.any():
            return values, confidence
        values, confidence = values.copy(), confidence.copy()
        values[missing] = self.task.output_range[0] if isinstance(self.task, Depth) else 0
        confidence[missing] = 0
        return values, confidence
