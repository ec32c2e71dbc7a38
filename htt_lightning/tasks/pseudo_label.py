"""Labels as a teacher sees them, and how a task learns from them (method.md 4)."""

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from htt_lightning.losses import upcast
from htt_lightning.output import TaskOutput, upsample_to_image


class PseudoLabel(NamedTuple):
    """A task's labels as a teacher sees them (method.md 4).

    Attributes:
        label: In the form of a target, without missing pixels.
        confidence: ``b h w`` in [0, 1].
    """

    label: Tensor
    confidence: Tensor


def argmax_with_confidence(output: TaskOutput, size: tuple[int, int]) -> PseudoLabel:
    """The likeliest channel of each pixel at ``size = (h, w)``, and its probability."""
    confidence, label = upsample_to_image(upcast(output.logits), size).softmax(1).max(1)
    return PseudoLabel(label, confidence)


class PseudoLabelMixin:
    """How labels of a task are discovered: hard ones per pixel, or beliefs per cell; by default none."""

    confidence_threshold: float
    field_channels: ClassVar[int | None] = None

    @property
    def supports_pseudo_labels(self) -> bool:
        """Whether labels of the task can be discovered; otherwise it is taught by features alone."""
        return type(self).pseudo_label is not PseudoLabelMixin.pseudo_label

    def pseudo_label(self, output: TaskOutput, size: tuple[int, int]) -> PseudoLabel | None:
        """The labels that a teacher's output amounts to (method.md 4).

        Args:
            output: The teacher's at feature resolution.
            size: Height and width of the labels.

        Returns:
            None by default: such a task is taught by features alone.
        """
        return None

    def confidence_mask(self, confidence: Tensor) -> Tensor:
        """Which discovered pixels count.

        Args:
            confidence: ``b h w`` in [0, 1].

        Returns:
            bool ``b h w``.
        """
        return confidence > self.confidence_threshold

    def pseudo_label_loss(self, output: TaskOutput, found: PseudoLabel, valid: Tensor) -> Tensor:
        """Loss on discovered labels, without the weights lambda and beta (method.md 4).

        Args:
            output: The student's output at feature resolution.
            found: What ``discover`` made of the teacher's.
            valid: bool ``b h w``, False on padding, which never counts.

        Returns:
            One value per image, ``b``: finite, and 0 where nothing is kept.
        """
        raise NotImplementedError(f"{type(self).__name__} discovers labels but has no loss on them.")

    def soft_target(self, output: TaskOutput) -> Tensor:
        """What a teacher's output says about each cell, in a form that can be averaged over views of an image.

        Args:
            output: The teacher's at feature resolution.

        Returns:
            ``b c h/s w/s``; by default the probabilities of the classes.
        """
        return upcast(output.logits).softmax(1)

    def unflip(self, soft_target: Tensor) -> Tensor:
        """A belief about the mirrored image as one about the image.

        Args:
            soft_target: ``b c h/s w/s``.

        Returns:
            ``b c h/s w/s``.
        """
        return soft_target.flip(-1)

    def finalize_soft_target(self, soft_target: Tensor, valid: Tensor) -> Tensor:
        """Last word on a belief once views of an image have been averaged.

        Args:
            soft_target: ``b c h/s w/s``.
            valid: bool ``b h/s w/s``, False on padding.
        """
        return soft_target

    def distillation_loss(self, output: TaskOutput, soft_target: Tensor) -> Tensor:
        """Loss on a belief, a soft label, without the weights lambda and beta.

        Args:
            output: The student's output at feature resolution.
            soft_target: The teacher's, settled, ``b c h/s w/s``.

        Returns:
            ``b h/s w/s``; by default the Kullback-Leibler divergence in nats.
        """
        return (torch.xlogy(soft_target, soft_target) - soft_target * upcast(output.logits).log_softmax(1)).sum(1)

    def is_correct(self, label: Tensor, target: Tensor) -> Tensor:
        """Where a discovered label is right.

        Args:
            label: As ``discover`` returns it.
            target: The given label, missing pixels marked.

        Returns:
            bool ``b h w``; any value where the target is missing.
        """
        if self.field_channels is not None:
            raise NotImplementedError(f"{type(self).__name__} discovers labels but cannot tell which are right.")
        return label == target
