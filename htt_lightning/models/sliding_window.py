"""Sliding-window inference, and decoding at the original image size."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from htt_lightning.losses import upcast
from htt_lightning.models.backbone_sizes import STRIDE
from htt_lightning.output import ImageView, TaskOutput, feature_stride
from htt_lightning.tasks import Task

Network = Callable[[Tensor], Mapping[str, TaskOutput]]

OVERLAP = 4
"""Neighboring windows overlap by at least this fraction of their width: one fourth."""
DECODE_ROWS = 128
"""Number of pixel rows decoded at a time, so that all logits of a large image are never in memory."""
MIN_PROB = 1e-30
"""Smallest probability before the logarithm."""


def predict_at_original_size(
    network: Network, tasks: Sequence[Task], image: Tensor, view: ImageView, tile_size: int | None = None
) -> dict[str, Tensor]:
    """Predict maps at the original size of the images.

    Blended windows and resized images average class and bin probabilities (logits, for a task without a distribution),
    never labels or directions. So the result is a valid class, depth or unit normal.

    Args:
        network: Network from images to outputs by task.
        tasks: Tasks to decode.
        image: Input of the network, ``b 3 h w``.
        view: Location of the images in it.
        tile_size: Width in pixels of the sliding window for larger inputs; None never tiles.
    """
    size = image.shape[-2], image.shape[-1]
    if tile_size is not None and max(size) > tile_size:
        means = _sliding_window(network, tasks, image, tile_size)
        return {task.name: _decode(task, means[task.name], size, view) for task in tasks}
    outputs = network(image)
    if view.resized == view.size:
        return {task.name: _crop(task.decode(outputs[task.name], size), view) for task in tasks}
    return {task.name: _decode(task, _mean(task, outputs[task.name]), size, view) for task in tasks}


def _mean(task: Task, output: TaskOutput) -> Tensor:
    """Return what windows average, ``b k h/s w/s``: probabilities or logits."""
    logits = upcast(output.logits)
    return logits.softmax(1) if task.logits_are_distribution else logits


def _to_output(task: Task, mean: Tensor) -> TaskOutput:
    """Return an output with this mean, the inverse of ``_mean``; tasks decode logits alone."""
    logits = mean.clamp(min=MIN_PROB).log() if task.logits_are_distribution else mean
    return TaskOutput(logits, logits[:, :0], torch.ones_like(logits[:, :1]))


def _crop(maps: Tensor, view: ImageView) -> Tensor:
    """Crop the padding."""
    (top, left), (height, width) = view.offset, view.size
    return maps[..., top : top + height, left : left + width]


def _sliding_window(network: Network, tasks: Sequence[Task], image: Tensor, tile_size: int) -> dict[str, Tensor]:
    """Average windows to means ``b k h/s w/s``; the weight of a window decreases to its border."""
    sums: dict[str, Tensor] = {}
    weights: dict[str, Tensor] = {}
    height, width = image.shape[-2:]
    for top in window_starts(height, tile_size):
        for left in window_starts(width, tile_size):
            window = image[..., top : top + tile_size, left : left + tile_size]
            outputs = network(window)
            for task in tasks:
                mean = _mean(task, outputs[task.name])
                batch, channels, rows, columns = mean.shape
                stride = feature_stride((rows, columns), (window.shape[-2], window.shape[-1]))
                if task.name not in sums:
                    cells = -(-height // stride), -(-width // stride)
                    sums[task.name] = mean.new_zeros(batch, channels, *cells)
                    weights[task.name] = mean.new_zeros(cells)
                weight = _window_weights(rows, mean)[:, None] * _window_weights(columns, mean)
                y, x = top // stride, left // stride
                sums[task.name][..., y : y + rows, x : x + columns] += mean * weight
                weights[task.name][y : y + rows, x : x + columns] += weight
    return {name: total.div_(weights[name]) for name, total in sums.items()}


def window_starts(length: int, tile_size: int) -> list[int]:
    """Return the first pixels of windows that cover an axis, in multiples of the network's stride.

    Examples:
        >>> window_starts(200, 128)
        [0, 96]
    """
    last = max(-(-(length - tile_size) // STRIDE) * STRIDE, 0)
    step = max((tile_size - tile_size // OVERLAP) // STRIDE * STRIDE, STRIDE)
    return [*range(0, last, step), last]


def _window_weights(cells: int, like: Tensor) -> Tensor:
    """Return the weights of a window's cells along an axis: positive, largest in the middle."""
    place = torch.arange(cells, device=like.device, dtype=like.dtype)
    return torch.minimum(place + 1, cells - place) / cells


def _decode(task: Task, mean: Tensor, size: tuple[int, int], view: ImageView) -> Tensor:
    """Decode means ``b k rows columns`` of a network input at the original image size, some rows at a time."""
    cells = mean.shape[-2], mean.shape[-1]
    stride = feature_stride(cells, size)
    if view.resized == view.size:
        starts = range(0, cells[0], DECODE_ROWS // stride)
        return _crop(torch.cat([_decode_rows(task, mean, start, stride, size) for start in starts], -2), view)
    (low, high, fraction), across = (_interp_indices(axis, cells[axis], stride, view, mean) for axis in (0, 1))
    wide = _lerp(mean, -1, *across)
    parts = []
    for start in range(0, view.size[0], DECODE_ROWS):
        rows = slice(start, start + DECODE_ROWS)
        part = _lerp(wide, -2, low[rows], high[rows], fraction[rows])
        parts.append(task.decode(_to_output(task, part), (part.shape[-2], part.shape[-1])))
    return torch.cat(parts, -2)


def _decode_rows(task: Task, mean: Tensor, first: int, stride: int, size: tuple[int, int]) -> Tensor:
    """Decode rows of cells from ``first`` on; interpolation uses their neighbors."""
    last = min(first + DECODE_ROWS // stride, mean.shape[-2])
    above, below = max(first - 1, 0), min(last + 1, mean.shape[-2])
    start, stop = above * stride, min(below * stride, size[0])
    maps = task.decode(_to_output(task, mean[..., above:below, :]), (stop - start, size[1]))
    return maps[..., first * stride - start : min(last * stride, size[0]) - start, :]


def _interp_indices(axis: int, cells: int, stride: int, view: ImageView, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return, per pixel of an axis, the cells on both sides of its center and the fraction of the second."""
    center = (torch.arange(view.size[axis], device=like.device, dtype=torch.float64) + 0.5) * view.resized[axis]
    place = ((center / view.size[axis] + view.offset[axis]) / stride - 0.5).clamp(0, cells - 1)
    low = place.floor().long()
    return low, (low + 1).clamp(max=cells - 1), (place - low).to(like.dtype)


def _lerp(values: Tensor, axis: int, low: Tensor, high: Tensor, fraction: Tensor) -> Tensor:
    """Interpolate linearly along an axis, counted from the end."""
    fraction = fraction.reshape(-1, *[1] * (-1 - axis))
    return torch.lerp(values.index_select(axis, low), values.index_select(axis, high), fraction)
