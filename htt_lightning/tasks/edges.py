"""Edge detection."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric

from htt_lightning.errors import ConfigError
from htt_lightning.losses import balanced_bce, upcast
from htt_lightning.metrics import BoundaryFMeasure
from htt_lightning.output import TaskOutput, upsample_to_image
from htt_lightning.tasks.base import IGNORE_INDEX, Task
from htt_lightning.tasks.colormap import heatmap
from htt_lightning.tasks.pseudo_label import PseudoLabel


@dataclass(frozen=True, kw_only=True)
class Edges(Task):
    """Edges between segments: balanced binary cross entropy and F-measure at the best threshold.

    Args:
        pos_weight: Weight of edge pixels in the loss; the others have ``1 - pos_weight``.
        tolerance: Largest distance of matched pixels relative to the image diagonal: 0.011 for NYUD, 0.0075 for PASCAL.
        num_thresholds: Number of thresholds of the F-measure in validation.
        test_thresholds: Number of thresholds of the F-measure in ``test``, 99 as in papers.
        thin_predictions: Thin predictions to lines of one pixel before they are matched with the labels.
        max_val_images: Largest number of validation images scored during ``fit``, 250 by default. Matching takes a
            tenth of a second or more per image.
        pseudo_label_cutoff: Probability above which a pseudo-label is an edge.
        confidence_rule: Pseudo-labels that count: those ``above`` the confidence threshold, or with
            ``below_as_released`` the others, as in the release.
        **kwargs: Fields of ``Task``.
    """

    name: str = "edges"
    pos_weight: float = 0.95
    tolerance: float = 0.011
    num_thresholds: int = 19
    test_thresholds: int = 99
    thin_predictions: bool = False
    confidence_threshold: float = 0.99
    pseudo_label_weight: float = 0.05
    max_val_images: int | None = 250
    pseudo_label_cutoff: float = 0.99
    confidence_rule: Literal["above", "below_as_released"] = "above"

    training_fields: ClassVar[tuple[str, ...]] = (*Task.training_fields, "pseudo_label_cutoff", "confidence_rule")
    metric_fields: ClassVar[tuple[str, ...]] = (
        *Task.metric_fields, "tolerance", "num_thresholds", "test_thresholds", "thin_predictions",
    )  # fmt: skip
    num_tokens: ClassVar[int] = 1
    class_names: ClassVar[tuple[str, ...]] = ("no edge", "edge")
    primary_metric: ClassVar[str] = "ods_f"
    higher_is_better: ClassVar[bool] = True
    metric_unit: ClassVar[str] = "%"
    output_unit: ClassVar[str] = "probability"
    output_range: ClassVar[tuple[float, float]] = (0.0, 1.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.pseudo_label_cutoff <= 1:
            raise ConfigError(f"pseudo_label_cutoff of {self.name} must be in [0, 1], got {self.pseudo_label_cutoff}.")

    def loss(self, output: TaskOutput, target: Tensor) -> Tensor:
        """Compute the balanced binary cross entropy, mean over valid pixels."""
        logits = upsample_to_image(upcast(output.logits), (target.shape[-2], target.shape[-1]))[:, 0]
        return balanced_bce(logits, target, self.valid_mask(target), self.pos_weight)

    def decode(self, output: TaskOutput, size: tuple[int, int]) -> Tensor:
        """Compute the probability of an edge, float ``b h w`` in [0, 1]."""
        return upsample_to_image(upcast(output.logits), size)[:, 0].sigmoid()

    def pseudo_label(self, output: TaskOutput, size: tuple[int, int]) -> PseudoLabel:
        """Take an edge where its probability exceeds ``pseudo_label_cutoff``, with confidence ``2 |p - 0.5|``."""
        probability = self.decode(output, size)
        return PseudoLabel((probability > self.pseudo_label_cutoff).long(), 2 * (probability - 0.5).abs())

    def confidence_mask(self, confidence: Tensor) -> Tensor:
        """Select the pixels above the threshold, or below it as in the release; never those without confidence."""
        if self.confidence_rule == "above":
            return confidence > self.confidence_threshold
        return (confidence > 0) & (confidence < self.confidence_threshold)

    def pseudo_label_loss(self, output: TaskOutput, found: PseudoLabel, valid: Tensor) -> Tensor:
        """Compute the balanced binary cross entropy, mean over confident pixels."""
        counted = valid & self.confidence_mask(found.confidence)
        return self.loss(output, found.label.masked_fill(~counted, IGNORE_INDEX))

    def soft_target(self, output: TaskOutput) -> Tensor:
        """Compute the probability of an edge, ``b 1 h/s w/s``."""
        return upcast(output.logits).sigmoid()

    def distillation_loss(self, output: TaskOutput, soft_target: Tensor) -> Tensor:
        """Compute the binary cross entropy without class weights, which the teacher's probability reflects already."""
        return F.binary_cross_entropy_with_logits(upcast(output.logits), soft_target, reduction="none")[:, 0]

    def metrics(self) -> Metric:
        """Make the metric: F-measures in percent, at one threshold for all images and at the best of each."""
        return BoundaryFMeasure(self.tolerance, self.num_thresholds, self.thin_predictions)

    def test_metrics(self) -> Metric:
        """Make the metric of ``test``, with ``test_thresholds``."""
        return BoundaryFMeasure(self.tolerance, self.test_thresholds, self.thin_predictions)

    def colorize(self, values: Tensor) -> Tensor:
        """Draw a heat map of the probability."""
        return heatmap(values.float().masked_fill(values == IGNORE_INDEX, torch.nan))
