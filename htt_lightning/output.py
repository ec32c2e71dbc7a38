"""What every network returns for every task, and the way back to pixels."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Output(NamedTuple):
    """One task's raw output, at feature resolution (stride ``s``: 4, or 16 with a single-scale backbone).

    Attributes:
        logits: ``b k h/s w/s``, one channel per class or bin (method.md 2.4).
        feature: ``b d h/s w/s``, the task feature G' that feature-level discovery compares.
        confidence: ``b 1 h/s w/s`` in (0, 1), how far to trust the feature; ones from a baseline.
    """

    logits: Tensor
    feature: Tensor
    confidence: Tensor


def to_pixels(values: Tensor, size: tuple[int, int]) -> Tensor:
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
    stride = stride_of((rows, columns), size)
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


def stride_of(cells: tuple[int, int], size: tuple[int, int]) -> int:
    """Stride of a feature map of ``cells = (rows, columns)`` over an image of ``size = (h, w)``: a power of two."""
    stride = 1
    while stride * cells[0] < size[0] or stride * cells[1] < size[1]:
        stride *= 2
    return stride
