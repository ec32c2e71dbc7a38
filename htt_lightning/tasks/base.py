"""Base class of all dense prediction tasks."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

import cv2
import numpy as np
from torch import Tensor

from htt_lightning.errors import ConfigError
from htt_lightning.tasks.encoding import EncodingMixin
from htt_lightning.tasks.evaluation import EvaluationMixin
from htt_lightning.tasks.serialization import ConfigMixin

IGNORE_INDEX = 255
"""Missing value of index maps."""

RELEASE_ALIASES: Mapping[str, str] = MappingProxyType({"sal": "saliency", "edge": "edges"})
"""Names of this package by the names of tasks in published masks and checkpoints."""


@dataclass(frozen=True, kw_only=True)
class Task(EncodingMixin, EvaluationMixin, ConfigMixin):
    """A dense prediction task: loss, decoding, pseudo-labels, metrics, colors and geometry.

    A task has plain fields and no parameters, so configs, checkpoints and processes can hold it. A new task implements
    ``num_tokens``, ``loss``, ``decode``, ``metrics`` and ``colorize``. Everything else has a default.

    Targets are index maps or fields. An *index map* (``field_channels`` is None) is uint8 ``h w`` in numpy and int64
    ``b h w`` in a batch, 255 where missing. A *field* of c channels is float32 ``h w c`` in numpy (``h w`` for one
    channel) and float32 ``b c h w`` in a batch, NaN where missing.

    Args:
        name: Key of the task in batches, outputs, masks and logs, a Python identifier.
        loss_weight: Weight of the task's losses.
        confidence_threshold: Confidence in [0, 1] above which a pseudo-label counts.
        pseudo_label_weight: Weight of losses on pseudo-labels relative to those on ground truth.
        max_val_images: Largest number of validation images scored during ``fit``, always the same ones; all by default.
            ``validate`` and ``test`` score all.
    """

    name: str
    loss_weight: float = 1.0
    confidence_threshold: float = 0.9
    pseudo_label_weight: float = 1.0
    max_val_images: int | None = None

    guides_crop: ClassVar[bool] = False
    """Whether a training crop is drawn again if one class of this map fills most of it."""

    def __post_init__(self) -> None:
        if not self.name.isidentifier():  # a key of modules, options, metrics and exported outputs
            raise ConfigError(f"name of a task must be letters, digits and underscores, got {self.name!r}.")
        if not 0 <= self.confidence_threshold <= 1:
            got = self.confidence_threshold
            raise ConfigError(f"confidence_threshold of {self.name} must be in [0, 1], got {got}.")
        if self.max_val_images is not None and self.max_val_images < 1:
            raise ConfigError(f"max_val_images of {self.name} must be at least 1 or null, got {self.max_val_images}.")

    @property
    def class_names(self) -> tuple[str, ...]:
        """Return the names of an index map's values from 0 on; empty for a field."""
        return tuple(map(str, range(max(2, self.num_tokens)))) if self.field_channels is None else ()

    def valid_mask(self, target: Tensor) -> Tensor:
        """Find the labeled pixels of a target, bool ``b h w``."""
        return target != IGNORE_INDEX if self.field_channels is None else target.isfinite().all(1)

    def empty_target(self, height: int, width: int) -> np.ndarray:
        """Make a numpy map of missing pixels."""
        if self.field_channels is None:
            return np.full((height, width), IGNORE_INDEX, np.uint8)
        shape = (height, width) if self.field_channels == 1 else (height, width, self.field_channels)
        return np.full(shape, np.nan, np.float32)

    def flip(self, array: np.ndarray) -> np.ndarray:
        """Mirror a numpy map left to right."""
        return np.asarray(cv2.flip(array, 1)).reshape(array.shape)

    @property
    def view_changes_values(self) -> bool:
        """Whether a zoom or turn of the image changes the values of a map; assumed where one of its methods says so."""
        return any(getattr(type(self), name) is not getattr(Task, name) for name in ("flip", "rescale_values"))

    @property
    def mirror_changes_values(self) -> bool:
        """Whether a mirror image has other values."""
        return self.view_changes_values

    def rescale_values(self, array: np.ndarray, scale: float) -> np.ndarray:
        """Correct the values of a numpy map whose image was enlarged by ``scale``; by default do nothing."""
        return array

    def postprocess_target(self, array: np.ndarray) -> np.ndarray:
        """Change a numpy map after all geometric transforms; by default do nothing."""
        return array
