"""Base class and formulas of all metrics."""

import torch
from torch import Tensor
from torchmetrics import Metric

PERCENT = 100.0


class SumStateMetric(Metric):
    """A metric whose states are sums over pixels or images."""

    is_differentiable = False
    full_state_update = False

    @property
    def update_called(self) -> bool:
        """Return True: a dataset without labels gives NaN, not a warning."""
        return True

    def add_sum_state(self, name: str, *shape: int, dtype: torch.dtype = torch.int64) -> None:
        """Add a state of zeros, by default a scalar: int64 for counts, float64 for sums of values."""
        self.add_state(name, torch.zeros(shape, dtype=dtype), dist_reduce_fx="sum")


def percent(part: Tensor, whole: Tensor) -> Tensor:
    """Compute a share of counts in percent, float64; NaN if the whole is 0.

    >>> percent(torch.tensor(1), torch.tensor(4))
    tensor(25., dtype=torch.float64)
    """
    return PERCENT * part.double() / whole


def f_measure(matched: Tensor, predicted: Tensor, true: Tensor, beta2: float) -> Tensor:
    """Compute the F-measure of pooled counts in percent, float64; 0 without precision or recall.

    >>> f_measure(torch.tensor(1), torch.tensor(2), torch.tensor(2), beta2=1)
    tensor(50., dtype=torch.float64)
    """
    # (1 + b) P R / (b P + R) with P = matched / predicted and R = matched / true, without 0 / 0.
    return PERCENT * ((1 + beta2) * matched.double() / (beta2 * true.double() + predicted.double()).clamp(min=1e-9))
