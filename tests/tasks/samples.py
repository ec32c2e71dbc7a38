"""Random outputs and targets of every task, and a plain numpy resize to check resizing against."""

import math

import numpy as np
import torch
from torch import Tensor

from htt_lightning.output import TaskOutput
from htt_lightning.tasks import (
    IGNORE_INDEX,
    Depth,
    Edges,
    HumanParts,
    Normals,
    PixelClassification,
    Saliency,
    SemSeg,
    Task,
)

TASKS: tuple[Task, ...] = (
    SemSeg(classes=("floor", "wall", "bed", "lamp", "box")),
    HumanParts(),
    Saliency(),
    Edges(),
    Depth(),
    Normals(),
)


def output_of(logits: Tensor) -> TaskOutput:
    """Return an output as networks do; supervised losses ignore the other two fields."""
    return TaskOutput(logits, logits.new_zeros(logits.shape[0], 1, *logits.shape[2:]), torch.ones_like(logits[:, :1]))


def random_logits(task: Task, b: int = 3, h: int = 6, w: int = 7, seed: int = 0, stride: int = 1) -> Tensor:
    """Float32 ``b k ceil(h/stride) ceil(w/stride)``."""
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(b, task.num_tokens, math.ceil(h / stride), math.ceil(w / stride), generator=generator)


def random_target(task: Task, b: int = 3, h: int = 6, w: int = 7, seed: int = 0, missing: float = 0.3) -> Tensor:
    """A batch of targets, in which about this share of the pixels is missing."""
    generator = torch.Generator().manual_seed(1000 + seed)
    gone = torch.rand(b, h, w, generator=generator) < missing
    if task.field_channels is None:
        classes = task.num_tokens if isinstance(task, PixelClassification) else 2
        return torch.randint(classes, (b, h, w), generator=generator).masked_fill(gone, IGNORE_INDEX)
    if isinstance(task, Depth):
        field = task.min_depth + (task.max_depth - task.min_depth) * torch.rand(b, 1, h, w, generator=generator)
    else:
        field = torch.nn.functional.normalize(torch.randn(b, 3, h, w, generator=generator), dim=1)
    return field.masked_fill(gone[:, None], torch.nan)


def lose(task: Task, target: Tensor, where: Tensor | slice = slice(None)) -> Tensor:
    """A copy of a target that is missing at ``where``: an index into ``b``, or a mask ``b h w``."""
    target = target.clone()
    if isinstance(where, Tensor) and where.ndim == 3 and task.field_channels is not None:
        where = where[:, None].expand_as(target)
    target[where] = IGNORE_INDEX if task.field_channels is None else torch.nan
    return target


def is_missing(task: Task, target: Tensor) -> Tensor:
    """Missing pixels, bool ``b h w``."""
    return target == IGNORE_INDEX if task.field_channels is None else target.isnan().any(1)


def enlarge(values: np.ndarray, stride: int, height: int, width: int) -> np.ndarray:
    """Bilinear with half-pixel centres, ``c rows columns`` to ``c height width``, one pixel at a time."""
    channels, rows, columns = values.shape
    result = np.empty((channels, height, width))
    for y in range(height):
        v = min(max((y + 0.5) / stride - 0.5, 0), rows - 1)
        top, bottom = math.floor(v), min(math.floor(v) + 1, rows - 1)
        for x in range(width):
            u = min(max((x + 0.5) / stride - 0.5, 0), columns - 1)
            left, right = math.floor(u), min(math.floor(u) + 1, columns - 1)
            above = (left + 1 - u) * values[:, top, left] + (u - left) * values[:, top, right]
            below = (left + 1 - u) * values[:, bottom, left] + (u - left) * values[:, bottom, right]
            result[:, y, x] = (top + 1 - v) * above + (v - top) * below
    return result
