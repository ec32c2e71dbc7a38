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
    """What draws the eye: class-balanced cross entropy over two channels, maximum F measure."""

    name: str = "saliency"
    confidence_threshold: float = 0.7

    logits_are_distribution: ClassVar[bool] = True
    primary_metric: ClassVar[str] = "max_f"
    higher_is_better: ClassVar[bool] = True
    metric_unit: ClassVar[str] = "%"

    @property
    def num_tokens(self) -> int:
        """Background and salient."""
        return 2

    @property
    def class_names(self) -> tuple[str, ...]:
        """What 0 and 1 mean."""
        return "background", "salient"

    @property
    def output_range(self) -> tuple[float, float]:
        """A probability."""
        return 0.0, 1.0

    def loss(self, output: TaskOutput, target: Tensor) -> Tensor:
        """Cross entropy weighted by the image's own label frequencies, mean over valid pixels (method.md 3).

        Salient pixels weigh the share of background among the valid pixels, and the other way round.
        """
        valid = self.valid_mask(target)
        return self._balanced(output, target, valid, valid)

    def _balanced(self, output: TaskOutput, target: Tensor, valid: Tensor, kept: Tensor) -> Tensor:
        logits = upsample_to_image(upcast(output.logits), (target.shape[-2], target.shape[-1]))
        background = masked_mean((target == 0).to(logits.dtype), valid)[:, None, None]
        weight = torch.where(target == 1, background, 1 - background)
        return masked_mean(weight * cross_entropy(logits, target, kept), valid)

    def decode(self, output: TaskOutput, size: tuple[int, int]) -> Tensor:
        """Probability of being salient, float ``b h w`` in [0, 1]."""
        return upsample_to_image(upcast(output.logits), size).softmax(1)[:, 1]

    def pseudo_label(self, output: TaskOutput, size: tuple[int, int]) -> PseudoLabel:
        """The likelier channel and its probability; the public release truncates a probability (protocol.md 6.7)."""
        return argmax_with_confidence(output, size)

    def pseudo_label_loss(self, output: TaskOutput, found: PseudoLabel, valid: Tensor) -> Tensor:
        """Class-balanced cross entropy of the kept pixels, mean over all valid ones."""
        return self._balanced(output, found.label, valid, valid & self.confidence_mask(found.confidence))

    def metrics(self) -> Metric:
        """Maximum F measure in percent, and what published code makes of it."""
        return MaxFMeasure()

    def colorize(self, values: Tensor) -> Tensor:
        """A heat map of the probability."""
        return heatmap(values.float().masked_fill(values == IGNORE_INDEX, torch.nan))
