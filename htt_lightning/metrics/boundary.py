"""F-measure of boundaries."""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from htt_lightning.metrics.boundary_matching import match_boundaries
from htt_lightning.metrics.pooled import SumStateMetric, f_measure


class BoundaryFMeasure(SumStateMetric):
    """Boundary F-measure in percent, at one threshold for all images and at the best of each: odsF, oisF.

    Predicted and true boundary pixels are matched one to one, up to ``tolerance`` times the image diagonal. This is
    the diagonal of the rectangle around all valid pixels, without padding.

    Args:
        tolerance: Largest distance of a pair relative to the diagonal: 0.011 for NYUD, 0.0075 for PASCAL.
        num_thresholds: Number of thresholds, evenly spaced inside (0, 1).
        thin_predictions: Thin the binary prediction at each threshold to lines of one pixel before matching.

    Raises:
        ValueError: The tolerance is negative, or there is no threshold.

    >>> metric = BoundaryFMeasure()
    >>> edges = torch.eye(8)[None]
    >>> metric.update(edges, edges.long())
    >>> metric.compute()["ods_f"]
    tensor(100., dtype=torch.float64)
    """

    higher_is_better = True
    matched: Tensor
    predicted: Tensor
    best_matched: Tensor
    best_predicted: Tensor
    true: Tensor
    pixels: Tensor

    def __init__(self, tolerance: float = 0.011, num_thresholds: int = 19, thin_predictions: bool = False) -> None:
        super().__init__()
        if num_thresholds < 1:
            raise ValueError(f"num_thresholds must be at least 1, got {num_thresholds}.")
        if tolerance < 0:
            raise ValueError(f"tolerance must be at least 0, got {tolerance}.")
        self.thresholds = tuple(k / (num_thresholds + 1) for k in range(1, num_thresholds + 1))
        self.tolerance = tolerance
        self.thin_predictions = thin_predictions
        self.add_sum_state("matched", num_thresholds)
        self.add_sum_state("predicted", num_thresholds)
        for name in ("best_matched", "best_predicted", "true", "pixels"):
            self.add_sum_state(name)

    def update(self, pred: Tensor, target: Tensor) -> None:
        """Count a batch, image by image on the CPU.

        Args:
            pred: Probabilities, ``b h w`` in [0, 1], any float type; NaN is never predicted.
            target: Integer ``b h w`` of 0 and 1, 255 where missing.
        """
        thresholds = np.array(self.thresholds, np.float32)
        for probability, label in zip(pred.detach().float().cpu().numpy(), target.cpu().numpy(), strict=True):
            valid = (label == 0) | (label == 1)
            radius = self.tolerance * math.hypot(valid_extent(valid.any(1)), valid_extent(valid.any(0)))
            counts = match_boundaries(probability, label == 1, valid, thresholds, radius, self.thin_predictions)
            matched = torch.from_numpy(counts.matched).to(self.matched.device)
            predicted = torch.from_numpy(counts.predicted).to(self.predicted.device)
            true = torch.tensor(counts.true, device=self.true.device)
            # Of equally good thresholds the highest, which predicts the fewest pixels.
            best = len(matched) - 1 - f_measure(matched, predicted, true, beta2=1).flip(0).argmax()
            self.matched, self.predicted = self.matched + matched, self.predicted + predicted
            self.best_matched = self.best_matched + matched[best]
            self.best_predicted = self.best_predicted + predicted[best]
            self.true, self.pixels = self.true + true, self.pixels + int(valid.sum())

    def compute(self) -> dict[str, Tensor]:
        """Compute ``ods_f`` and ``ois_f``; 0 without precision or recall."""
        ods = f_measure(self.matched, self.predicted, self.true, beta2=1).max()
        ois = f_measure(self.best_matched, self.best_predicted, self.true, beta2=1)
        return {name: torch.where(self.pixels > 0, f, torch.nan) for name, f in (("ods_f", ods), ("ois_f", ois))}


def valid_extent(valid: NDArray[np.bool_]) -> int:
    """Measure the distance from the first to the last True, both included; 0 without any."""
    places = np.flatnonzero(valid)
    return int(places[-1] - places[0] + 1) if places.size else 0
