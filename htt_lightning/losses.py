"""Masked losses, one value per image: what is not labelled can neither count nor leak (method.md 3)."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from torch import Tensor

from htt_lightning.output import TaskOutput, feature_stride, upsample_to_image

SUPERVISED, PREDICTION, FEATURE = "supervised", "discovered prediction", "feature"
"""Kinds of terms."""

BIN_LOSS_WEIGHT = 0.1
"""Weight of the bin classification that goes with the L1 loss of a regression task (method.md 3)."""

CONFIDENCE_INV_TEMPERATURE = 5.0
"""Factor on bin logits whose largest probability is the confidence in a discovered value (method.md 4)."""


class Term(NamedTuple):
    """A part of the loss of a batch, image by image; no gradient flows through it.

    Attributes:
        task: The task's name.
        kind: ``supervised``, ``discovered prediction`` or ``feature``.
        loss: One value per image that it is on.
        rows: Positions of these images in the batch; None for all.
    """

    task: str
    kind: str
    loss: Tensor
    rows: Tensor | None = None


def upcast(x: Tensor) -> Tensor:
    """Half precision to float32: sums over pixels and norms need the range; wider types stay as they are."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def einsum_no_autocast(equation: str, *operands: Tensor) -> Tensor:
    """``torch.einsum`` in the operands' own type: autocast would go back to half precision."""
    with torch.autocast(operands[0].device.type, enabled=False):
        return torch.einsum(equation, *operands)


def labeled_sum(loss: Tensor, labeled: Tensor) -> Tensor:
    """Sum of the losses of the labelled images.

    ``torch.where`` keeps an unlabelled image's head in the graph with zero gradient, so distributed training never
    waits for it, and lets no NaN through, which a product with zero would.

    Args:
        loss: One value per image ``b``.
        labeled: bool ``b``.

    Returns:
        A scalar.
    """
    return torch.where(labeled, loss, torch.zeros_like(loss)).sum()


def masked_mean(values: Tensor, valid: Tensor) -> Tensor:
    """Mean over each image's valid pixels, 0 where an image has none.

    Args:
        values: Finite ``b h w``.
        valid: bool ``b h w``.

    Returns:
        ``b``.
    """
    total = reduce(torch.where(valid, values, torch.zeros_like(values)), "b h w -> b", "sum")
    return total / reduce(valid, "b h w -> b", "sum").clamp(min=1)


def cross_entropy(logits: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Cross entropy per pixel, 0 where invalid.

    Args:
        logits: ``b k h w``.
        target: int64 ``b h w``, any value where invalid.
        valid: bool ``b h w``.

    Returns:
        ``b h w``.
    """
    return F.cross_entropy(logits, target.masked_fill(~valid, -100), reduction="none", ignore_index=-100)


def balanced_bce(logits: Tensor, target: Tensor, valid: Tensor, positive: float = 0.95) -> Tensor:
    """Binary cross entropy with fixed class weights (method.md 3, edges).

    The mean over valid pixels of ``w y softplus(-x) + (1 - w) (1 - y) softplus(x)``.

    Args:
        logits: ``b h w``.
        target: ``b h w``, 0 or 1, any value where invalid.
        valid: bool ``b h w``.
        positive: Weight w of the positive class; the negative class has ``1 - w``.

    Returns:
        ``b``.
    """
    truth = target.masked_fill(~valid, 0).to(logits.dtype)
    pixel = positive * truth * F.softplus(-logits) + (1 - positive) * (1 - truth) * F.softplus(logits)
    return masked_mean(pixel, valid)


def l1(pred: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Absolute error summed over channels, mean over each image's valid pixels.

    Args:
        pred: ``b c h w``.
        target: ``b c h w``, may be NaN where invalid: it is replaced before the arithmetic, because a NaN masked
            afterwards may live on in gradients.
        valid: bool ``b h w``.

    Returns:
        ``b``.
    """
    truth = torch.where(valid[:, None], target, torch.zeros_like(target))
    return masked_mean((pred - truth).abs().sum(1), valid)


def bin_confidence(output: TaskOutput, size: tuple[int, int], sharpness: float) -> Tensor:
    """How far one bin stands out from the others: ``b h w`` in [0, 1] (method.md 4).

    Resized bins lie side by side in memory; told so, softmax takes a third of the time on a CPU.
    """
    sharp = upsample_to_image(sharpness * upcast(output.logits), size)
    return rearrange(sharp, "b k h w -> b h w k").softmax(-1).amax(-1)


def feature_mse(student: Tensor, teacher: Tensor, valid: Tensor, weight: Tensor | None = None) -> Tensor:
    """Mean squared difference of features, weighted per cell if there are weights (method.md 4).

    Args:
        student: ``b d h/s w/s``.
        teacher: Likewise.
        valid: bool ``b h w`` of the pixels: a cell that holds padding does not count.
        weight: ``b 1 h/s w/s``, such as the teacher's confidence.

    Returns:
        ``b``.
    """
    squares = (upcast(student) - upcast(teacher)).square().mean(1)
    weighted = squares if weight is None else upcast(weight)[:, 0] * squares
    return masked_mean(weighted, fully_valid_cells(valid, (student.shape[-2], student.shape[-1])))


def fully_valid_cells(valid: Tensor, size: tuple[int, int]) -> Tensor:
    """Cells of a feature map that hold no invalid pixel of their image: bool ``b h/s w/s`` of ``b h w``."""
    stride = feature_stride(size, (valid.shape[-2], valid.shape[-1]))
    invalid = F.max_pool2d((~valid)[:, None].float(), stride, ceil_mode=True)
    return invalid[:, 0] == 0
