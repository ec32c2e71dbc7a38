"""Edge detection."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric

from htt_lightning.errors import HTTError
from htt_lightning.losses import balanced_bce, upcast
from htt_lightning.metrics import BoundaryFMeasure
from htt_lightning.output import TaskOutput, upsample_to_image
from htt_lightning.tasks.base import IGNORE_INDEX, Task
from htt_lightning.tasks.colormap import heatmap
from htt_lightning.tasks.pseudo_label import PseudoLabel


@dataclass(frozen=True, kw_only=True)
class Edges(Task):
    """Borders between segments: balanced binary cross entropy, F measure at the best threshold.

    Args:
        pos_weight: Weight of edge pixels in the loss; the others have ``1 - pos_weight``.
        tolerance: Largest distance of matched pixels as a share of the image diagonal (protocol.md 5: NYUD 0.011,
            PASCAL 0.0075).
        num_thresholds: Number of thresholds swept for the F measure in validation.
        test_thresholds: Their number in ``test``, as papers have it.
        thin_predictions: Thin predictions to lines of one pixel before they are compared with the labels.
        max_val_images: See ``Task``; matching borders takes a tenth of a second or more per image.
        pseudo_label_cutoff: Probability above which a discovered pixel is an edge.
        confidence_rule: Pseudo-labels that count: those ``above`` the threshold, or the others as in the public release
            (protocol.md 6.6).
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
        *Task.metric_fields,
        "tolerance",
        "num_thresholds",
        "test_thresholds",
        "thin_predictions",
    )

    primary_metric: ClassVar[str] = "ods_f"
    higher_is_better: ClassVar[bool] = True
    metric_unit: ClassVar[str] = "%"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.pseudo_label_cutoff <= 1:
            raise HTTError(f"Edges needs pseudo_label_cutoff in [0, 1], not {self.pseudo_label_cutoff}.")

    @property
    def num_tokens(self) -> int:
        """One logit."""
        return 1

    @property
    def class_names(self) -> tuple[str, ...]:
        """What 0 and 1 mean."""
        return "no edge", "edge"

    @property
    def output_range(self) -> tuple[float, float]:
        """A probability."""
        return 0.0, 1.0

    def loss(self, output: TaskOutput, target: Tensor) -> Tensor:
        """Balanced binary cross entropy, mean over valid pixels; target int64 ``b h w``, 255 missing."""
        logits = upsample_to_image(upcast(output.logits), (target.shape[-2], target.shape[-1]))
        return balanced_bce(logits[:, 0], target, self.valid_mask(target), self.pos_weight)

    def decode(self, output: TaskOutput, size: tuple[int, int]) -> Tensor:
        """Probability of an edge, float ``b h w`` in [0, 1]."""
        return upsample_to_image(upcast(output.logits), size)[:, 0].sigmoid()

    def pseudo_label(self, output: TaskOutput, size: tuple[int, int]) -> PseudoLabel:
        """An edge where the probability exceeds ``pseudo_label_cutoff``; confidence ``2 |p - 0.5|``."""
        probability = self.decode(output, size)
        return PseudoLabel((probability > self.pseudo_label_cutoff).long(), 2 * (probability - 0.5).abs())

    def confidence_mask(self, confidence: Tensor) -> Tensor:
        """Above the threshold, or below it as in the public release."""
        return (
            confidence > self.confidence_threshold
            if self.confidence_rule == "above"
            else confidence < self.confidence_threshold
        )

    def pseudo_label_loss(self, output: TaskOutput, found: PseudoLabel, valid: Tensor) -> Tensor:
        """Balanced binary cross entropy, mean over the kept pixels."""
        logits = upsample_to_image(upcast(output.logits), (valid.shape[-2], valid.shape[-1]))[:, 0]
        return balanced_bce(logits, found.label, valid & self.confidence_mask(found.confidence), self.pos_weight)

    def soft_target(self, output: TaskOutput) -> Tensor:
        """Probability of an edge, ``b 1 h/s w/s``."""
        return upcast(output.logits).sigmoid()

    def distillation_loss(self, output: TaskOutput, soft_target: Tensor) -> Tensor:
        """Binary cross entropy without class weights: the teacher's probability has come from balanced ones."""
        return F.binary_cross_entropy_with_logits(upcast(output.logits), soft_target, reduction="none")[:, 0]

    def metrics(self) -> Metric:
        """F measures in percent: one threshold for the data set, one per image."""
        return BoundaryFMeasure(self.tolerance, self.num_thresholds, self.thin_predictions)

    def test_metrics(self) -> Metric:
        """The same from ``test_thresholds``."""
        return BoundaryFMeasure(self.tolerance, self.test_thresholds, self.thin_predictions)

    def colorize(self, values: Tensor) -> Tensor:
        """A heat map of the probability."""
        return heatmap(values.float().masked_fill(values == IGNORE_INDEX, torch.nan))
