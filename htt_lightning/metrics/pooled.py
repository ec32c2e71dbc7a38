"""What all metrics share: states that are sums."""

import torch
from torch import Tensor
from torchmetrics import Metric

PERCENT = 100.0


class SumStateMetric(Metric):
    """A metric whose states are sums, over pixels or images."""

    is_differentiable = False
    full_state_update = False

    @property
    def update_called(self) -> bool:
        """Always True: a data set without labels is a proper one, whose figure is NaN rather than a warning."""
        return True

    def add_sum_state(self, name: str, *shape: int, dtype: torch.dtype = torch.int64) -> None:
        """Add a state of zeros.

        Args:
            name: Of the attribute that holds it.
            *shape: Of the state; a scalar by default.
            dtype: int64 for counts, float64 for sums of values.
        """
        self.add_state(name, torch.zeros(shape, dtype=dtype), dist_reduce_fx="sum")


class MeanLoss(SumStateMetric):
    """Mean loss per labelled image, over however many batches and processes."""

    higher_is_better = False
    total: Tensor
    counted: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_sum_state("total", dtype=torch.float64)
        self.add_sum_state("counted")

    def update(self, loss: Tensor, count: Tensor | int) -> None:
        """Count a batch.

        Args:
            loss: Sum over the batch's labelled images, a scalar.
            count: Their number, an integer; it may be 0.
        """
        self.total = self.total + loss.double()
        self.counted = self.counted + count

    def compute(self) -> Tensor:
        """The mean, float64 scalar."""
        return self.total / self.counted


def percent(part: Tensor, whole: Tensor) -> Tensor:
    """Share of counts in percent, float64; NaN of nothing."""
    return PERCENT * part.double() / whole


def f_measure(matched: Tensor, predicted: Tensor, true: Tensor, beta2: float) -> Tensor:
    """F-measure of pooled counts in percent, float64; 0 where precision or recall does not exist.

    Args:
        matched: Predicted pixels that are true, any shape.
        predicted: Predicted pixels, of the same shape.
        true: True pixels, a scalar.
        beta2: Squared beta; below 1 it stresses precision.
    """
    # (1 + b) P R / (b P + R) with P = matched / predicted and R = matched / true, without 0 / 0.
    return PERCENT * ((1 + beta2) * matched.double() / (beta2 * true.double() + predicted.double()).clamp(min=1e-9))
