"""Figures of surface normal estimation."""

import torch
from torch import Tensor
from torch.nn import functional

from htt_lightning.metrics.pooled import SumStateMetric, percent

STEP = 0.01
"""Degrees from one angle to the next among which the median is looked for."""

LIMITS = {"within_11.25": 11.25, "within_22.5": 22.5, "within_30": 30.0}
"""Degrees."""


class NormalErrors(SumStateMetric):
    """Angles between normals in degrees, pooled over all pixels (protocol.md 5).

    Both vectors are normalised. A pixel is valid where the target is finite and not the zero vector; a predicted zero
    vector counts as 90 degrees. The median is that of angles rounded to 0.01 degrees: exact to 0.005 degrees, from
    a histogram instead of all angles.
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
        """Count a batch.

        Args:
            pred: Normals of any length, ``b 3 h w``, any float type.
            target: Normals of any length, float ``b 3 h w``, NaN where missing.
        """
        pred, target = pred.movedim(1, -1), target.movedim(1, -1)
        valid = target.isfinite().all(-1) & target.any(-1)
        p = functional.normalize(pred[valid].float(), dim=-1)
        g = functional.normalize(target[valid].float(), dim=-1)
        # Exact for small angles as well, where the arc cosine of the dot product has lost its digits.
        angle = torch.rad2deg(2 * torch.atan2((p - g).norm(dim=-1), (p + g).norm(dim=-1)))
        self.sums = self.sums + torch.stack([angle.double().sum(), angle.double().square().sum()])
        self.within = self.within + torch.stack([(angle < limit).sum() for limit in LIMITS.values()])
        steps = (angle.nan_to_num(nan=180) / STEP).round().long()
        self.histogram = self.histogram + torch.bincount(steps, minlength=len(self.histogram))

    def compute(self) -> dict[str, Tensor]:
        """``mean``, ``median`` and ``rmse`` in degrees; percent ``within_11.25``, ``within_22.5``, ``within_30``.

        The shares are of angles strictly below the limits.
        """
        counted = self.histogram.sum()
        mean, square = self.sums / counted
        return {
            "mean": mean,
            "median": torch.where(counted > 0, self._median(counted), torch.nan),
            "rmse": square.sqrt(),
            **dict(zip(LIMITS, percent(self.within, counted), strict=True)),
        }

    def _median(self, counted: Tensor) -> Tensor:
        """The angle in the middle, or the mean of the two in the middle."""
        middle = torch.stack([(counted - 1) // 2, counted // 2])
        return STEP * torch.searchsorted(self.histogram.cumsum(0), middle, right=True).double().mean()
