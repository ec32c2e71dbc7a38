"""Pseudo-labels and soft targets of a teacher, and the losses on them."""

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from htt_lightning.losses import upcast
from htt_lightning.output import TaskOutput, upsample_to_image


class PseudoLabel(NamedTuple):
    """Labels predicted by a teacher.

    Attributes:
        label: Map in the form of a target, without missing pixels.
        confidence: Confidence ``b h w`` in [0, 1].
    """

    label: Tensor
    confidence: Tensor


def argmax_with_confidence(output: TaskOutput, size: tuple[int, int]) -> PseudoLabel:
    """Take the most likely channel of each pixel and its probability.

    >>> output = TaskOutput(torch.tensor([[[[0.0]], [[9.0]]]]), torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1))
    >>> argmax_with_confidence(output, (1, 1))
    PseudoLabel(label=tensor([[[1]]]), confidence=tensor([[[0.9999]]]))
    """
    confidence, label = upsample_to_image(upcast(output.logits), size).softmax(1).max(1)
    return PseudoLabel(label, confidence)


class PseudoLabelMixin:
    """Pseudo-labels per pixel and soft targets per cell of a feature map.

    The rules follow [HiTTs](https://arxiv.org/abs/2411.18823), with the differences in `docs/differences.md`.
    """

    confidence_threshold: float
    field_channels: ClassVar[int | None] = None

    @property
    def supports_pseudo_labels(self) -> bool:
        """Return whether the task has pseudo-labels; others are taught by features alone."""
        return type(self).pseudo_label is not PseudoLabelMixin.pseudo_label

    def pseudo_label(self, output: TaskOutput, size: tuple[int, int]) -> PseudoLabel | None:
        """Make pseudo-labels from a teacher's output; None, the default, for a task without them.

        Args:
            output: Teacher output at feature resolution.
            size: Height and width of the pseudo-label.
        """
        return None

    def confidence_mask(self, confidence: Tensor) -> Tensor:
        """Select the pixels ``b h w`` whose pseudo-label counts: by default those above ``confidence_threshold``."""
        return confidence > self.confidence_threshold

    def pseudo_label_loss(self, output: TaskOutput, found: PseudoLabel, valid: Tensor) -> Tensor:
        """Compute the unweighted loss on pseudo-labels.

        Args:
            output: Student output at feature resolution.
            found: Pseudo-labels of the teacher at image size.
            valid: bool ``b h w``, False on padding, which never counts.

        Returns:
            One finite value per image, ``b``. It is 0 where no pseudo-label counts.
        """
        raise NotImplementedError(f"{type(self).__name__} has pseudo-labels but no pseudo_label_loss.")

    def soft_target(self, output: TaskOutput) -> Tensor:
        """Make soft targets ``b c h/s w/s`` to average over teachers and views, by default class probabilities."""
        return upcast(output.logits).softmax(1)

    def unflip(self, soft_target: Tensor) -> Tensor:
        """Turn the soft target ``b c h/s w/s`` of a mirrored image into one of the image."""
        return soft_target.flip(-1)

    def finalize_soft_target(self, soft_target: Tensor, valid: Tensor) -> Tensor:
        """Postprocess a soft target after averaging over views; by default do nothing.

        Args:
            soft_target: Soft target ``b c h/s w/s``.
            valid: bool ``b h/s w/s``, False on padding.
        """
        return soft_target

    def distillation_loss(self, output: TaskOutput, soft_target: Tensor) -> Tensor:
        """Compute the unweighted loss on soft targets, by default the Kullback-Leibler divergence in nats.

        Args:
            output: Student output at feature resolution.
            soft_target: Finalized soft target ``b c h/s w/s`` of the teacher.

        Returns:
            ``b h/s w/s``.
        """
        return (torch.xlogy(soft_target, soft_target) - soft_target * upcast(output.logits).log_softmax(1)).sum(1)

    def is_correct(self, label: Tensor, target: Tensor) -> Tensor:
        """Compare pseudo-labels with the ground truth: bool ``b h w``, any value where the target is missing."""
        if self.field_channels is not None:
            raise NotImplementedError(f"{type(self).__name__} has pseudo-labels but no is_correct.")
        return label == target
