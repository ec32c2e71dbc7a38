"""Surface normal estimation."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric

from htt_lightning.errors import HTTError
from htt_lightning.losses import einsum_no_autocast, upcast
from htt_lightning.metrics import NormalErrors
from htt_lightning.output import TaskOutput, upsample_to_image
from htt_lightning.tasks.binned_regression import BinnedRegression
from htt_lightning.tasks.colormap import MISSING_GRAY
from htt_lightning.tasks.label_statistics import LabelStatistics, RunningRange
from htt_lightning.tasks.metric_spec import MetricSpec

UNIT_TOLERANCE = 0.02
"""How far the length of a normal may lie from 1: twice what eight bits per component round off."""

FAR_FROM_BINS = 30
"""Mean angle in degrees to the nearest bin above which the axes are suspect; half a bin is 12 degrees wide."""


@dataclass(frozen=True, kw_only=True)
class Normals(BinnedRegression):
    """Unit surface normals (x right, y up, z to the camera), as the expectation over directions (method.md, Shapes).

    Args:
        num_bins: Number of directions.
        bin_directions: ``fibonacci`` spreads the bins evenly over the visible half-sphere (z > 0); ``published`` are
            the 40 directions of the public release, uneven (protocol.md 6.29), for conformance and published weights.
        **kwargs: See ``BinnedRegression``.
    """

    name: str = "normals"
    num_bins: int = 40
    bin_directions: Literal["fibonacci", "published"] = "fibonacci"

    field_channels: ClassVar[int | None] = 3
    primary_metric: ClassVar[str] = "mean"
    higher_is_better: ClassVar[bool] = False
    metric_unit: ClassVar[str] = "deg"
    output_unit: ClassVar[str] = "unit vector: x right, y up, z to the camera"
    metric_specs: ClassVar[Mapping[str, MetricSpec]] = dict.fromkeys(
        ("within_11.25", "within_22.5", "within_30"), MetricSpec()
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bin_directions == "published" and self.num_bins != 40:
            raise HTTError(
                f"Normals has 40 published directions, not {self.num_bins}: set num_bins to 40 or use fibonacci."
            )
        if self.num_bins < 2:
            raise HTTError(f"Normals needs num_bins >= 2, not {self.num_bins}.")

    @property
    def output_range(self) -> tuple[float, float]:
        """Of each component."""
        return -1.0, 1.0

    def bin_centers(self, like: Tensor) -> Tensor:
        """Unit vectors ``k 3``."""
        if self.bin_directions == "published":
            return F.normalize(torch.from_numpy(_published()).to(like, non_blocking=True), dim=1)
        return fibonacci_hemisphere(self.num_bins, like)

    def expected_value(self, output: TaskOutput) -> Tensor:
        """Unit normals at feature resolution, ``b 3 h/s w/s``."""
        logits = upcast(output.logits)
        return F.normalize(
            einsum_no_autocast("b k h w, k c -> b c h w", logits.softmax(1), self.bin_centers(logits)), dim=1
        )

    def nearest_bin(self, target: Tensor) -> Tensor:
        """Index ``b h w`` of the direction with the largest dot product; any value where the normal is missing."""
        return einsum_no_autocast("b c h w, k c -> b k h w", target.nan_to_num(0), self.bin_centers(target)).argmax(1)

    def decode(self, output: TaskOutput, size: tuple[int, int]) -> Tensor:
        """Unit normals ``b 3 h w``."""
        return F.normalize(upsample_to_image(self.expected_value(output), size), dim=1)

    def unflip(self, soft_target: Tensor) -> Tensor:
        """Mirroring changes the sign of x."""
        flipped = soft_target.flip(-1)
        return torch.cat([-flipped[:, :1], flipped[:, 1:]], dim=1)

    def finalize_soft_target(self, soft_target: Tensor, valid: Tensor) -> Tensor:
        """Length 1, as a given label has; a mean of unit vectors has not."""
        return F.normalize(soft_target, dim=1)

    def is_correct(self, label: Tensor, target: Tensor) -> Tensor:
        """Within 30 degrees of each other, the widest of the usual angles."""
        return (label * target).sum(1) > math.cos(math.radians(30))

    def metrics(self) -> Metric:
        """Mean, median and root mean square of angles in degrees; percent within 11.25, 22.5 and 30 degrees."""
        return NormalErrors()

    def colorize(self, values: Tensor) -> Tensor:
        """Components as red, green and blue."""
        missing = ~values.isfinite().all(1, keepdim=True)
        picture = ((values.nan_to_num(0).clamp(-1, 1) + 1) * 127.5).round()
        return picture.masked_fill(missing, MISSING_GRAY).to(torch.uint8)

    def measure(self, values: np.ndarray) -> dict[str, np.ndarray]:
        """Which vectors are not of unit length, and the angle from each to the nearest bin (protocol.md 6.29)."""
        target = torch.from_numpy(values.astype(np.float32).T.copy())[None, ..., None]
        nearest = self.bin_centers(target)[self.nearest_bin(target)[0, :, 0]].double().numpy()
        vectors = values.astype(np.float64)
        length: np.ndarray = np.linalg.norm(vectors, axis=1)
        cosine = (vectors * nearest).sum(1) / np.maximum(length, 1e-12) / np.linalg.norm(nearest, axis=1)
        angle: np.ndarray = np.degrees(np.arccos(cosine.clip(-1, 1)))
        return {"not_unit": np.abs(length - 1) > UNIT_TOLERANCE, "degrees_to_bins": angle}

    def doubts(self, tally: LabelStatistics) -> list[str]:
        """Vectors that are not of unit length, or far from the visible half-sphere."""
        doubts, angle = super().doubts(tally), tally.spreads.get("degrees_to_bins", RunningRange()).mean or 0
        if long := tally.shares.get("not_unit", 0):
            text = "vectors are not of unit length as they are stored; the datasets of this library normalise them"
            doubts.append(f"{long} of {tally.valid} {text}.")
        if angle > FAR_FROM_BINS:
            doubts.append(
                f"The nearest bin is {angle:.1f} degrees away in the mean; x must point right, y up, z to the camera."
            )
        return doubts

    def to_png(self, values: np.ndarray) -> np.ndarray:
        """Components as colours, uint8 ``h w 3``: a quarter of a degree in the direction, see ``read_normals``."""
        return np.rint((values.transpose(1, 2, 0).clip(-1, 1) + 1) * 127.5).astype(np.uint8)

    @property
    def png_unit(self) -> str:
        """How a colour is read."""
        return "x y z = 2 * r g b / 255 - 1"

    def compress(self, array: np.ndarray) -> np.ndarray:
        """A byte per component, a quarter of a degree in the direction."""
        packed: np.ndarray = np.rint(array * 127).astype(np.int8)
        return packed

    def decompress(self, array: np.ndarray) -> np.ndarray:
        """Unit vectors again."""
        vectors = array.astype(np.float32)
        length: np.ndarray = np.linalg.norm(vectors, axis=-1, keepdims=True)
        unit: np.ndarray = vectors / np.maximum(length, np.float32(1e-6))
        return unit

    def flip(self, array: np.ndarray) -> np.ndarray:
        """Mirroring an image mirrors what its normals point to: x changes its sign."""
        flipped = super().flip(array)
        flipped[..., 0] *= -1
        return flipped


def fibonacci_hemisphere(count: int, like: Tensor) -> Tensor:
    """Evenly spread unit vectors with z > 0: equal steps in z, golden-angle steps around it.

    Args:
        count: Number of vectors.
        like: Gives device and type.

    Returns:
        ``count 3``.
    """
    k = torch.arange(count, device=like.device, dtype=like.dtype)
    z = 1 - (k + 0.5) / count
    radius = (1 - z * z).sqrt()
    angle = k * (math.pi * (3 - math.sqrt(5)))
    return torch.stack([radius * angle.cos(), radius * angle.sin(), z], dim=1)


@cache
def _published() -> np.ndarray:
    """The 40 directions of the public release, ``40 3`` (method.md, Shapes; protocol.md 6.29)."""
    table = resources.files("htt_lightning.tasks").joinpath("normal_directions.csv").read_text()
    return np.loadtxt(table.splitlines(), delimiter=",")
