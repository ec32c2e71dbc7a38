"""Network outputs, and the way from feature resolution back to pixels."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from htt_lightning.errors import ConfigError


class TaskOutput(NamedTuple):
    """Hold one task's raw output at feature resolution.

    Any module from RGB images in [0, 1] (``b 3 h w``) to a dict of ``TaskOutput`` can be trained, as teacher or
    student. All tasks share one stride ``s``, a power of two. Sizes are rounded up: ``ceil(h/s) ceil(w/s)``.

    Attributes:
        logits: ``b k h/s w/s``, one channel per class or bin: ``k = task.num_tokens``.
        feature: ``b d h/s w/s``, the task feature that feature losses compare.
        confidence: ``b 1 h/s w/s`` in (0, 1), the reliability of the feature; ones if the network has no estimate.
    """

    logits: Tensor
    feature: Tensor
    confidence: Tensor


class ImageView(NamedTuple):
    """Locate an image inside the input of the network.

    Attributes:
        size: Original height and width in pixels.
        resized: Height and width in pixels after resizing.
        offset: Rows and columns of padding above and to the left of the resized image.
    """

    size: tuple[int, int]
    resized: tuple[int, int]
    offset: tuple[int, int]


BatchIndices = Sequence[Tensor | None]
"""Per task, the indices of the selected images of a batch; None selects all."""


def select(x: Tensor, indices: Tensor | None) -> Tensor:
    """Select images of a batch ``b ...``; None selects all.

    Examples:
        >>> select(torch.tensor([5.0, 6.0, 7.0]), torch.tensor([2, 0]))
        tensor([7., 5.])
    """
    return x if indices is None else x[indices]


def scatter_to_batch(values: Tensor, indices: Tensor | None, batch_size: int) -> Tensor:
    """Scatter one value per selected image to all images of the batch, ``b``; the others get 0.

    Examples:
        >>> scatter_to_batch(torch.tensor([7.0, 5.0]), torch.tensor([2, 0]), 3)
        tensor([5., 0., 7.])
    """
    return values if indices is None else values.new_zeros(batch_size).index_add(0, indices, values)


def any_selected(indices: Tensor | None) -> bool:
    """Return whether at least one image is selected."""
    return indices is None or len(indices) > 0


def upsample_to_image(values: Tensor, size: tuple[int, int]) -> Tensor:
    """Upsample a map bilinearly to its image: ``b c ceil(h/s) ceil(w/s) -> b c h w``.

    A network rounds the image size up to whole cells. The map is enlarged by the stride and cropped, never squeezed.

    Examples:
        >>> upsample_to_image(torch.zeros(1, 2, 8, 9), (30, 33)).shape
        torch.Size([1, 2, 30, 33])
    """
    rows, columns = values.shape[-2:]
    stride = feature_stride((rows, columns), size)
    return resize_bilinear(values, (rows * stride, columns * stride))[..., : size[0], : size[1]]


def resize_bilinear(x: Tensor, size: Sequence[int]) -> Tensor:
    """Resize ``b c h w`` bilinearly with half-pixel centers; return ``x`` itself if it has that size."""
    if x.shape[-2:] == torch.Size(size):
        return x
    # Channels-last interpolation is several times faster on a CPU. Compilers choose their own layout, and an exported
    # program must not branch on strides.
    if not torch.compiler.is_compiling():
        x = x.contiguous(memory_format=torch.channels_last)
    return F.interpolate(x, size=(size[0], size[1]), mode="bilinear", align_corners=False)


def feature_stride(cells: tuple[int, int], size: tuple[int, int]) -> int:
    """Return the stride, a power of two, of a feature map of ``cells`` over an image of ``size`` pixels.

    Examples:
        >>> feature_stride((8, 9), (30, 33))
        4
    """
    stride = 1
    while stride * cells[0] < size[0] or stride * cells[1] < size[1]:
        stride *= 2
    if torch.compiler.is_compiling():  # sizes are symbols: comparing them would add a guard
        return stride
    if tuple(-(-length // stride) for length in size) != tuple(cells):
        raise ConfigError(
            f"The stride of a network must be a power of two, with sizes rounded up, got {cells[0]}x{cells[1]} cells "
            f"for an image of {size[0]}x{size[1]} pixels. Resize the network's outputs."
        )
    return stride
