"""Per-image losses that ignore unlabeled pixels."""

from collections.abc import Sequence
from enum import StrEnum
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor

from htt_lightning.output import TaskOutput, feature_stride, upsample_to_image

BIN_LOSS_WEIGHT = 0.1
"""Weight of the bin classification loss beside the L1 loss of a regression task."""

CONFIDENCE_INV_TEMPERATURE = 5.0
"""Factor on bin logits before the softmax whose maximum is the confidence of a pseudo-label."""

ImageWeighting = Literal["num_tasks", "per_label", "none"]
"""Rule for the factor on the loss of an image."""


class LossKind(StrEnum):
    """Name the kinds of loss terms."""

    SUPERVISED = "supervised"
    PSEUDO_LABEL = "pseudo-label"
    FEATURE = "feature"
    CONSISTENCY = "consistency"


class LossTerm(NamedTuple):
    """Hold one term of a batch's loss, image by image, detached from the graph.

    Attributes:
        task: Name of the task; that of the method for a consistency loss, which is over all tasks.
        kind: Kind of the term.
        loss: One value per selected image.
        indices: Indices of the selected images in the batch; None for all.
    """

    task: str
    kind: LossKind
    loss: Tensor
    indices: Tensor | None = None


def upcast(x: Tensor) -> Tensor:
    """Cast half precision to float32, whose range sums over pixels need; keep other types.

    Examples:
        >>> upcast(torch.zeros(2, dtype=torch.bfloat16)).dtype
        torch.float32
    """
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def einsum_no_autocast(equation: str, *operands: Tensor) -> Tensor:
    """Compute ``torch.einsum`` in the type of the operands; autocast would return to half precision."""
    with torch.autocast(operands[0].device.type, enabled=False):
        return torch.einsum(equation, *operands)


def labeled_sum(loss: Tensor, labeled: Tensor) -> Tensor:
    """Sum the losses ``b`` of the labeled images.

    ``torch.where`` keeps the head of an unlabeled image in the graph with zero gradient, so distributed training never
    waits for it. A product with zero would let NaN through.

    Examples:
        >>> labeled_sum(torch.tensor([1.0, float("nan")]), torch.tensor([True, False]))
        tensor(1.)
    """
    return torch.where(labeled, loss, torch.zeros_like(loss)).sum()


def masked_mean(values: Tensor, valid: Tensor) -> Tensor:
    """Average each image's valid pixels: finite ``b h w -> b``, 0 for an image without one.

    Examples:
        >>> valid = torch.tensor([[[True, True]], [[False, False]]])
        >>> masked_mean(torch.tensor([[[1.0, 2.0]], [[3.0, 4.0]]]), valid)
        tensor([1.5000, 0.0000])
    """
    total = reduce(torch.where(valid, values, torch.zeros_like(values)), "b h w -> b", "sum")
    return total / reduce(valid, "b h w -> b", "sum").clamp(min=1)


def cross_entropy(logits: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Compute the cross entropy ``b h w`` of logits ``b k h w``; invalid pixels have any target and a loss of 0.

    Examples:
        >>> valid = torch.tensor([[[True, False]]])
        >>> cross_entropy(torch.zeros(1, 4, 1, 2), torch.tensor([[[3, 255]]]), valid)
        tensor([[[1.3863, 0.0000]]])
    """
    return F.cross_entropy(logits, target.masked_fill(~valid, -100), reduction="none", ignore_index=-100)


def balanced_bce(logits: Tensor, target: Tensor, valid: Tensor, pos_weight: float = 0.95) -> Tensor:
    """Compute the binary cross entropy ``b h w -> b`` with weight w of the positive class, 1 - w of the negative one.

    It is the mean over valid pixels of ``w y softplus(-x) + (1 - w) (1 - y) softplus(x)``.

    Examples:
        >>> valid = torch.ones(1, 1, 1, dtype=torch.bool)
        >>> balanced_bce(torch.zeros(1, 1, 1), torch.ones(1, 1, 1, dtype=torch.long), valid)
        tensor([0.6585])
    """
    truth = target.masked_fill(~valid, 0).to(logits.dtype)
    pixel = pos_weight * truth * F.softplus(-logits) + (1 - pos_weight) * (1 - truth) * F.softplus(logits)
    return masked_mean(pixel, valid)


def l1(pred: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Average the absolute error ``b c h w -> b``, summed over channels, over each image's valid pixels.

    Examples:
        >>> target = torch.tensor([[[[2.0, float("nan")]]]])
        >>> l1(torch.zeros(1, 1, 1, 2), target, torch.tensor([[[True, False]]]))
        tensor([2.])
    """
    # Replaced before the arithmetic: a NaN that is masked afterwards can survive in gradients.
    truth = torch.where(valid[:, None], target, torch.zeros_like(target))
    return masked_mean((pred - truth).abs().sum(1), valid)


def bin_confidence(output: TaskOutput, size: tuple[int, int], inverse_temperature: float) -> Tensor:
    """Compute the confidence ``b h w`` of a binned regression: the largest bin probability of each pixel."""
    scaled = upsample_to_image(inverse_temperature * upcast(output.logits), size)
    # Upsampling leaves the bins contiguous, for which softmax takes a third of the time on a CPU.
    return rearrange(scaled, "b k h w -> b h w k").softmax(-1).amax(-1)


def feature_mse(student: Tensor, teacher: Tensor, valid: Tensor, weight: Tensor | None = None) -> Tensor:
    """Average the squared difference of features ``b d h/s w/s -> b`` over each image's valid cells.

    Examples:
        >>> valid = torch.ones(1, 8, 8, dtype=torch.bool)
        >>> feature_mse(torch.zeros(1, 3, 2, 2), torch.ones(1, 3, 2, 2), valid)
        tensor([1.])

    Args:
        student: Feature of the student.
        teacher: Feature of the teacher.
        valid: bool ``b h w`` of the pixels; a cell that contains padding is left out.
        weight: ``b 1 h/s w/s``, such as the teacher's confidence; None weights all cells alike.
    """
    squares = (upcast(student) - upcast(teacher)).square().mean(1)
    weighted = squares if weight is None else upcast(weight)[:, 0] * squares
    return masked_mean(weighted, fully_valid_cells(valid, (student.shape[-2], student.shape[-1])))


def fully_valid_cells(valid: Tensor, size: tuple[int, int]) -> Tensor:
    """Mark the cells of a feature map without an invalid pixel: bool ``b h w -> b h/s w/s``.

    Examples:
        >>> fully_valid_cells(torch.tensor([[[True, True, True, False]] * 2]), (1, 2))
        tensor([[[ True, False]]])
    """
    stride = feature_stride(size, (valid.shape[-2], valid.shape[-1]))
    invalid = F.max_pool2d((~valid)[:, None].float(), stride, ceil_mode=True)
    return invalid[:, 0] == 0


def weights_of_images(labeled: Sequence[Tensor], rule: ImageWeighting) -> Tensor:
    """Compute the factor on the loss of each image, ``b``, from which images are labeled, ``b`` per task.

    Examples:
        >>> weights_of_images([torch.tensor([True, True]), torch.tensor([True, False])], "per_label")
        tensor([1., 2.])
    """
    num_labels = torch.stack([*labeled]).sum(0)
    num_tasks, ones = torch.full_like(num_labels, len(labeled)), torch.ones_like(num_labels)
    divisor = {"num_tasks": ones, "per_label": num_labels.clamp(min=1), "none": num_tasks}
    return num_tasks / divisor[rule]
