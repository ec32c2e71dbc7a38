"""Angular errors of surface normals."""

import torch
import torch.nn.functional as F
from torch import Tensor

from htt_lightning.metrics.pooled import SumStateMetric, percent

STEP = 0.01
"""Bin width in degrees of the histogram that gives the median."""

LIMITS = {"within_11.25": 11.25, "within_22.5": 22.5, "within_30": 30.0}
"""Angles in degrees by metric."""


class NormalErrors(SumStateMetric):
    """Angles between normals in degrees, pooled over all pixels.

    Both vectors are normalized. A pixel is valid where the target is finite and not zero; a predicted zero vector
    counts as 90 degrees. The median comes from a histogram and is exact to 0.005 degrees.

    >>> metric = NormalErrors()
    >>> x, z = torch.eye(3)[[0, 2]].view(2, 1, 3, 1, 1)
    >>> metric.update(x, z)
    >>> metric.compute()["mean"]
    tensor(90., dtype=torch.float64)
    """

    sums: Tensor
    within: Tensor
    histogram: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_sum_state("sums", 2, dtype=torch.float64)
        self.add_sum_state("within", len(LIMITS))
        self.add_sum_state("histogram", round(180 / STEP) + 1)

    def update(self, pred: Tensor, target: Tensor) -> None:
        """Count normals ``b 3 h w`` of any length, NaN where the target is missing."""
        pred, target = pred.movedim(1, -1), target.movedim(1, -1)
        valid = target.isfinite().all(-1) & target.any(-1)
        p, g = F.normalize(pred[valid].float(), dim=-1), F.normalize(target[valid].float(), dim=-1)
        # The arc cosine of the dot product has lost the digits of small angles.
        angle = torch.rad2deg(2 * torch.atan2((p - g).norm(dim=-1), (p + g).norm(dim=-1)))
        self.sums = self.sums + torch.stack([angle.double().sum(), angle.double().square().sum()])
        self.within = self.within + torch.stack([(angle < limit).sum() for limit in LIMITS.values()])
        steps = (angle.nan_to_num(nan=180) / STEP).round().long()
        self.histogram = self.histogram + torch.bincount(steps, minlength=len(self.histogram))

    def compute(self) -> dict[str, Tensor]:
        """Compute ``mean``, ``median`` and ``rmse`` in degrees, and percent of angles below each of ``LIMITS``."""
        counted = self.histogram.sum()
        mean, square = self.sums / counted
        middle = torch.stack([(counted - 1) // 2, counted // 2])
        median = STEP * torch.searchsorted(self.histogram.cumsum(0), middle, right=True).double().mean()
        angles = {"mean": mean, "median": torch.where(counted > 0, median, torch.nan), "rmse": square.sqrt()}
        return angles | dict(zip(LIMITS, percent(self.within, counted), strict=True))
