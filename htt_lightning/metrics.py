"""Metrics of the benchmark, pooled over all pixels of a data set (protocol.md 5).

Every metric is updated with a decoded prediction and a target at the same size, in which missing pixels are marked: 255
in index maps, NaN in fields. Its states are sums, so pieces of a data set and processes simply add up. Without a valid
pixel the figure is NaN.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torchmetrics import Metric

from htt_lightning.boundaries import count_boundaries

PERCENT = 100.0
THRESHOLDS = tuple(k / 20 for k in range(1, 20))
"""0.05, 0.10, ..., 0.95: the thresholds of the saliency F-measure (protocol.md 5)."""


class _Pooled(Metric):
    """A metric whose states are sums over pixels."""

    is_differentiable = False
    full_state_update = False

    @property
    def update_called(self) -> bool:
        """Always True: a data set without labels is a proper one, whose figure is NaN rather than a warning."""
        return True

    def _add_sum(self, name: str, *shape: int, dtype: torch.dtype = torch.int64) -> None:
        self.add_state(name, torch.zeros(shape, dtype=dtype), dist_reduce_fx="sum")


class MeanIoU(_Pooled):
    """Mean intersection over union in percent, from one confusion matrix (protocol.md 5).

    Labels outside ``[0, num_classes)`` are missing. A class is absent when it is in neither label nor prediction.

    Args:
        num_classes: Number of classes.
        absent: ``skip`` leaves absent classes out of the mean, ``zero`` counts them as 0 as some papers do.
    """

    higher_is_better = True
    confusion: Tensor

    def __init__(self, num_classes: int, absent: Literal["skip", "zero"] = "skip") -> None:
        super().__init__()
        self.num_classes = num_classes
        self.absent = absent
        self._add_sum("confusion", num_classes, num_classes)

    def update(self, pred: Tensor, target: Tensor) -> None:
        """Count a batch.

        Args:
            pred: Classes, integer ``b h w`` in ``[0, num_classes)``.
            target: Classes, integer ``b h w``, 255 where missing.

        Raises:
            ValueError: A predicted class does not exist.
        """
        valid = (target >= 0) & (target < self.num_classes)
        pred, target = pred[valid].long(), target[valid].long()
        if ((pred < 0) | (pred >= self.num_classes)).any():
            raise ValueError(f"Predicted classes must be in [0, {self.num_classes}).")
        pairs = torch.bincount(target * self.num_classes + pred, minlength=self.num_classes**2)
        self.confusion = self.confusion + pairs.view_as(self.confusion)

    def compute(self) -> Tensor:
        """Percent, float64 scalar."""
        hit = self.confusion.diagonal()
        union = self.confusion.sum(0) + self.confusion.sum(1) - hit
        present = union > 0
        iou = PERCENT * hit.double() / union.clamp(min=1)
        mean = iou[present].mean() if self.absent == "skip" else iou.mean()
        return torch.where(present.any(), mean, torch.nan)


class _Mean(_Pooled):
    """Mean of one value per valid pixel, or per image."""

    higher_is_better = False
    total: Tensor
    counted: Tensor

    def __init__(self) -> None:
        super().__init__()
        self._add_sum("total", dtype=torch.float64)
        self._add_sum("counted")

    def _count(self, values: Tensor) -> None:
        self.total = self.total + values.double().sum()
        self.counted = self.counted + values.numel()

    def compute(self) -> Tensor:
        """The mean, float64 scalar, in the unit of the metric."""
        return self.total / self.counted


class MeanLoss(_Mean):
    """Mean loss per labelled image, over however many batches and processes."""

    def update(self, loss: Tensor, count: Tensor) -> None:
        """Count a batch.

        Args:
            loss: Sum over the batch's labelled images, a scalar.
            count: Their number, an integer scalar; it may be 0.
        """
        self.total = self.total + loss.double()
        self.counted = self.counted + count


class AbsoluteError(_Mean):
    """Mean absolute error of depth in the unit of the target, metres for most data sets (protocol.md 5).

    A pixel is valid where the target is finite and positive; predictions are clamped to at least 1e-9.
    """

    def update(self, pred: Tensor, target: Tensor) -> None:
        """Count a batch.

        Args:
            pred: Depth, ``b 1 h w``, any float type.
            target: Depth, float ``b 1 h w``, NaN where missing.
        """
        valid = target.isfinite() & (target > 0)
        self._count((pred[valid].float().clamp(min=1e-9) - target[valid].float()).abs())


class MeanAngle(_Mean):
    """Mean angle between normals in degrees (protocol.md 5).

    Both vectors are normalised. A pixel is valid where the target is finite and not the zero vector; a predicted zero
    vector counts as 90 degrees.
    """

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
        self._count(torch.rad2deg(2 * torch.atan2((p - g).norm(dim=-1), (p + g).norm(dim=-1))))


class _BestF(_Pooled):
    """Maximum over thresholds of the F-measure of pooled counts."""

    higher_is_better = True
    matched: Tensor
    predicted: Tensor
    true: Tensor
    pixels: Tensor

    def __init__(self, thresholds: Sequence[float], beta2: float) -> None:
        super().__init__()
        if not thresholds or list(thresholds) != sorted(thresholds):
            raise ValueError("Thresholds must be ascending, and at least one.")
        self.thresholds = tuple(thresholds)
        self.beta2 = beta2
        self._add_sum("matched", len(self.thresholds))
        self._add_sum("predicted", len(self.thresholds))
        self._add_sum("true")
        self._add_sum("pixels")

    def compute(self) -> Tensor:
        """Percent, float64 scalar; 0 where precision or recall does not exist."""
        # (1 + b) P R / (b P + R) with P = matched / predicted and R = matched / true, without 0 / 0.
        matched, predicted, true = self.matched.double(), self.predicted.double(), self.true.double()
        f = (1 + self.beta2) * matched / (self.beta2 * true + predicted).clamp(min=1e-9)
        return torch.where(self.pixels > 0, PERCENT * f.max(), torch.nan)


class MaxF(_BestF):
    """Maximum F-measure of a binary map in percent: maxF of saliency (protocol.md 5).

    Args:
        thresholds: Ascending; a pixel is predicted where its probability is at least the threshold.
        beta2: Squared beta; below 1 it stresses precision.

    Raises:
        ValueError: The thresholds are not ascending, or there is none.
    """

    def __init__(self, thresholds: Sequence[float] = THRESHOLDS, beta2: float = 0.3) -> None:
        super().__init__(thresholds, beta2)

    def update(self, pred: Tensor, target: Tensor) -> None:
        """Count a batch.

        Args:
            pred: Probabilities, ``b h w`` in [0, 1], any float type; NaN is never predicted.
            target: Integer ``b h w`` of 0 and 1, 255 where missing.
        """
        valid = (target == 0) | (target == 1)
        true = target[valid] == 1
        # The number of thresholds that a pixel reaches. Both sides are float32, so that 0.7 reaches 0.7.
        thresholds = torch.tensor(self.thresholds, device=pred.device)
        reached = torch.bucketize(pred[valid].float().nan_to_num(nan=-1), thresholds, right=True)
        self.matched = self.matched + self._at_least(reached[true])
        self.predicted = self.predicted + self._at_least(reached)
        self.true = self.true + true.sum()
        self.pixels = self.pixels + true.numel()

    def _at_least(self, reached: Tensor) -> Tensor:
        """Pixels that reach each threshold, int64 ``t``."""
        return torch.bincount(reached, minlength=len(self.thresholds) + 1).flip(0).cumsum(0).flip(0)[1:]


class BoundaryF(_BestF):
    """Boundary F-measure in percent at the best threshold for the whole data set: odsF (protocol.md 5).

    Predicted and true boundary pixels are matched one to one. A pair lies no further apart than ``tolerance`` times the
    diagonal of the image's maps as given; padding is missing, so it is excluded, but it does lengthen the diagonal.

    Args:
        tolerance: Largest distance of a pair as a part of the diagonal: 0.011 for NYUD, 0.0075 for PASCAL.
        thresholds: Number of thresholds, evenly spaced strictly inside (0, 1).

    Raises:
        ValueError: The tolerance is negative, or there is no threshold.
    """

    def __init__(self, tolerance: float = 0.011, thresholds: int = 19) -> None:
        super().__init__([k / (thresholds + 1) for k in range(1, thresholds + 1)], beta2=1)
        if tolerance < 0:
            raise ValueError(f"The tolerance must not be negative, got {tolerance}.")
        self.tolerance = tolerance

    def update(self, pred: Tensor, target: Tensor) -> None:
        """Count a batch, image by image on the CPU.

        Args:
            pred: Probabilities, ``b h w`` in [0, 1], any float type; NaN is never predicted.
            target: Integer ``b h w`` of 0 and 1, 255 where missing; missing pixels are neither predicted nor true.
        """
        radius = self.tolerance * float(np.hypot(*target.shape[-2:]))
        thresholds = np.array(self.thresholds, np.float32)
        for probability, label in zip(pred.detach().float().cpu().numpy(), target.cpu().numpy(), strict=True):
            valid = (label == 0) | (label == 1)
            counts = count_boundaries(probability, label == 1, valid, thresholds, radius)
            self.matched = self.matched + torch.from_numpy(counts.matched).to(self.matched.device)
            self.predicted = self.predicted + torch.from_numpy(counts.predicted).to(self.predicted.device)
            self.true = self.true + counts.true
            self.pixels = self.pixels + int(valid.sum())
