"""What every network returns for every task, and the way back to pixels."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from htt_lightning.errors import HTTError


class TaskOutput(NamedTuple):
    """One task's raw output, at feature resolution (stride ``s``: 4, or 16 with a single-scale backbone).

    This is all that the rest of the library asks of a network: a module that takes RGB in [0, 1], ``b 3 h w``, and
    returns a dict with an ``TaskOutput`` per task may be trained, taught and a teacher. Its stride is a power of two, one
    for all tasks, and sizes are rounded up: ``ceil(h/s) ceil(w/s)``.

    Attributes:
        logits: ``b k h/s w/s``, one channel per class or bin (method.md 2.4): ``k = task.num_tokens``.
        feature: ``b d h/s w/s``, the task feature G' that feature-level discovery compares.
        confidence: ``b 1 h/s w/s`` in (0, 1), how far to trust the feature; ones from a network that does not say.
    """

    logits: Tensor
    feature: Tensor
    confidence: Tensor


BatchIndices = Sequence[Tensor | None]
"""For each task, positions of the images in a batch that it is asked about; None for all."""


def picked(x: Tensor, rows: Tensor | None) -> Tensor:
    """Some images of a batch ``b ...``; where ``rows`` is None, the very tensor."""
    return x if rows is None else x[rows]


def spread(values: Tensor, rows: Tensor | None, images: int) -> Tensor:
    """One value per picked image as one per image of the batch, ``b``: 0 for those that were not picked."""
    return values if rows is None else values.new_zeros(images).index_add(0, rows, values)


def asked(rows: Tensor | None) -> bool:
    """Whether ``rows`` are any."""
    return rows is None or len(rows) > 0


def upsample_to_image(values: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize a map from feature resolution to its image.

    A network rounds an odd image up to whole cells of its stride, so the map is enlarged by that stride and cut, never
    squeezed into ``size``. Strides are powers of two, hence the stride is the next one above ``h / rows``.

    Args:
        values: ``b c ceil(h/s) ceil(w/s)``.
        size: Image height and width in pixels.

    Returns:
        ``b c h w``, bilinear with half-pixel centres (method.md 1).
    """
    (rows, columns), (height, width) = values.shape[-2:], size
    stride = feature_stride((rows, columns), size)
    return resize(values, (rows * stride, columns * stride))[..., :height, :width]


def resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """Bilinear resizing with half-pixel centres; the map itself where it has that size.

    Channels that lie side by side in memory are interpolated several times faster on a CPU.
    """
    if x.shape[-2:] == torch.Size(size):
        return x
    if not torch.compiler.is_compiling():  # a compiler lays memory out itself, and export wants no branches on strides
        x = x.contiguous(memory_format=torch.channels_last)
    return F.interpolate(x, size=(size[0], size[1]), mode="bilinear", align_corners=False)


def feature_stride(cells: tuple[int, int], size: tuple[int, int]) -> int:
    """Stride of a feature map over its image: a power of two.

    Args:
        cells: Rows and columns of the map.
        size: Height and width of the image.

    Raises:
        HTTError: With no such stride the map has as many cells.
    """
    stride = 1
    while stride * cells[0] < size[0] or stride * cells[1] < size[1]:
        stride *= 2
    if torch.compiler.is_compiling():  # where sizes are symbols, and a comparison would be a condition on them
        return stride
    if tuple(-(-length // stride) for length in size) != tuple(cells):
        raise HTTError(
            f"A map of {cells[0]}x{cells[1]} cells does not fit an image of {size[0]}x{size[1]} pixels: a network's "
            "stride must be a power of two, and sizes rounded up; resize what it returns."
        )
    return stride
