"""Discovering the missing labels: what a student learns from a teacher's features and predictions (method.md 4)."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import MeanMetric

from htt_lightning.data.batch import Batch, unlabeled_indices
from htt_lightning.losses import (
    LossKind,
    LossTerm,
    feature_mse,
    fully_valid_cells,
    masked_mean,
    upcast,
)
from htt_lightning.models.network import DensePredictionNetwork
from htt_lightning.output import TaskOutput, any_selected, feature_stride, scatter_to_batch, select
from htt_lightning.tasks import PseudoLabel, Task


@dataclass(frozen=True)
class DiscoveryLossWeights:
    """Weights of the terms of label discovery; 0 switches a term off.

    In the published recipe all three are 1. The feature terms are off by default, as they have not paid off where the
    truth is known (README, "Do discovered labels help?").

    Args:
        pseudo_label: Of the discovered labels, beside lambda and beta of each task.
        feature_labeled: Of the distance to the teacher's features where the task is labelled.
        feature_unlabeled: Of the distance weighted by the teacher's confidence where it is not.
    """

    pseudo_label: float = 1.0
    feature_labeled: float = 0.0
    feature_unlabeled: float = 0.0

    def uses_pseudo_labels(self, task: Task) -> bool:
        """Whether discovered labels of a task count.

        Args:
            task: The task.
        """
        return task.supports_pseudo_labels and bool(self.pseudo_label and task.pseudo_label_weight)


TargetType = Literal["hard", "soft", "soft_tta"]
"""What a student learns from at prediction level; see ``LabelDiscovery``."""

MAX_VIEW_SHIFT = 2
"""Cells by which the second view of an image is shifted at most, in both directions: views on other grids of the coarse
scales differ, and their mean is better than either."""


class DiscoveryLoss(NamedTuple):
    """What label discovery adds for one task and batch.

    Attributes:
        feature: Of the features, one value per image, ``b``; images without an active term have 0.
        pseudo_label: Of the discovered labels, likewise.
        coverage: Share of the valid pixels whose discovered label is kept, ``b``.
        confidence: Mean confidence over the valid pixels, ``b``.
    """

    feature: Tensor
    prediction: Tensor
    coverage: Tensor
    confidence: Tensor

    @property
    def loss(self) -> Tensor:
        """Both together."""
        return self.feature + self.prediction


def discovery_loss(
    task: Task,
    student: TaskOutput,
    teacher: TaskOutput | None,
    labeled: Tensor,
    valid: Tensor,
    task_weight: float,
    loss_weights: DiscoveryLossWeights,
    pseudo_label: PseudoLabel | None = None,
    soft_target: Tensor | None = None,
) -> DiscoveryLoss:
    """The terms of label discovery of one task (method.md 4), vectorised over the batch.

    Args:
        task: The task; it knows its threshold and its beta.
        student: The student's output.
        teacher: The teacher's on the same images; no gradient flows into it. None leaves out the feature terms.
        labeled: bool ``b``: images with a given label learn nothing from a discovered one.
        valid: bool ``b h w``, False on padding, which never counts.
        task_weight: The task's loss weight lambda.
        loss_weights: Weights of the terms.
        pseudo_label: Labels discovered before; by default they are the teacher's.
        soft_target: Soft labels ``b c h/s w/s`` to learn from instead; they count everywhere, whatever the threshold.

    Returns:
        Loss, coverage and confidence per image.
    """
    feature = nothing = torch.zeros(len(labeled), device=labeled.device)
    if teacher and (loss_weights.feature_labeled or loss_weights.feature_unlabeled):
        trust = torch.where(
            labeled[:, None, None, None],
            loss_weights.feature_labeled,
            loss_weights.feature_unlabeled * upcast(teacher.confidence),
        )
        feature = feature + feature_mse(student.feature, teacher.feature, valid, trust)
    if not loss_weights.uses_pseudo_labels(task):
        return DiscoveryLoss(feature, nothing, nothing, nothing)
    if soft_target is not None:  # of cells, not of pixels
        valid = fully_valid_cells(valid, (soft_target.shape[-2], soft_target.shape[-1]))
        soft_target = task.finalize_soft_target(soft_target, valid)
    if teacher and pseudo_label is None:
        pseudo_label = task.pseudo_label(teacher, (valid.shape[-2], valid.shape[-1]))
    if pseudo_label is None:
        return DiscoveryLoss(feature, nothing, nothing, nothing)
    if soft_target is None:
        kept, on_labels = (
            task.confidence_mask(pseudo_label.confidence),
            task.pseudo_label_loss(student, pseudo_label, valid),
        )
    else:
        kept, on_labels = valid, masked_mean(task.distillation_loss(student, soft_target), valid)
    prediction = loss_weights.pseudo_label * task_weight * task.pseudo_label_weight * torch.where(labeled, 0, on_labels)
    return DiscoveryLoss(
        feature, prediction, masked_mean(kept.float(), valid), masked_mean(pseudo_label.confidence, valid)
    )


def make_mean_metric() -> MeanMetric:
    """Create a metric for the mean of a value per image, over batches and ranks."""
    # Any other `nan_strategy` waits for the GPU at every update; with this one, `MeanMetric` ignores weights.
    metric = MeanMetric(nan_strategy="disable")
    metric.set_dtype(torch.float64)
    return metric


class TeacherEnsemble:
    """Frozen teachers, or labels that they have written into the batches, and the running account of what is kept.

    It is no module: teachers belong neither to the student's weights nor to its checkpoints. Of several, every view of
    an image asks one, drawn at random: they cost no more than a single one, and the student learns their mean.

    Args:
        teachers: Modules that keep the contract of ``TaskOutput``; they are put into evaluation mode and frozen. None
            where batches carry ``discovered`` labels: then there are no features to learn from.
        tasks: The tasks to discover labels of.
        task_weights: Weights lambda by task.
        loss_weights: Weights of the terms.
        device: Where batches are.
        target_type: ``hard`` labels above the threshold, ``soft`` ones, or ``soft_tta``, soft ones averaged over the
            image and its mirror image, shifted at random. Labels that batches carry are hard.
        teacher_precision: What teachers compute in: ``bf16-mixed``, or by default what the student does.

    Attributes:
        scale: What the loss is multiplied by; it may change from epoch to epoch.
        last_loss_terms: What the loss of the last batch was made of, before ``scale``.
    """

    def __init__(
        self,
        teachers: Sequence[nn.Module],
        tasks: Sequence[Task],
        task_weights: Mapping[str, float],
        loss_weights: DiscoveryLossWeights,
        device: torch.device,
        target_type: TargetType = "hard",
        teacher_precision: str | None = None,
    ) -> None:
        self.teachers = [teacher.eval().requires_grad_(False) for teacher in teachers]
        self.tasks, self.task_weights, self.loss_weights = list(tasks), task_weights, loss_weights
        self.target_type, self.teacher_precision, self.scale = target_type, teacher_precision, 1.0
        self.last_loss_terms: list[LossTerm] = []
        names = [
            f"{task.name}/pseudo_label_{key}"
            for task in tasks
            if task.supports_pseudo_labels
            for key in ("coverage", "confidence")
        ]
        self.metrics = {name: make_mean_metric().to(device) for name in names}

    def loss(self, batch: Batch, outputs: Mapping[str, TaskOutput]) -> Tensor:
        """What label discovery adds to the loss of each image: a sum over tasks.

        Args:
            batch: The training batch: ``image``, ``labeled`` and ``valid``, and ``discovered`` labels if it has some.
            outputs: The student's outputs on it, of any module that keeps the contract of ``TaskOutput``.

        Returns:
            One value per image, ``b``.
        """
        valid, found = batch["valid"], batch.get("pseudo_labels", {})
        unlabeled = batch.get("unlabeled_indices") or unlabeled_indices(batch)
        rows = None if self.teachers and self.loss_weights.feature_labeled else unlabeled
        # The same for all images and drawn on the CPU: no synchronisation.
        one, other = torch.randperm(len(self.teachers))[:2].tolist() if len(self.teachers) > 1 else (0, 0)
        taught = self._taught(batch["image"], one, rows)
        unknown = {name: output for name, output in taught.items() if name not in found}
        soft_targets = self._beliefs(batch["image"], unknown, other, rows)
        total, self.last_loss_terms = torch.zeros(len(valid), device=valid.device), []
        for task in self.tasks:
            name, row = task.name, rows[task.name] if rows else None
            if not any_selected(row):
                for key in ("coverage", "confidence") if task.supports_pseudo_labels else ():
                    self.metrics[f"{name}/pseudo_label_{key}"].update(total.new_empty(0))
                continue
            labeled, student = select(batch["labeled"][name], row), TaskOutput(*(select(x, row) for x in outputs[name]))
            known = PseudoLabel(*(select(x, row) for x in found[name])) if name in found else None
            weight, seen, soft_target = self.task_weights[name], select(valid, row), soft_targets.get(name)
            added = discovery_loss(
                task, student, taught.get(name), labeled, seen, weight, self.loss_weights, known, soft_target
            )
            total = total + scatter_to_batch(added.loss, row, len(valid))
            self.last_loss_terms += [
                LossTerm(name, LossKind.FEATURE, added.feature.detach(), row),
                LossTerm(name, LossKind.PSEUDO_LABEL, added.prediction.detach(), row),
            ]
            for key in ("coverage", "confidence") if task.supports_pseudo_labels else ():
                values = getattr(added, key).detach()
                metric = self.metrics[f"{name}/pseudo_label_{key}"]
                metric.update(values[unlabeled[name]] if row is None else values)
        return self.scale * total

    @torch.no_grad()
    def _taught(self, image: Tensor, index: int = 0, rows: Mapping[str, Tensor] | None = None) -> dict[str, TaskOutput]:
        """A teacher's outputs, if there is one; for each task those of the images at ``rows``, if any."""
        if not self.teachers:
            return {}
        teacher, half = self.teachers[index], self.teacher_precision == "bf16-mixed"
        taught: dict[str, TaskOutput]
        with torch.autocast(image.device.type, torch.bfloat16) if half else nullcontext():
            if rows is None:
                taught = teacher(image)
            elif isinstance(teacher, DensePredictionNetwork):
                taught = teacher(image, rows)
            else:
                seen = teacher(image)
                taught = {name: TaskOutput(*(select(x, row) for x in seen[name])) for name, row in rows.items()}
        return taught

    def _mean(self, image: Tensor) -> dict[str, TaskOutput]:
        """The mean of all teachers' outputs."""
        each = [self._taught(image, index) for index in range(len(self.teachers))]
        if len(each) < 2:
            return each[0] if each else {}
        outputs = {name: zip(*(taught[name] for taught in each), strict=True) for name in each[0]}
        return {name: TaskOutput(*(torch.stack(x).mean(0) for x in parts)) for name, parts in outputs.items()}

    @torch.no_grad()
    def _beliefs(
        self,
        image: Tensor,
        taught: Mapping[str, TaskOutput],
        other: int = 0,
        lacking: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Soft labels ``b c h/s w/s`` of tasks that learn from them; ``other`` says which teacher has a second look."""
        tasks = [task for task in self.tasks if self.loss_weights.uses_pseudo_labels(task) and task.name in taught]
        if self.target_type == "hard" or not tasks:
            return {}
        soft_targets = {task.name: task.soft_target(taught[task.name]) for task in tasks}
        if self.target_type == "soft_tta":
            rows, columns = taught[tasks[0].name].logits.shape[-2:]
            stride = feature_stride((rows, columns), (image.shape[-2], image.shape[-1]))
            most = min(MAX_VIEW_SHIFT, rows - 1, columns - 1)
            down, right = torch.randint(-most, most + 1, (2,)).tolist()
            seen = self._taught(flip_and_shift_image(image, stride, down, right), other, lacking)
            inside = shift_map(torch.ones(1, 1, rows, columns, device=image.device, dtype=torch.bool), -down, right)
            for task in tasks:
                second = shift_map(task.unflip(task.soft_target(seen[task.name])), -down, right)
                soft_targets[task.name] = torch.where(
                    inside, (soft_targets[task.name] + second) / 2, soft_targets[task.name]
                )
        return soft_targets

    def pseudo_labels(self, batch: Batch) -> dict[str, PseudoLabel]:
        """The labels discovered on a batch, by task; those that it carries, or else the teachers'.

        Args:
            batch: Any batch; only its ``image`` and, if there, ``discovered`` are looked at.
        """
        taught, size = self._mean(batch["image"]), (batch["image"].shape[-2], batch["image"].shape[-1])
        found = dict(batch.get("pseudo_labels", {}))
        for task in self.tasks:
            labels = task.pseudo_label(taught[task.name], size) if task.name in taught else None
            if labels is not None:
                found.setdefault(task.name, labels)
        return found

    def compute_and_reset(self) -> dict[str, float]:
        """Coverage and confidence by ``task/figure`` since the last time, over all processes."""
        figures = {name: float(metric.compute()) for name, metric in self.metrics.items()}
        for metric in self.metrics.values():
            metric.reset()
        return figures

    def pseudo_label_hits(self, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        """How much of what would be kept is right, on images whose labels are given.

        Args:
            batch: A validation batch.

        Returns:
            By task that discovers labels, the number of right pixels and that of kept ones.
        """
        found, counts = self.pseudo_labels(batch), {}
        for task in self.tasks:
            if task.name in found:
                label, confidence = found[task.name]
                target, labeled = batch[task.name], batch["labeled"][task.name]
                kept = task.valid_mask(target) & task.confidence_mask(confidence) & labeled[:, None, None]
                counts[task.name] = (kept & task.is_correct(label, target)).sum(), kept.sum()
        return counts


def flip_and_shift_image(image: Tensor, stride: int, down: int, right: int) -> Tensor:
    """The mirror image, shifted by whole cells; pixels at the border fill what comes into view.

    Args:
        image: ``b c h w``.
        stride: Size s of a cell in pixels.
        down: Cells.
        right: Cells.

    Returns:
        ``b c h w``, whose size is rounded up to whole cells: otherwise they would lie between those of the image.
    """
    height, width = (-(-size // stride) * stride for size in image.shape[-2:])
    margin = stride * max(abs(down), abs(right))
    bottom, side = height - image.shape[-2] + margin, width - image.shape[-1] + margin
    wide = F.pad(image, (margin, side, margin, bottom), mode="replicate").flip(-1)
    top, left = margin - stride * down, margin - stride * right
    return wide[..., top : top + height, left : left + width]


def shift_map(cells: Tensor, down: int, right: int) -> Tensor:
    """A map ``b c h w`` shifted, with zeros (or False) where nothing is known."""
    return F.pad(cells, (right, -right, down, -down))
