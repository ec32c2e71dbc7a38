"""F-measure of boundaries."""

import math

import numpy as np
import torch
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
        # A column for each threshold, then one for each image's best.
        self.add_sum_state("matched", num_thresholds + 1)
        self.add_sum_state("predicted", num_thresholds + 1)
        self.add_sum_state("true")
        self.add_sum_state("pixels")

    def update(self, pred: Tensor, target: Tensor) -> None:
        """Count probabilities ``b h w`` and targets of 0 and 1, 255 where missing, image by image on the CPU."""
        thresholds = np.array(self.thresholds, np.float32)
        for probability, label in zip(pred.detach().float().cpu().numpy(), target.cpu().numpy(), strict=True):
            valid = (label == 0) | (label == 1)
            if not valid.any():
                continue
            radius = self.tolerance * math.hypot(*(np.ptp(places) + 1 for places in np.nonzero(valid)))
            counts = match_boundaries(probability, label == 1, valid, thresholds, radius, self.thin_predictions)
            matched, predicted = torch.from_numpy(counts)
            true = torch.tensor((label == 1).sum())
            # Of equally good thresholds the highest, which predicts the fewest pixels.
            best = len(matched) - 1 - f_measure(matched, predicted, true, beta2=1).flip(0).argmax(0, keepdim=True)
            self.matched = self.matched + torch.cat([matched, matched[best]]).to(self.matched.device)
            self.predicted = self.predicted + torch.cat([predicted, predicted[best]]).to(self.predicted.device)
            self.true, self.pixels = self.true + int(true), self.pixels + int(valid.sum())

    def compute(self) -> dict[str, Tensor]:
        """Compute ``ods_f`` and ``ois_f``; 0 without precision or recall."""
        f = f_measure(self.matched, self.predicted, self.true, beta2=1)
        f = torch.where(self.pixels > 0, f, torch.nan)
        return {"ods_f": f[:-1].max(), "ois_f": f[-1]}
