"""Edge detection."""

from collections.abc import Iterable
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
from htt_lightning.tasks.colormap import heat
from htt_lightning.tasks.pseudo_label import PseudoLabel


@dataclass(frozen=True, kw_only=True)
class Edges(Task):
    """Borders between segments: balanced binary cross entropy, F measure at the best threshold.

    Args:
        positive: Weight of edge pixels in the loss; the others have ``1 - positive``.
        tolerance: Largest distance of matched pixels as a share of the image diagonal (protocol.md 5: NYUD 0.011,
            PASCAL 0.0075).
        thresholds: Number of thresholds swept for the F measure in validation.
        test_thresholds: Their number in ``test``, as papers have it.
        thin: Whether predictions are thinned to lines of one pixel before they are compared with the labels.
        val_images: See ``Task``; matching borders takes a tenth of a second or more per image.
        certain: Probability above which a discovered pixel is an edge.
        keep: Discovered pixels that count: the ``confident`` ones, or those that the public release keeps, which are
            the others (protocol.md 6.6).
    """

    name: str = "edges"
    positive: float = 0.95
    tolerance: float = 0.011
    thresholds: int = 19
    test_thresholds: int = 99
    thin: bool = False
    threshold: float = 0.99
    beta: float = 0.05
    val_images: int | None = 250
    certain: float = 0.99
    keep: Literal["confident", "released"] = "confident"

    training_fields: ClassVar[tuple[str, ...]] = (*Task.training_fields, "certain", "keep")
    metric_fields: ClassVar[tuple[str, ...]] = (
        *Task.metric_fields,
        "tolerance",
        "thresholds",
        "test_thresholds",
        "thin",
    )

    primary_metric: ClassVar[str] = "ods_f"
    higher_is_better: ClassVar[bool] = True
    unit: ClassVar[str] = "%"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.certain <= 1:
            raise HTTError(f"Edges needs certain in [0, 1], not {self.certain}.")

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
        return balanced_bce(logits[:, 0], target, self.present(target), self.positive)

    def decode(self, output: TaskOutput, size: tuple[int, int]) -> Tensor:
        """Probability of an edge, float ``b h w`` in [0, 1]."""
        return upsample_to_image(upcast(output.logits), size)[:, 0].sigmoid()

    def discover(self, output: TaskOutput, size: tuple[int, int]) -> PseudoLabel:
        """An edge where the probability exceeds ``certain``; confidence ``2 |p - 0.5|``."""
        probability = self.decode(output, size)
        return PseudoLabel((probability > self.certain).long(), 2 * (probability - 0.5).abs())

    def kept(self, confidence: Tensor) -> Tensor:
        """Above the threshold, or below it as in the public release."""
        return confidence > self.threshold if self.keep == "confident" else confidence < self.threshold

    def pseudo_label_loss(self, output: TaskOutput, found: PseudoLabel, valid: Tensor) -> Tensor:
        """Balanced binary cross entropy, mean over the kept pixels."""
        logits = upsample_to_image(upcast(output.logits), (valid.shape[-2], valid.shape[-1]))[:, 0]
        return balanced_bce(logits, found.label, valid & self.kept(found.confidence), self.positive)

    def soft_target(self, output: TaskOutput) -> Tensor:
        """Probability of an edge, ``b 1 h/s w/s``."""
        return upcast(output.logits).sigmoid()

    def distillation_loss(self, output: TaskOutput, soft_target: Tensor) -> Tensor:
        """Binary cross entropy without class weights: the teacher's probability has come from balanced ones."""
        return F.binary_cross_entropy_with_logits(upcast(output.logits), soft_target, reduction="none")[:, 0]

    def metrics(self) -> Metric:
        """F measures in percent: one threshold for the data set, one per image."""
        return BoundaryFMeasure(self.tolerance, self.thresholds, self.thin)

    def test_metrics(self) -> Metric:
        """The same from ``test_thresholds``."""
        return BoundaryFMeasure(self.tolerance, self.test_thresholds, self.thin)

    def colour(self, values: Tensor) -> Tensor:
        """A heat map of the probability."""
        return heat(values.float().masked_fill(values == IGNORE_INDEX, torch.nan))

    def constant(self, targets: Iterable[Tensor]) -> Tensor:
        """An edge everywhere: an edge nowhere scores zero."""
        return torch.tensor(1.0)
