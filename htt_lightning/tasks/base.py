"""Base class of all dense prediction tasks."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

import cv2
import numpy as np
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from htt_lightning.errors import ConfigError
from htt_lightning.output import TaskOutput
from htt_lightning.tasks.metric_spec import MetricSpec
from htt_lightning.tasks.pseudo_label import PseudoLabelMixin
from htt_lightning.tasks.serialization import ConfigMixin

IGNORE_INDEX = 255
"""Missing value of index maps."""

RELEASE_ALIASES: Mapping[str, str] = MappingProxyType({"sal": "saliency", "edge": "edges"})
"""Names of this package by the names of tasks in published masks and checkpoints."""


@dataclass(frozen=True, kw_only=True)
class Task(ConfigMixin, PseudoLabelMixin, ABC):
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

    primary_metric: ClassVar[str]
    """Name of the metric that papers report and that enters Delta_m."""
    higher_is_better: ClassVar[bool]
    """Direction of the primary metric."""
    metric_unit: ClassVar[str]
    """Unit of the primary metric."""
    metric_specs: ClassVar[Mapping[str, MetricSpec]] = {}
    """Specs by name of the metrics that differ from the primary one in unit or direction."""
    output_unit: ClassVar[str] = ""
    """Unit of the values of ``decode``; empty if they have none."""
    guides_crop: ClassVar[bool] = False
    """Whether a training crop is drawn again if one class of this map fills most of it."""
    logits_are_distribution: ClassVar[bool] = False
    """True if ``decode`` depends on the softmax of the logits alone. Sliding windows then average probabilities."""

    def __post_init__(self) -> None:
        if not self.name.isidentifier():  # a key of modules, options, metrics and exported outputs
            raise ConfigError(f"name of a task must be letters, digits and underscores, got {self.name!r}.")
        if not 0 <= self.confidence_threshold <= 1:
            got = self.confidence_threshold
            raise ConfigError(f"confidence_threshold of {self.name} must be in [0, 1], got {got}.")
        if self.max_val_images is not None and self.max_val_images < 1:
            raise ConfigError(f"max_val_images of {self.name} must be at least 1 or null, got {self.max_val_images}.")

    @property
    @abstractmethod
    def num_tokens(self) -> int:
        """Return the number of logit channels K: classes, or bins of a regression task."""

    @abstractmethod
    def loss(self, output: TaskOutput, target: Tensor) -> Tensor:
        """Compute the supervised loss, without ``loss_weight``.

        Args:
            output: Network output at feature resolution.
            target: Ground truth at input size with missing pixels marked, possibly all of an image.

        Returns:
            One finite value per image, ``b``. It is 0 with zero gradient where no pixel is valid.
        """

    @abstractmethod
    def decode(self, output: TaskOutput, size: tuple[int, int]) -> Tensor:
        """Decode an output at feature resolution to classes or probabilities ``b h w``, or a field ``b c h w``.

        Args:
            output: Network output.
            size: Height and width of the image.
        """

    @abstractmethod
    def metrics(self) -> Metric | MetricCollection:
        """Make a new metric, which is updated with ``(decoded, target)``.

        It computes values by name, the primary metric among them. It may be a ``MetricCollection`` of single values.
        """

    @abstractmethod
    def colorize(self, values: Tensor) -> Tensor:
        """Draw decoded maps or targets, ``b h w`` or ``b c h w``, as uint8 ``b 3 h w``: mid-gray where missing."""

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

    def rescale_values(self, array: np.ndarray, scale: float) -> np.ndarray:
        """Correct the values of a numpy map whose image was enlarged by ``scale``; by default do nothing."""
        return array

    def postprocess_target(self, array: np.ndarray) -> np.ndarray:
        """Change a numpy map after all geometric transforms; by default do nothing."""
        return array

    def metric_spec(self, name: str) -> MetricSpec:
        """Return unit and direction of a metric of ``metrics()``."""
        return self.metric_specs.get(name, MetricSpec(self.metric_unit, self.higher_is_better))

    def relative_gain(self, value: float, reference: float) -> float:
        """Compute the relative improvement of the primary metric over a reference in percent; positive is better."""
        return self.metric_spec(self.primary_metric).relative_gain(value, reference)

    def test_metrics(self) -> Metric | MetricCollection:
        """Make the metric of ``test``, which may take longer; by default that of validation."""
        return self.metrics()

    @property
    def output_range(self) -> tuple[float, float] | None:
        """Return the smallest and largest decoded value; None for classes and unknown ranges."""
        return None

    def to_png(self, values: np.ndarray) -> np.ndarray | None:
        """Encode a decoded map as an image of its numbers, by default one of integers below 256.

        Args:
            values: Decoded map of one image, ``h w`` or ``c h w``.

        Returns:
            uint8 or uint16 ``h w``, or uint8 ``h w 3``; None if PNG files cannot hold the numbers.
        """
        if values.dtype.kind not in "iu" or (values.size and not 0 <= values.min() <= values.max() < 256):
            return None
        return values.astype(np.uint8)

    @property
    def png_unit(self) -> str | None:
        """Return the unit of the pixels of ``to_png``; None, the default, without unit or PNG files."""
        return None

    def compress(self, array: np.ndarray) -> np.ndarray:
        """Encode a numpy map without missing pixels in few bytes, as pseudo-labels are stored."""
        return array.astype(np.uint8 if self.field_channels is None else np.float16)

    def decompress(self, array: np.ndarray) -> np.ndarray:
        """Decode a numpy map that ``compress`` encoded."""
        return array if self.field_channels is None else array.astype(np.float32)
