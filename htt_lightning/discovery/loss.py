"""Losses of label discovery on a teacher's features, pseudo-labels and soft targets."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from htt_lightning.losses import feature_mse, fully_valid_cells, masked_mean, upcast
from htt_lightning.output import TaskOutput, feature_stride
from htt_lightning.tasks import PseudoLabel, Task

MAX_VIEW_SHIFT = 2
"""Largest shift of the second view of an image, in cells of the feature map, in both directions."""


@dataclass(frozen=True)
class DiscoveryLossWeights:
    """Weights of the losses of label discovery; 0 switches a loss off.

    All three are 1 in the paper ([HiTTs](https://arxiv.org/abs/2411.18823), Sec. 3.3). The feature losses are off by
    default because they did not improve results on data with known ground truth (docs/results.md).

    Args:
        pseudo_label: Weight of the loss on pseudo-labels or soft targets, on top of the weights of each task.
        feature_labeled: Weight of the squared distance to the teacher's features where the task is labeled.
        feature_unlabeled: Weight of that distance where it is not, further weighted by the teacher's confidence.
    """

    pseudo_label: float = 1.0
    feature_labeled: float = 0.0
    feature_unlabeled: float = 0.0

    def uses_pseudo_labels(self, task: Task) -> bool:
        """Return True if pseudo-labels of a task have a loss."""
        return task.supports_pseudo_labels and bool(self.pseudo_label and task.pseudo_label_weight)


class DiscoveryLoss(NamedTuple):
    """Losses of label discovery for one task and batch, with one value per image.

    Attributes:
        feature: Feature loss ``b``, 0 where it is off.
        prediction: Loss on pseudo-labels or soft targets ``b``, 0 for labeled images.
        coverage: Fraction of the valid pixels whose pseudo-label counts ``b``; 1 for soft targets.
        confidence: Mean confidence of the pseudo-labels over the valid pixels ``b``; NaN if it is unknown.
    """

    feature: Tensor
    prediction: Tensor
    coverage: Tensor
    confidence: Tensor

    @property
    def loss(self) -> Tensor:
        """Sum of both losses, ``b``."""
        return self.feature + self.prediction


def discovery_loss(
    task: Task,
    student: TaskOutput,
    teacher: TaskOutput | None,
    labeled: Tensor,
    valid: Tensor,
    task_weight: float | Tensor,
    loss_weights: DiscoveryLossWeights,
    pseudo_label: PseudoLabel | None = None,
    soft_target: Tensor | None = None,
) -> DiscoveryLoss:
    """Compute the losses of label discovery of one task ([HiTTs](https://arxiv.org/abs/2411.18823), Sec. 3.3).

    Args:
        task: Task with its confidence threshold and its weight of pseudo-labels.
        student: Output of the student.
        teacher: Output of the teacher on the same images, without gradient. None skips the feature losses.
        labeled: bool ``b``, True for images whose ground truth replaces pseudo-labels.
        valid: bool ``b h w``, False on padding, which never counts.
        task_weight: Weight lambda of the task's loss, also one per image, ``b``.
        loss_weights: Weights of the losses.
        pseudo_label: Pseudo-labels; by default those of the teacher.
        soft_target: Soft targets ``b c h/s w/s``, which replace the pseudo-labels and count everywhere.

    Returns:
        Losses, coverage and confidence per image.
    """
    feature = zeros = torch.zeros(len(labeled), device=labeled.device)
    if teacher and (loss_weights.feature_labeled or loss_weights.feature_unlabeled):
        unlabeled_weight = loss_weights.feature_unlabeled * upcast(teacher.confidence)
        weight = torch.where(labeled[:, None, None, None], loss_weights.feature_labeled, unlabeled_weight)
        feature = feature_mse(student.feature, teacher.feature, valid, weight)
    if not loss_weights.uses_pseudo_labels(task):
        return DiscoveryLoss(feature, zeros, zeros, zeros)
    scale = loss_weights.pseudo_label * task_weight * task.pseudo_label_weight
    if soft_target is not None:  # has one value per cell, not per pixel
        cells = soft_target.shape[-2], soft_target.shape[-1]
        valid = counted = fully_valid_cells(valid, cells)
        losses = masked_mean(task.distillation_loss(student, task.finalize_soft_target(soft_target, valid)), valid)
        at_cells = task.pseudo_label(teacher, cells) if teacher else None
        confidence = masked_mean(at_cells.confidence, valid) if at_cells else torch.full_like(zeros, torch.nan)
    else:
        pseudo_label = pseudo_label or (teacher and task.pseudo_label(teacher, (valid.shape[-2], valid.shape[-1])))
        if not pseudo_label:
            return DiscoveryLoss(feature, zeros, zeros, zeros)
        losses = task.pseudo_label_loss(student, pseudo_label, valid)
        counted = task.confidence_mask(pseudo_label.confidence)
        confidence = masked_mean(pseudo_label.confidence, valid)
    coverage = masked_mean(counted.float(), valid)
    return DiscoveryLoss(feature, scale * torch.where(labeled, 0, losses), coverage, confidence)


@torch.no_grad()
def soft_targets(
    tasks: Sequence[Task],
    outputs: Mapping[str, TaskOutput],
    image: Tensor,
    second_view: Callable[[Tensor], Mapping[str, TaskOutput]] | None = None,
) -> dict[str, Tensor]:
    """Compute soft targets from a teacher's output ([distillation](https://arxiv.org/abs/1503.02531)).

    Args:
        tasks: Tasks with soft targets.
        outputs: Output of the teacher on the images, by task.
        image: Images ``b 3 h w``.
        second_view: Teacher of a second view. With it, targets are the mean over the images and their mirror images,
            shifted at random by whole cells.

    Returns:
        Soft targets ``b c h/s w/s`` by task.
    """
    targets = {task.name: task.soft_target(outputs[task.name]) for task in tasks}
    if second_view is None or not tasks:
        return targets
    height, width = outputs[tasks[0].name].logits.shape[-2:]
    stride = feature_stride((height, width), (image.shape[-2], image.shape[-1]))
    max_shift = min(MAX_VIEW_SHIFT, height - 1, width - 1)
    # One draw on the CPU for all images, so that nothing waits for the GPU.
    down, right = torch.randint(-max_shift, max_shift + 1, (2,)).tolist()
    second = second_view(flip_and_shift_image(image, stride, down, right))
    inside = shift_map(torch.ones(1, 1, height, width, device=image.device, dtype=torch.bool), -down, right)
    for task in tasks:
        target = targets[task.name]
        other = shift_map(task.unflip(task.soft_target(second[task.name])), -down, right)
        targets[task.name] = torch.where(inside, (target + other) / 2, target)
    return targets


def flip_and_shift_image(image: Tensor, stride: int, down: int, right: int) -> Tensor:
    """Mirror images ``b c h w`` left to right and shift them by cells of ``stride`` pixels, repeating border pixels.

    Sizes are rounded up to whole cells, so that cells of both views coincide.
    """
    height, width = (-(-size // stride) * stride for size in image.shape[-2:])
    margin = stride * max(abs(down), abs(right))
    bottom, side = height - image.shape[-2] + margin, width - image.shape[-1] + margin
    padded = F.pad(image, (margin, side, margin, bottom), mode="replicate").flip(-1)
    top, left = margin - stride * down, margin - stride * right
    return padded[..., top : top + height, left : left + width]


def shift_map(cells: Tensor, down: int, right: int) -> Tensor:
    """Shift a map ``b c h w`` by cells, with zeros (or False) where cells come into view."""
    return F.pad(cells, (right, -right, down, -down))
