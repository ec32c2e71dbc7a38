"""Depth estimation."""

from collections.abc import Iterable, Mapping
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
from htt_lightning.tasks.colormap import heat
from htt_lightning.tasks.label_statistics import LabelStatistics
from htt_lightning.tasks.metric_spec import MetricSpec

MILLIMETRES = 1000
"""In a metre."""


@dataclass(frozen=True, kw_only=True)
class Depth(BinnedRegression):
    """Distance along the optical axis, as the expectation over log-spaced bins (method.md, Shapes).

    A prediction is a convex combination of the bin centres, hence always within ``[near, far]``. The defaults are
    NYUD-v2's.

    Args:
        bins: Number of bins.
        near: Smallest bin centre, in the unit of the labels.
        far: Largest bin centre.
        **kwargs: See ``BinnedRegression``.
    """

    name: str = "depth"
    bins: int = 30
    near: float = 0.67
    far: float = 10.0

    channels: ClassVar[int | None] = 1
    primary_metric: ClassVar[str] = "abs_err"
    higher_is_better: ClassVar[bool] = False
    unit: ClassVar[str] = "m"
    output_unit: ClassVar[str] = "m"
    metric_specs: ClassVar[Mapping[str, MetricSpec]] = {
        **dict.fromkeys(("rel_err", "log_rmse"), MetricSpec("", higher_is_better=False)),
        **dict.fromkeys(("delta1", "delta2", "delta3"), MetricSpec()),
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bins < 2 or not 0 < self.near < self.far:
            raise HTTError(f"Depth needs bins >= 2 and 0 < near < far, not {self.bins}, {self.near}, {self.far}.")

    @property
    def output_range(self) -> tuple[float, float]:
        """The bin centres at both ends."""
        return self.near, self.far

    def bin_centers(self, like: Tensor) -> Tensor:
        """Bin centres ``k``, log-spaced."""
        exponent = torch.arange(self.bins, device=like.device, dtype=like.dtype) / (self.bins - 1)
        return self.near * (self.far / self.near) ** exponent

    def expected_value(self, output: TaskOutput) -> Tensor:
        """Depth at feature resolution, ``b 1 h/s w/s``."""
        logits = upcast(output.logits)
        return einsum_no_autocast("b k h w, k -> b h w", logits.softmax(1), self.bin_centers(logits))[:, None]

    def nearest_bin(self, target: Tensor) -> Tensor:
        """Index ``b h w`` of the nearest centre in linear distance; any value where the depth is missing."""
        bin_centers = self.bin_centers(target)
        return torch.bucketize(
            target[:, 0].nan_to_num(self.near).contiguous(), (bin_centers[1:] + bin_centers[:-1]) / 2
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

    def colour(self, values: Tensor) -> Tensor:
        """A heat map over the logarithm of depth, near is dark."""
        return heat((values[:, 0].clamp(min=1e-6) / self.near).log() / np.log(self.far / self.near))

    def constant(self, targets: Iterable[Tensor]) -> Tensor:
        """The median depth, which no constant beats in absolute error."""
        return torch.cat([t[t.isfinite()] for t in targets]).median()[None]

    def measure(self, values: np.ndarray) -> dict[str, np.ndarray]:
        """Which depths no prediction can reach (protocol.md 6.30)."""
        return {"outside_bins": (values < self.near) | (values > self.far)}

    def doubts(self, tally: LabelStatistics) -> list[str]:
        """Bins that most of the depth lies outside of."""
        outside = tally.percent(tally.shares.get("outside_bins", 0)) or 0
        text = f"{outside:.1f} % lie outside the bins, {self.near:g} to {self.far:g} {self.unit}; set near and far."
        return [*super().doubts(tally), *([text] if outside > 50 else [])]

    def pixels(self, values: np.ndarray) -> np.ndarray | None:
        """Millimetres, uint16 ``h w``; None where the unit is not metres or 16 bits do not hold them."""
        if self.unit != "m" or self.far * MILLIMETRES > np.iinfo(np.uint16).max:
            return None
        pixels: np.ndarray = np.rint(values[0] * MILLIMETRES).astype(np.uint16)
        return pixels

    @property
    def pixel_unit(self) -> str:
        """Distances are counted in millimetres."""
        return "mm"

    def zoom(self, array: np.ndarray, factor: float) -> np.ndarray:
        """Enlarging an image by ``factor`` is stepping closer: depth is divided by it (protocol.md 3.2)."""
        return array / np.float32(factor)


@dataclass(frozen=True, kw_only=True)
class InverseDepth(Depth):
    """What is near has large values, as in Cityscapes' disparities (protocol.md 1.4); the defaults are theirs.

    Args:
        zoomed: What becomes of the values where augmentation enlarges an image by a factor: they are ``multiplied`` by
            it, as stepping closer has it; or ``divided``, as depths are, which earlier code does (protocol.md 6.14).
        **kwargs: See ``Depth``; ``near`` is the smallest value, which lies farthest away.
    """

    bins: int = 50
    near: float = 0.01
    far: float = 0.4922
    zoomed: Literal["multiplied", "divided"] = "multiplied"

    training_fields: ClassVar[tuple[str, ...]] = (*Depth.training_fields, "zoomed")
    unit: ClassVar[str] = ""
    output_unit: ClassVar[str] = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.zoomed not in ("multiplied", "divided"):
            raise HTTError(f"zoomed of {self.name} must be multiplied or divided, not {self.zoomed!r}.")

    def zoom(self, array: np.ndarray, factor: float) -> np.ndarray:
        """Multiply, or divide as earlier code does."""
        return array * np.float32(factor) if self.zoomed == "multiplied" else super().zoom(array, factor)
