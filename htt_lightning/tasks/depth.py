"""Depth estimation."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from htt_lightning.errors import ConfigError
from htt_lightning.losses import einsum_no_autocast, upcast
from htt_lightning.metrics import DepthErrors
from htt_lightning.output import TaskOutput
from htt_lightning.tasks.binned_regression import BinnedRegression
from htt_lightning.tasks.colormap import heatmap
from htt_lightning.tasks.metric_spec import MetricSpec

MM_PER_M = 1000


@dataclass(frozen=True, kw_only=True)
class Depth(BinnedRegression):
    """Distance along the optical axis, as the expected value over log-spaced bins.

    A prediction is a convex combination of the bin centers, so it lies in [``min_depth``, ``max_depth``]. The defaults
    are those of NYUD-v2.

    Args:
        num_bins: Number of bins.
        min_depth: Smallest bin center, in the unit of the labels.
        max_depth: Largest bin center, in the unit of the labels.
        **kwargs: Fields of ``BinnedRegression``.

    >>> Depth(num_bins=3, min_depth=1, max_depth=100).bin_centers(torch.zeros(()))
    tensor([  1.,  10., 100.])
    """

    name: str = "depth"
    num_bins: int = 30
    min_depth: float = 0.67
    max_depth: float = 10.0

    field_channels: ClassVar[int | None] = 1
    primary_metric: ClassVar[str] = "abs_err"
    higher_is_better: ClassVar[bool] = False
    metric_unit: ClassVar[str] = "m"
    output_unit: ClassVar[str] = "m"
    large_error: ClassVar[str] = "25 % and more"
    metric_specs: ClassVar[Mapping[str, MetricSpec]] = {
        **dict.fromkeys(("abs_rel", "rmse_log"), MetricSpec("", higher_is_better=False)),
        **dict.fromkeys(("delta1", "delta2", "delta3"), MetricSpec()),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.min_depth < self.max_depth:
            got = f"{self.min_depth} and {self.max_depth}"
            raise ConfigError(f"min_depth of {self.name} must be between 0 and max_depth, got {got}.")

    @property
    def output_range(self) -> tuple[float, float]:
        """Return the outermost bin centers."""
        return self.min_depth, self.max_depth

    def bin_centers(self, like: Tensor) -> Tensor:
        """Compute the log-spaced bin centers, ``k``."""
        exponent = torch.arange(self.num_bins, device=like.device, dtype=like.dtype) / (self.num_bins - 1)
        return self.min_depth * (self.max_depth / self.min_depth) ** exponent

    def expected_value(self, output: TaskOutput) -> Tensor:
        """Compute depth at feature resolution, ``b 1 h/s w/s``."""
        logits = upcast(output.logits)
        return einsum_no_autocast("b k h w, k -> b h w", logits.softmax(1), self.bin_centers(logits))[:, None]

    def nearest_bin(self, target: Tensor) -> Tensor:
        """Find the bin center at the smallest linear distance, int64 ``b h w``."""
        centers = self.bin_centers(target)
        depth = target[:, 0].nan_to_num(self.min_depth).contiguous()
        return torch.bucketize(depth, (centers[1:] + centers[:-1]) / 2)

    def is_correct(self, label: Tensor, target: Tensor) -> Tensor:
        """Compare depths up to a factor of 1.25, as the metric ``delta1`` does."""
        return (torch.maximum(label / target, target / label) < 1.25)[:, 0]

    def metrics(self) -> Metric:
        """Make the metric: depth errors, and percent within factors of 1.25, 1.25² and 1.25³."""
        return DepthErrors()

    def colorize(self, values: Tensor) -> Tensor:
        """Draw a heat map of the logarithm of depth."""
        return heatmap((values[:, 0].clamp(min=1e-6) / self.min_depth).log() / np.log(self.max_depth / self.min_depth))

    def error_map(self, values: Tensor, target: Tensor) -> Tensor:
        """Compute by how much the larger depth exceeds the smaller one, 25 % as 1."""
        return 4 * (torch.maximum(values / target, target / values) - 1)[:, 0]

    def to_png(self, values: np.ndarray) -> np.ndarray | None:
        """Encode depth as millimeters, uint16 ``h w``; None if ``png_unit`` is None."""
        return np.asarray(np.rint(values[0] * MM_PER_M), np.uint16) if self.png_unit else None

    @property
    def png_unit(self) -> str | None:
        """Return ``mm``; None if depth is not in meters or 16 bits do not hold ``max_depth``."""
        return "mm" if self.output_unit == "m" and self.max_depth * MM_PER_M <= np.iinfo(np.uint16).max else None

    def rescale_values(self, array: np.ndarray, scale: float) -> np.ndarray:
        """Divide depth by ``scale``: enlarging an image equals moving the camera closer."""
        return array / np.float32(scale)


@dataclass(frozen=True, kw_only=True)
class InverseDepth(Depth):
    """Inverse depth, such as the disparities of Cityscapes, whose bins are the default.

    Args:
        scale_with_zoom: Change of the values where augmentation enlarges an image by a factor. ``multiply`` by it is
            geometrically right; the release does ``divide``, as for depth.
        **kwargs: Fields of ``Depth``; ``min_depth`` is the smallest value, which lies farthest away.
    """

    num_bins: int = 50
    min_depth: float = 0.01
    max_depth: float = 0.4922
    scale_with_zoom: Literal["multiply", "divide"] = "multiply"

    training_fields: ClassVar[tuple[str, ...]] = (*Depth.training_fields, "scale_with_zoom")
    metric_unit: ClassVar[str] = ""
    output_unit: ClassVar[str] = "inverse depth"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scale_with_zoom not in ("multiply", "divide"):
            raise ConfigError(f"scale_with_zoom of {self.name} must be multiply or divide, got {self.scale_with_zoom}.")

    def rescale_values(self, array: np.ndarray, scale: float) -> np.ndarray:
        """Multiply by ``scale``, or divide by it as the release does."""
        return array * np.float32(scale) if self.scale_with_zoom == "multiply" else super().rescale_values(array, scale)
