"""Depth errors."""

import torch
from torch import Tensor

from htt_lightning.metrics.pooled import SumStateMetric, percent


class DepthErrors(SumStateMetric):
    """Errors of depth, or of any positive field.

    A pixel is valid where the target is finite and positive. Predictions are clamped to at least 1e-9. ``abs_err`` and
    ``rmse`` have the unit of the target, ``abs_rel`` is relative to it, and ``rmse_log`` is of natural logarithms.
    ``delta1``, ``delta2`` and ``delta3`` are percent within a factor of less than 1.25, 1.25² and 1.25³.

    >>> metric = DepthErrors()
    >>> metric.update(torch.full((1, 1, 2, 2), 2.0), torch.full((1, 1, 2, 2), 4.0))
    >>> metric.compute()["abs_rel"]
    tensor(0.5000, dtype=torch.float64)
    """

    sums: Tensor
    within: Tensor
    counted: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_sum_state("sums", 4, dtype=torch.float64)
        self.add_sum_state("within", 3)
        self.add_sum_state("counted")

    def update(self, pred: Tensor, target: Tensor) -> None:
        """Count depths ``b 1 h w`` of a batch, NaN where the target is missing."""
        valid = target.isfinite() & (target > 0)
        p, g = pred[valid].float().clamp(min=1e-9), target[valid].float()
        error = (p - g).abs()
        errors = (error, error / g, error.square(), (p.log() - g.log()).square())
        self.sums = self.sums + torch.stack([values.double().sum() for values in errors])
        ratio = torch.maximum(p / g, g / p)
        self.within = self.within + torch.stack([(ratio < 1.25**power).sum() for power in (1, 2, 3)])
        self.counted = self.counted + g.numel()

    def compute(self) -> dict[str, Tensor]:
        """Compute mean errors and shares of pixels."""
        absolute, relative, square, log_square = self.sums / self.counted
        errors = {"abs_err": absolute, "abs_rel": relative, "rmse": square.sqrt(), "rmse_log": log_square.sqrt()}
        return errors | dict(zip(("delta1", "delta2", "delta3"), percent(self.within, self.counted), strict=True))
