"""Constant predictions as a baseline for the metrics of a run."""

import math
from collections.abc import Iterable
from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from htt_lightning.data.datamodule import PartialLabelDataModule
from htt_lightning.io.progress import track
from htt_lightning.tasks import IGNORE_INDEX, Normals, PixelClassification, Task

GRID = 32
"""Cells per unit length to which vectors are rounded before their median is computed."""
WEISZFELD_STEPS = 50


def constant_baseline_scores(data: PartialLabelDataModule, tasks: list[Task]) -> dict[str, float]:
    """Score the best constant prediction of each task on the validation images.

    The constants are fitted to the training labels of ``data``, set up for ``fit``. All labels are read once. Tasks
    without training labels have no score.
    """
    scored: list[tuple[Task, Tensor, Metric | MetricCollection]] = []
    for task in tasks:
        description = f"Fitting a constant to {task.name}"
        targets = iter(track(data.training_targets(task), description, len(data.train)))
        if (first := next(targets, None)) is not None:
            scored.append((task, best_constant(task, chain([first], targets)), task.metrics()))
    for index in track(range(len(data.val)), "Scoring constants"):
        sample = data.val[index]
        for task, constant, metric in scored:
            target = sample[task.name][None]
            value = constant.view(1, -1, 1, 1) if target.ndim == 4 else constant
            metric.update(value.expand_as(target), target)
    return {task.name: float(metric.compute()[task.primary_metric]) for task, _, metric in scored}


def best_constant(task: Task, targets: Iterable[Tensor]) -> Tensor:
    """Fit the constant with the best primary metric: ``c`` of a field, else a scalar.

    Classes have their most frequent one, fields their median, normals the direction of least mean angle. Binary maps
    have 1: any other constant scores the same or 0. The targets have no batch axis.

    >>> from htt_lightning.tasks import Depth
    >>> best_constant(Depth(), [torch.tensor([[[1.0, 2.0, 9.0, torch.nan]]])])
    tensor([2.])
    """
    if isinstance(task, Normals):
        return _median_direction(targets)
    if task.field_channels is not None:
        return torch.cat([t[:, t.isfinite().all(0)] for t in targets], dim=1).median(dim=1).values
    if isinstance(task, PixelClassification):
        counts = sum((torch.bincount(t[t != IGNORE_INDEX].flatten(), minlength=task.num_tokens) for t in targets), 0)
        return torch.as_tensor(counts).argmax()
    return torch.tensor(1.0)


def _median_direction(targets: Iterable[Tensor]) -> Tensor:
    """Compute the direction of least mean angle with Weiszfeld's algorithm on the sphere."""
    side = 2 * GRID + 1
    counts, place = torch.zeros(side**3), torch.tensor([side * side, side, 1])
    for target in targets:
        vectors = target[:, target.isfinite().all(0)].T.cpu()
        counts += torch.bincount((vectors * GRID + GRID).round().long() @ place, minlength=len(counts))
    cells = counts.nonzero()
    vectors, counts = F.normalize((cells // place % side - GRID).double(), dim=1), counts[cells[:, 0], None].double()
    center = F.normalize((counts * vectors).sum(0), dim=0)
    for _ in range(WEISZFELD_STEPS):
        cosine = (vectors @ center).clamp(-1, 1)[:, None]
        sine, angle = (1 - cosine * cosine).sqrt().clamp(min=1e-3), cosine.acos().clamp(min=1e-3)
        step = (counts * (vectors - cosine * center) / sine).sum(0) / (counts / angle).sum()
        length = step.norm()
        center = F.normalize(center * length.cos() + step * torch.sinc(length / math.pi), dim=0)
    return center.float()
