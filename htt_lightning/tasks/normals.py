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

from htt_lightning.errors import ConfigError
from htt_lightning.losses import einsum_no_autocast, upcast
from htt_lightning.metrics import NormalErrors
from htt_lightning.output import TaskOutput
from htt_lightning.tasks.binned_regression import BinnedRegression
from htt_lightning.tasks.colormap import MISSING_GRAY
from htt_lightning.tasks.metric_spec import MetricSpec

NUM_PUBLISHED_DIRECTIONS = 40


@dataclass(frozen=True, kw_only=True)
class Normals(BinnedRegression):
    """Unit surface normals, as the expected value over directions: x right, y up, z to the camera.

    Args:
        num_bins: Number of directions.
        bin_directions: ``fibonacci`` spreads the bins evenly over the visible hemisphere (z > 0). ``published`` are the
            40 uneven directions of the release, for conformance and published weights.
        **kwargs: Fields of ``BinnedRegression``.
    """

    name: str = "normals"
    num_bins: int = NUM_PUBLISHED_DIRECTIONS
    bin_directions: Literal["fibonacci", "published"] = "fibonacci"

    field_channels: ClassVar[int | None] = 3
    primary_metric: ClassVar[str] = "mean"
    higher_is_better: ClassVar[bool] = False
    metric_unit: ClassVar[str] = "deg"
    output_unit: ClassVar[str] = "unit vector: x right, y up, z to the camera"
    output_range: ClassVar[tuple[float, float]] = (-1.0, 1.0)
    large_error: ClassVar[str] = "30 degrees and more"
    png_unit: ClassVar[str] = "x y z = 2 * r g b / 255 - 1"
    metric_specs: ClassVar[Mapping[str, MetricSpec]] = dict.fromkeys(
        ("within_11.25", "within_22.5", "within_30"), MetricSpec()
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bin_directions == "published" and self.num_bins != NUM_PUBLISHED_DIRECTIONS:
            raise ConfigError(f"num_bins of {self.name} must be 40 with published directions, got {self.num_bins}.")

    def bin_centers(self, like: Tensor) -> Tensor:
        """Compute the directions, unit vectors ``k 3``."""
        if self.bin_directions == "published":
            return F.normalize(torch.from_numpy(_published()).to(like, non_blocking=True), dim=1)
        return fibonacci_hemisphere(self.num_bins, like)

    def expected_value(self, output: TaskOutput) -> Tensor:
        """Compute unit normals at feature resolution, ``b 3 h/s w/s``."""
        logits = upcast(output.logits)
        mean = einsum_no_autocast("b k h w, k c -> b c h w", logits.softmax(1), self.bin_centers(logits))
        return F.normalize(mean, dim=1)

    def nearest_bin(self, target: Tensor) -> Tensor:
        """Find the direction with the largest dot product, int64 ``b h w``."""
        return einsum_no_autocast("b c h w, k c -> b k h w", target.nan_to_num(0), self.bin_centers(target)).argmax(1)

    def decode(self, output: TaskOutput, size: tuple[int, int]) -> Tensor:
        """Upsample the normals and normalize them again, ``b 3 h w``."""
        return F.normalize(super().decode(output, size), dim=1)

    def unflip(self, soft_target: Tensor) -> Tensor:
        """Mirror the map and change the sign of x."""
        flipped = soft_target.flip(-1)
        return torch.cat([-flipped[:, :1], flipped[:, 1:]], dim=1)

    def finalize_soft_target(self, soft_target: Tensor, valid: Tensor) -> Tensor:
        """Normalize the mean of unit vectors."""
        return F.normalize(soft_target, dim=1)

    def is_correct(self, label: Tensor, target: Tensor) -> Tensor:
        """Compare normals up to 30 degrees, as the metric ``within_30`` does."""
        return (label * target).sum(1) > math.cos(math.radians(30))

    def metrics(self) -> Metric:
        """Make the metric: angles in degrees, and percent within 11.25, 22.5 and 30 degrees."""
        return NormalErrors()

    def colorize(self, values: Tensor) -> Tensor:
        """Draw components as red, green and blue."""
        missing = ~values.isfinite().all(1, keepdim=True)
        picture = ((values.nan_to_num(0).clamp(-1, 1) + 1) * 127.5).round()
        return picture.masked_fill(missing, MISSING_GRAY).to(torch.uint8)

    def error_map(self, values: Tensor, target: Tensor) -> Tensor:
        """Compute the angle, 30 degrees as 1."""
        return torch.rad2deg((values * target).sum(1).clamp(-1, 1).acos()) / 30

    def legend(self) -> list[tuple[str, Tensor]]:
        """Return four directions."""
        directions = {"right": (1, 0, 0), "left": (-1, 0, 0), "up": (0, 1, 0), "to the camera": (0, 0, 1)}
        return [(name, torch.tensor(axis).float().view(1, 3, 1, 1)) for name, axis in directions.items()]

    def to_png(self, values: np.ndarray) -> np.ndarray:
        """Encode components as colors, uint8 ``h w 3``, exact to a quarter of a degree."""
        return np.rint((values.transpose(1, 2, 0).clip(-1, 1) + 1) * 127.5).astype(np.uint8)

    def compress(self, array: np.ndarray) -> np.ndarray:
        """Encode a component in one byte, exact to a quarter of a degree."""
        return np.asarray(np.rint(array * 127), np.int8)

    def decompress(self, array: np.ndarray) -> np.ndarray:
        """Decode and normalize."""
        vectors = array.astype(np.float32)
        norm = np.linalg.norm(vectors, axis=-1, keepdims=True)
        return np.asarray(vectors / np.maximum(norm, np.float32(1e-6)))

    def flip(self, array: np.ndarray) -> np.ndarray:
        """Mirror a map left to right and change the sign of x."""
        flipped = super().flip(array)
        flipped[..., 0] *= -1
        return flipped


def fibonacci_hemisphere(count: int, like: Tensor) -> Tensor:
    """Spread unit vectors evenly over the hemisphere z > 0, by equal steps in z and golden-angle steps around it.

    >>> fibonacci_hemisphere(2, torch.zeros(()))[:, 2]
    tensor([0.7500, 0.2500])
    """
    k = torch.arange(count, device=like.device, dtype=like.dtype)
    z = 1 - (k + 0.5) / count
    radius = (1 - z * z).sqrt()
    angle = k * (math.pi * (3 - math.sqrt(5)))
    return torch.stack([radius * angle.cos(), radius * angle.sin(), z], dim=1)


@cache
def _published() -> np.ndarray:
    """Read the directions of the public release, ``40 3``."""
    table = resources.files("htt_lightning.tasks").joinpath("normal_directions.csv").read_text()
    return np.loadtxt(table.splitlines(), delimiter=",")
