"""Maximum F-measure of binary maps."""

from collections.abc import Sequence

import torch
from torch import Tensor

from htt_lightning.metrics.pooled import SumStateMetric, f_measure

THRESHOLDS = tuple(k / 20 for k in range(1, 20))


class MaxFMeasure(SumStateMetric):
    """Maximum over thresholds of the F-measure of pooled counts in percent: maxF of saliency.

    Published code applies another sigmoid to the probability, which leaves four distinct thresholds.
    ``max_f_double_sigmoid`` is for comparison with published values.

    Args:
        thresholds: Ascending thresholds, by default 0.05, ..., 0.95. Pixels at or above one are predicted.
        beta2: Squared beta; below 1 it stresses precision.

    Raises:
        ValueError: The thresholds are not ascending, or there is none.

    >>> metric = MaxFMeasure()
    >>> metric.update(torch.tensor([[[0.9, 0.2]]]), torch.tensor([[[1, 0]]]))
    >>> metric.compute()["max_f"]
    tensor(100., dtype=torch.float64)
    """

    higher_is_better = True
    matched: Tensor
    predicted: Tensor
    true: Tensor
    pixels: Tensor

    def __init__(self, thresholds: Sequence[float] = THRESHOLDS, beta2: float = 0.3) -> None:
        super().__init__()
        if not thresholds or list(thresholds) != sorted(thresholds):
            raise ValueError(f"thresholds must be ascending and at least one, got {thresholds}.")
        self.thresholds = tuple(thresholds)
        self.beta2 = beta2
        # A row for the probability, one for its sigmoid.
        self.add_sum_state("matched", 2, len(self.thresholds))
        self.add_sum_state("predicted", 2, len(self.thresholds))
        self.add_sum_state("true")
        self.add_sum_state("pixels")

    def update(self, pred: Tensor, target: Tensor) -> None:
        """Count probabilities ``b h w`` and targets of 0 and 1, 255 where missing; NaN is never predicted."""
        valid = (target == 0) | (target == 1)
        true, probability = target[valid] == 1, pred[valid].float()
        # Both sides are float32, so that 0.7 reaches 0.7.
        thresholds = torch.tensor(self.thresholds, device=pred.device)
        values = (probability, probability.sigmoid())
        reached = [torch.bucketize(value.nan_to_num(nan=-1), thresholds, right=True) for value in values]
        self.matched = self.matched + torch.stack([self._cumulative_counts(r[true]) for r in reached])
        self.predicted = self.predicted + torch.stack([self._cumulative_counts(r) for r in reached])
        self.true = self.true + true.sum()
        self.pixels = self.pixels + true.numel()

    def _cumulative_counts(self, reached: Tensor) -> Tensor:
        """Count the pixels that reach each threshold, from the number of thresholds that each pixel reaches."""
        return torch.bincount(reached, minlength=len(self.thresholds) + 1).flip(0).cumsum(0).flip(0)[1:]

    def compute(self) -> dict[str, Tensor]:
        """Compute ``max_f`` and ``max_f_double_sigmoid``; 0 without precision or recall."""
        best = f_measure(self.matched, self.predicted, self.true, self.beta2).amax(1)
        best = torch.where(self.pixels > 0, best, torch.nan)
        return {"max_f": best[0], "max_f_double_sigmoid": best[1]}
