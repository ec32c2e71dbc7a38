"""Depth estimation."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from htt_lightning.errors import HTTError
from htt_lightning.losses import einsum_no_autocast, upcast
from htt_lightning.metrics import DepthErrors
from htt_lightning.output import TaskOutput, upsample_to_image
from htt_lightning.tasks.binned_regression import BinnedRegression
from htt_lightning.tasks.colormap import heatmap
from htt_lightning.tasks.label_statistics import LabelStatistics
from htt_lightning.tasks.metric_spec import MetricSpec

MILLIMETRES = 1000
"""In a metre."""


@dataclass(frozen=True, kw_only=True)
class Depth(BinnedRegression):
    """Distance along the optical axis, as the expectation over log-spaced bins (method.md, Shapes).

    A prediction is a convex combination of the bin centres, hence always within ``[min_depth, max_depth]``. The
    defaults are NYUD-v2's.

    Args:
        num_bins: Number of bins.
        min_depth: Smallest bin centre, in the unit of the labels.
        max_depth: Largest bin centre.
        **kwargs: See ``BinnedRegression``.
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
    metric_specs: ClassVar[Mapping[str, MetricSpec]] = {
        **dict.fromkeys(("abs_rel", "rmse_log"), MetricSpec("", higher_is_better=False)),
        **dict.fromkeys(("delta1", "delta2", "delta3"), MetricSpec()),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_bins < 2 or not 0 < self.min_depth < self.max_depth:
            raise HTTError(
                f"Depth needs num_bins >= 2 and 0 < min_depth < max_depth, "
                f"not {self.num_bins}, {self.min_depth}, {self.max_depth}."
            )

    @property
    def output_range(self) -> tuple[float, float]:
        """The bin centres at both ends."""
        return self.min_depth, self.max_depth

    def bin_centers(self, like: Tensor) -> Tensor:
        """Bin centres ``k``, log-spaced."""
        exponent = torch.arange(self.num_bins, device=like.device, dtype=like.dtype) / (self.num_bins - 1)
        return self.min_depth * (self.max_depth / self.min_depth) ** exponent

    def expected_value(self, output: TaskOutput) -> Tensor:
        """Depth at feature resolution, ``b 1 h/s w/s``."""
        logits = upcast(output.logits)
        return einsum_no_autocast("b k h w, k -> b h w", logits.softmax(1), self.bin_centers(logits))[:, None]

    def nearest_bin(self, target: Tensor) -> Tensor:
        """Index ``b h w`` of the nearest centre in linear distance; any value where the depth is missing."""
        bin_centers = self.bin_centers(target)
        return torch.bucketize(
            target[:, 0].nan_to_num(self.min_depth).contiguous(), (bin_centers[1:] + bin_centers[:-1]) / 2
        )

    def decode(self, output: TaskOutput, size: tuple[int, int]) -> Tensor:
        """Depth ``b 1 h w`` in the unit of the labels (metres)."""
        return upsample_to_image(self.expected_value(output), size)

    def is_correct(self, label: Tensor, target: Tensor) -> Tensor:
        """Within a quarter of each other: the usual delta < 1.25."""
        return (torch.maximum(label / target, target / label) < 1.25)[:, 0]

    def metrics(self) -> Metric:
        """Absolute, relative, root mean square and logarithmic error; percent within factors of 1.25."""
        return DepthErrors()

    def colorize(self, values: Tensor) -> Tensor:
        """A heat map over the logarithm of depth, near is dark."""
        return heatmap((values[:, 0].clamp(min=1e-6) / self.min_depth).log() / np.log(self.max_depth / self.min_depth))

    def measure(self, values: np.ndarray) -> dict[str, np.ndarray]:
        """Which depths no prediction can reach (protocol.md 6.30)."""
        return {"outside_bins": (values < self.min_depth) | (values > self.max_depth)}

    def doubts(self, tally: LabelStatistics) -> list[str]:
        """Bins that most of the depth lies outside of."""
        outside = tally.percent(tally.shares.get("outside_bins", 0)) or 0
        bins = f"{self.min_depth:g} to {self.max_depth:g} {self.metric_unit}"
        text = f"{outside:.1f} % lie outside the bins, {bins}; set min_depth and max_depth."
        return [*super().doubts(tally), *([text] if outside > 50 else [])]

    def to_png(self, values: np.ndarray) -> np.ndarray | None:
        """Millimetres, uint16 ``h w``; None where the unit is not metres or 16 bits do not hold them."""
        if self.metric_unit != "m" or self.max_depth * MILLIMETRES > np.iinfo(np.uint16).max:
            return None
        pixels: np.ndarray = np.rint(values[0] * MILLIMETRES).astype(np.uint16)
        return pixels

    @property
    def png_unit(self) -> str:
        """Distances are counted in millimetres."""
        return "mm"

    def rescale_values(self, array: np.ndarray, scale: float) -> np.ndarray:
        """Enlarging an image by ``scale`` is stepping closer: depth is divided by it (protocol.md 3.2)."""
        return array / np.float32(scale)


@dataclass(frozen=True, kw_only=True)
class InverseDepth(Depth):
    """What is near has large values, as in Cityscapes' disparities (protocol.md 1.4); the defaults are theirs.

    Args:
        scale_with_zoom: What becomes of the values where augmentation enlarges an image by a factor: they are
            multiplied by it, as stepping closer has it; or divided, as depths are, which earlier code does
            (protocol.md 6.14).
        **kwargs: See ``Depth``; ``min_depth`` is the smallest value, which lies farthest away.
    """

    num_bins: int = 50
    min_depth: float = 0.01
    max_depth: float = 0.4922
    scale_with_zoom: Literal["multiply", "divide"] = "multiply"

    training_fields: ClassVar[tuple[str, ...]] = (*Depth.training_fields, "scale_with_zoom")
    metric_unit: ClassVar[str] = ""
    output_unit: ClassVar[str] = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scale_with_zoom not in ("multiply", "divide"):
            raise HTTError(f"scale_with_zoom of {self.name} must be multiply or divide, not {self.scale_with_zoom!r}.")

    def rescale_values(self, array: np.ndarray, scale: float) -> np.ndarray:
        """Multiply, or divide as earlier code does."""
        return array * np.float32(scale) if self.scale_with_zoom == "multiply" else super().rescale_values(array, scale)
