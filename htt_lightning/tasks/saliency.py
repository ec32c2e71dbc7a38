"""Saliency detection."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torchmetrics import Metric

from htt_lightning.losses import cross_entropy, masked_mean, upcast
from htt_lightning.metrics import MaxFMeasure
from htt_lightning.output import TaskOutput, upsample_to_image
from htt_lightning.tasks.base import IGNORE_INDEX, Task
from htt_lightning.tasks.colormap import heatmap
from htt_lightning.tasks.pseudo_label import PseudoLabel, argmax_with_confidence


@dataclass(frozen=True, kw_only=True)
class Saliency(Task):
    """Salient pixels: class-balanced cross entropy over two channels and maximum F-measure."""

    name: str = "saliency"
    confidence_threshold: float = 0.7

    num_tokens: ClassVar[int] = 2
    class_names: ClassVar[tuple[str, ...]] = ("background", "salient")
    logits_are_distribution: ClassVar[bool] = True
    primary_metric: ClassVar[str] = "max_f"
    higher_is_better: ClassVar[bool] = True
    metric_unit: ClassVar[str] = "%"
    output_unit: ClassVar[str] = "probability"
    output_range: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def loss(self, output: TaskOutput, target: Tensor) -> Tensor:
        """Compute the class-balanced cross entropy, mean over valid pixels.

        Each image has its own class weights. Salient pixels weigh the share of background among the valid pixels, and
        background pixels the share of salient ones.
        """
        valid = self.valid_mask(target)
        return self._loss(output, target, valid, valid)

    def _loss(self, output: TaskOutput, label: Tensor, counted: Tensor, valid: Tensor) -> Tensor:
        """Compute the class-balanced cross entropy of the counted pixels, mean over the valid ones."""
        logits = upsample_to_image(upcast(output.logits), (label.shape[-2], label.shape[-1]))
        background = masked_mean((label == 0).to(logits.dtype), valid)[:, None, None]
        weight = torch.where(label == 1, background, 1 - background)
        return masked_mean(weight * cross_entropy(logits, label, counted), valid)

    def decode(self, output: TaskOutput, size: tuple[int, int]) -> Tensor:
        """Compute the probability of being salient, float ``b h w`` in [0, 1]."""
        return upsample_to_image(upcast(output.logits), size).softmax(1)[:, 1]

    def pseudo_label(self, output: TaskOutput, size: tuple[int, int]) -> PseudoLabel:
        """Take the more likely channel and its probability."""
        return argmax_with_confidence(output, size)

    def pseudo_label_loss(self, output: TaskOutput, found: PseudoLabel, valid: Tensor) -> Tensor:
        """Compute the class-balanced cross entropy of confident pixels, mean over all valid ones."""
        return self._loss(output, found.label, valid & self.confidence_mask(found.confidence), valid)

    def metrics(self) -> Metric:
        """Make the metric: maximum F-measure in percent, also as published code computes it."""
        return MaxFMeasure()

    def colorize(self, values: Tensor) -> Tensor:
        """Draw a heat map of the probability."""
        return heatmap(values.float().masked_fill(values == IGNORE_INDEX, torch.nan))
