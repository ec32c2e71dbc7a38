"""Mean intersection over union and pixel accuracy."""

from typing import Literal

import torch
from torch import Tensor

from htt_lightning.metrics.pooled import PERCENT, SumStateMetric, percent


class SegmentationScores(SumStateMetric):
    """Mean intersection over union and pixel accuracy in percent, from one confusion matrix.

    Labels outside ``[0, num_classes)`` are missing.

    Args:
        num_classes: Number of classes.
        absent_classes: Rule for classes in neither labels nor predictions: ``skip`` them, or count them as ``zero``.

    >>> metric = SegmentationScores(2)
    >>> metric.update(torch.tensor([[[0, 1, 1]]]), torch.tensor([[[0, 0, 255]]]))
    >>> metric.compute()["pixel_acc"]
    tensor(50., dtype=torch.float64)
    """

    higher_is_better = True
    confusion: Tensor

    def __init__(self, num_classes: int, absent_classes: Literal["skip", "zero"] = "skip") -> None:
        super().__init__()
        self.num_classes = num_classes
        self.absent_classes = absent_classes
        self.add_sum_state("confusion", num_classes, num_classes)

    def update(self, pred: Tensor, target: Tensor) -> None:
        """Count classes ``b h w`` of a batch, integers in ``[0, num_classes)``; 255 where the target is missing."""
        valid = (target >= 0) & (target < self.num_classes)
        pred, target = pred[valid].long(), target[valid].long()
        if ((pred < 0) | (pred >= self.num_classes)).any():
            raise ValueError(f"Predicted classes must be in [0, {self.num_classes}).")
        pairs = torch.bincount(target * self.num_classes + pred, minlength=self.num_classes**2)
        self.confusion = self.confusion + pairs.view_as(self.confusion)

    def compute(self) -> dict[str, Tensor]:
        """Compute ``miou`` and ``pixel_acc``."""
        hit = self.confusion.diagonal()
        iou = class_scores(self.confusion, self.absent_classes)["iou"]
        return {"miou": iou.nanmean(), "pixel_acc": percent(hit.sum(), self.confusion.sum())}

    def synced_confusion(self) -> Tensor:
        """Return the confusion matrix over all processes, which must all call this; rows are labels, int64 ``k k``."""
        with self.sync_context(dist_sync_fn=self.dist_sync_fn):
            return self.confusion.clone()


def class_scores(confusion: Tensor, absent_classes: Literal["skip", "zero"] = "skip") -> dict[str, Tensor]:
    """Compute scores of each class in percent, float64 ``k``.

    Args:
        confusion: Confusion matrix ``k k``; rows are labels.
        absent_classes: IoU of classes in neither labels nor predictions: NaN with ``skip``, 0 with ``zero``. It is NaN
            for all classes of an empty matrix.

    Returns:
        ``iou``; ``pixel_acc``, the share of the class's pixels that are right; and ``share``, its share of all pixels.

    >>> class_scores(torch.tensor([[3, 1], [0, 0]]))["iou"]
    tensor([75., 0.], dtype=torch.float64)
    """
    hit, labeled = confusion.diagonal(), confusion.sum(1)
    union = confusion.sum(0) + labeled - hit
    counted = union > 0 if absent_classes == "skip" else (confusion.sum() > 0).expand_as(union)
    iou = torch.where(counted, PERCENT * hit.double() / union.clamp(min=1), torch.nan)
    return {"iou": iou, "pixel_acc": percent(hit, labeled), "share": percent(labeled, confusion.sum())}
