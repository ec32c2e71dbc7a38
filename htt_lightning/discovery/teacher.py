"""Frozen teachers that turn a batch into pseudo-labels, and these into a loss for the student."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Literal

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric

from htt_lightning.data.batch import Batch, label_weights, unlabeled_indices
from htt_lightning.discovery.loss import DiscoveryLoss, DiscoveryLossWeights, discovery_loss, soft_targets
from htt_lightning.losses import LossKind, LossTerm
from htt_lightning.models.network import DensePredictionNetwork
from htt_lightning.output import TaskOutput, any_selected, scatter_to_batch, select
from htt_lightning.tasks import PseudoLabel, Task

TargetType = Literal["hard", "soft", "soft_tta"]
TeacherPrecision = Literal["bf16-mixed"] | None


def make_mean_metric() -> MeanMetric:
    """Create a metric for the mean of one value per image, over batches and ranks."""
    # Any other `nan_strategy` waits for the GPU at every update. With this one, `MeanMetric` ignores weights.
    metric = MeanMetric(nan_strategy="disable")
    metric.set_dtype(torch.float64)
    return metric


class TeacherEnsemble:
    """Frozen teachers, or pseudo-labels stored in the batches, and the loss of a student that learns from them.

    It is not a module: teachers belong neither to the student's weights nor to its optimizer. Each view of an image is
    seen by one teacher, drawn at random, so several teachers cost no more than one and the student learns their mean.

    Args:
        teachers: Networks that return a ``TaskOutput`` per task. They are frozen, in evaluation mode. Empty if batches
            carry pseudo-labels; feature losses are then off.
        tasks: Tasks to learn.
        task_weights: Weight lambda of each task's loss, by name.
        loss_weights: Weights of the losses.
        device: Device of the batches.
        target_type: ``hard`` for pseudo-labels above the confidence threshold; ``soft`` for soft targets; ``soft_tta``
            for soft targets averaged over the image and its mirror image, shifted at random. Pseudo-labels in the
            batches are always hard.
        teacher_precision: ``bf16-mixed`` to run the teachers in bfloat16, by default the precision of the run.

    Attributes:
        scale: Factor on the loss, which may change from epoch to epoch.
        metrics: Running means of coverage and confidence, by task.
        last_loss_terms: Terms of the last batch's loss, without ``scale``.
    """

    def __init__(
        self,
        teachers: Sequence[nn.Module],
        tasks: Sequence[Task],
        task_weights: Mapping[str, float | Tensor],
        loss_weights: DiscoveryLossWeights,
        device: torch.device,
        target_type: TargetType = "hard",
        teacher_precision: TeacherPrecision = None,
    ) -> None:
        self.teachers = [teacher.eval().requires_grad_(False) for teacher in teachers]
        self.tasks, self.task_weights, self.loss_weights = list(tasks), task_weights, loss_weights
        self.target_type, self.teacher_precision, self.scale = target_type, teacher_precision, 1.0
        self.last_loss_terms: list[LossTerm] = []
        names = [task.name for task in tasks if task.supports_pseudo_labels]
        keys = [f"{name}/pseudo_label_{key}" for name in names for key in ("coverage", "confidence")]
        self.metrics = {key: make_mean_metric().to(device) for key in keys}

    def loss(self, batch: Batch, outputs: Mapping[str, TaskOutput]) -> Tensor:
        """Compute the loss of label discovery, summed over tasks.

        Args:
            batch: Training batch with ``image``, ``labeled``, ``valid`` and perhaps ``pseudo_labels``.
            outputs: Output of the student on the images, by task.

        Returns:
            One value per image, ``b``.
        """
        image, stored = batch["image"], batch.get("pseudo_labels", {})
        unlabeled: Mapping[str, Tensor] = unlabeled_indices(batch)
        # Without the feature loss on labeled images, the teacher sees the unlabeled ones alone.
        indices = None if self.teachers and self.loss_weights.feature_labeled else unlabeled
        # Drawn on the CPU, and the same for all images: nothing waits for the GPU.
        first, second = torch.randperm(len(self.teachers))[:2].tolist() if len(self.teachers) > 1 else (0, 0)
        teacher_outputs = self._teacher_outputs(image, first, indices)
        targets = {}
        if self.target_type != "hard":
            tasks = [task for task in self.tasks if task.name in teacher_outputs and task.name not in stored]
            tasks = [task for task in tasks if self.loss_weights.uses_pseudo_labels(task)]
            view = None if self.target_type == "soft" else lambda image: self._teacher_outputs(image, second, indices)
            targets = soft_targets(tasks, teacher_outputs, image, view)
        total, self.last_loss_terms = torch.zeros(len(image), device=image.device), []
        for task in self.tasks:
            name, selected = task.name, indices[task.name] if indices else None
            added = DiscoveryLoss(*[torch.zeros(0, device=image.device)] * 4)
            if any_selected(selected):
                added = discovery_loss(
                    task,
                    TaskOutput(*(select(x, selected) for x in outputs[name])),
                    teacher_outputs.get(name),
                    select(batch["labeled"][name], selected),
                    select(batch["valid"], selected),
                    self.task_weights[name] * select(label_weights(batch, name), selected),
                    self.loss_weights,
                    PseudoLabel(*(select(x, selected) for x in stored[name])) if name in stored else None,
                    targets.get(name),
                )
            total = total + scatter_to_batch(added.loss, selected, len(image))
            self.last_loss_terms += [
                LossTerm(name, LossKind.FEATURE, added.feature.detach(), selected),
                LossTerm(name, LossKind.PSEUDO_LABEL, added.prediction.detach(), selected),
            ]
            for key in ("coverage", "confidence") if task.supports_pseudo_labels else ():
                values = getattr(added, key).detach()
                self.metrics[f"{name}/pseudo_label_{key}"].update(values if indices else values[unlabeled[name]])
        return self.scale * total

    @torch.no_grad()
    def _teacher_outputs(
        self, image: Tensor, index: int = 0, indices: Mapping[str, Tensor] | None = None
    ) -> dict[str, TaskOutput]:
        """Run one teacher, for each task on the images at ``indices``; return nothing without teachers."""
        if not self.teachers:
            return {}
        teacher = self.teachers[index]
        arguments = [indices] if indices is not None and isinstance(teacher, DensePredictionNetwork) else []
        half = self.teacher_precision == "bf16-mixed"
        with torch.autocast(image.device.type, torch.bfloat16) if half else nullcontext():
            outputs: dict[str, TaskOutput] = teacher(image, *arguments)
        if indices is None or arguments:
            return outputs
        return {name: TaskOutput(*(x[chosen] for x in outputs[name])) for name, chosen in indices.items()}

    def _mean_outputs(self, image: Tensor) -> dict[str, TaskOutput]:
        """Return the mean of all teachers' outputs."""
        each = [self._teacher_outputs(image, index) for index in range(len(self.teachers))]
        outputs = {name: zip(*(one[name] for one in each), strict=True) for name in each[0]} if each else {}
        return {name: TaskOutput(*(torch.stack(x).mean(0) for x in parts)) for name, parts in outputs.items()}

    def pseudo_labels(self, batch: Batch) -> dict[str, PseudoLabel]:
        """Return the pseudo-labels of a batch by task: those that it carries, else those of all teachers' mean."""
        outputs, size = self._mean_outputs(batch["image"]), (batch["image"].shape[-2], batch["image"].shape[-1])
        labels = {task.name: task.pseudo_label(outputs[task.name], size) for task in self.tasks if task.name in outputs}
        labels |= batch.get("pseudo_labels", {})
        return {name: label for name, label in labels.items() if label is not None}

    def pseudo_label_hits(self, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        """Count, by task, the correct pixels of the pseudo-labels and all pixels above the confidence threshold."""
        labels, hits = self.pseudo_labels(batch), {}
        for task in self.tasks:
            if task.name in labels:
                label, confidence = labels[task.name]
                target, labeled = batch[task.name], batch["labeled"][task.name]
                counted = task.valid_mask(target) & task.confidence_mask(confidence) & labeled[:, None, None]
                hits[task.name] = (counted & task.is_correct(label, target)).sum(), counted.sum()
        return hits

    def compute_and_reset(self) -> dict[str, float]:
        """Return coverage and confidence since the last call, over all ranks, by ``task/metric``."""
        values = {key: float(metric.compute()) for key, metric in self.metrics.items()}
        for metric in self.metrics.values():
            metric.reset()
        return values
