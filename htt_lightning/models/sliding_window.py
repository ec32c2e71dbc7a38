"""From what a network sees of an image to maps of the size of the image."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from htt_lightning.losses import upcast
from htt_lightning.models.network import STRIDE
from htt_lightning.output import ImageView, TaskOutput, feature_stride
from htt_lightning.tasks import Task

Network = Callable[[Tensor], Mapping[str, TaskOutput]]

OVERLAP = 4
"""Neighbouring windows share at least the fourth part of their width."""

DECODE_ROWS = 128
"""Rows of pixels that are decoded at a time, so that a large image never has all its logits in memory."""

MIN_PROB = 1e-30
"""Least probability, whose logarithm is finite."""


def predict_at_original_size(
    network: Network, tasks: Sequence[Task], image: Tensor, view: ImageView, tile: int | None = None
) -> dict[str, Tensor]:
    """Decoded maps at the own size of the images.

    Where windows are blended, or images were resized, class and bin probabilities are what is averaged (logits, if a
    task has no distribution), never labels or directions; what is decoded is a class, a depth, a unit normal again.

    Args:
        network: Images to outputs by task.
        tasks: The tasks to decode.
        image: What the network is to see, ``b 3 h w``.
        view: Where the images lie in it.
        tile: Width of the sliding window for images that are larger.

    Returns:
        By task as ``Task.decode``, at ``view.size``.
    """
    seen = image.shape[-2], image.shape[-1]
    slides = tile is not None and max(seen) > tile
    if not slides and view.resized == view.size:
        outputs, (top, left), (height, width) = network(image), view.offset, view.size
        maps = {task.name: task.decode(outputs[task.name], seen) for task in tasks}
        return {name: values[..., top : top + height, left : left + width] for name, values in maps.items()}
    if slides and tile is not None:
        means = _sliding_window(network, tasks, image, tile)
    else:
        outputs = network(image)
        means = {task.name: _mean(task, outputs[task.name]) for task in tasks}
    return {task.name: _decode(task, means[task.name], seen, view) for task in tasks}


def _mean(task: Task, output: TaskOutput) -> Tensor:
    """What can be averaged: probabilities or logits ``b k h/s w/s``."""
    logits = upcast(output.logits)
    return logits.softmax(1) if task.logits_are_distribution else logits


def _sliding_window(network: Network, tasks: Sequence[Task], image: Tensor, tile: int) -> dict[str, Tensor]:
    """Means ``b k h/s w/s`` over the windows that see a cell; a window's weight falls off to its border."""
    sums: dict[str, Tensor] = {}
    weights: dict[str, Tensor] = {}
    height, width = image.shape[-2:]
    for top in window_starts(height, tile):
        for left in window_starts(width, tile):
            window = image[..., top : top + tile, left : left + tile]
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
                place = slice(top // stride, top // stride + rows), slice(left // stride, left // stride + columns)
                sums[task.name][..., place[0], place[1]] += mean * weight
                weights[task.name][place] += weight
    return {name: total.div_(weights[name]) for name, total in sums.items()}


def window_starts(length: int, tile: int) -> list[int]:
    """First pixels of windows that cover ``length`` pixels: on the network's grid, which cells of windows share."""
    last = max(-(-(length - tile) // STRIDE) * STRIDE, 0)
    step = max((tile - tile // OVERLAP) // STRIDE * STRIDE, STRIDE)
    return [*range(0, last, step), last]


def _window_weights(cells: int, like: Tensor) -> Tensor:
    """Weights of the cells of a window along one axis: positive, largest in the middle."""
    place = torch.arange(cells, device=like.device, dtype=like.dtype)
    return torch.minimum(place + 1, cells - place) / cells


def _decode(task: Task, mean: Tensor, seen: tuple[int, int], view: ImageView) -> Tensor:
    """Decode means ``b k rows columns`` of what the network has seen at the image's own size, some rows at a time."""
    cells = mean.shape[-2], mean.shape[-1]
    stride = feature_stride(cells, seen)
    if view.resized == view.size:
        maps = torch.cat(
            [_decode_rows(task, mean, first, stride, seen) for first in range(0, cells[0], DECODE_ROWS // stride)], -2
        )
        (top, left), (height, width) = view.offset, view.size
        return maps[..., top : top + height, left : left + width]
    (low, high, share), across = (_interp_indices(axis, cells[axis], stride, view, mean) for axis in (0, 1))
    wide = _lerp(mean, -1, *across)
    parts = []
    for rows in (slice(start, start + DECODE_ROWS) for start in range(0, view.size[0], DECODE_ROWS)):
        part = _lerp(wide, -2, low[rows], high[rows], share[rows])
        parts.append(task.decode(_output(task, part), (part.shape[-2], part.shape[-1])))
    return torch.cat(parts, -2)


def _decode_rows(task: Task, mean: Tensor, first: int, stride: int, seen: tuple[int, int]) -> Tensor:
    """What the task makes of some rows of cells, from ``first`` on; the rows around them are interpolated with."""
    last = min(first + DECODE_ROWS // stride, mean.shape[-2])
    above, below = max(first - 1, 0), min(last + 1, mean.shape[-2])
    start, stop = above * stride, min(below * stride, seen[0])
    maps = task.decode(_output(task, mean[..., above:below, :]), (stop - start, seen[1]))
    return maps[..., first * stride - start : min(last * stride, seen[0]) - start, :]


def _output(task: Task, mean: Tensor) -> TaskOutput:
    """An output whose logits have this mean, the opposite of ``_mean``; tasks decode logits alone."""
    logits = mean.clamp(min=MIN_PROB).log() if task.logits_are_distribution else mean
    return TaskOutput(logits, logits[:, :0], torch.ones_like(logits[:, :1]))


def _interp_indices(axis: int, cells: int, stride: int, view: ImageView, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For every pixel along an axis the cells on both sides of its centre, and the share of the second one."""
    centre = (torch.arange(view.size[axis], device=like.device, dtype=torch.float64) + 0.5) * view.resized[axis]
    place = ((centre / view.size[axis] + view.offset[axis]) / stride - 0.5).clamp(0, cells - 1)
    low = place.floor().long()
    return low, (low + 1).clamp(max=cells - 1), (place - low).to(like.dtype)


def _lerp(values: Tensor, axis: int, low: Tensor, high: Tensor, share: Tensor) -> Tensor:
    """Linear interpolation along one axis, counted from the end."""
    share = share.reshape(-1, *[1] * (-1 - axis))
    return torch.lerp(values.index_select(axis, low), values.index_select(axis, high), share)
