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
from htt_lightning.metrics import BoundaryF
from htt_lightning.output import Output, to_pixels
from htt_lightning.tasks.base import IGNORE, Task
from htt_lightning.tasks.colormap import heat
from htt_lightning.tasks.pseudo_label import Discovered


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

    training_only: ClassVar[tuple[str, ...]] = (*Task.training_only, "certain", "keep")
    measuring: ClassVar[tuple[str, ...]] = (*Task.measuring, "tolerance", "thresholds", "test_thresholds", "thin")

    headline: ClassVar[str] = "ods_f"
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
    def decoded_range(self) -> tuple[float, float]:
        """A probability."""
        return 0.0, 1.0

    def loss(self, output: Output, target: Tensor) -> Tensor:
        """Balanced binary cross entropy, mean over valid pixels; target int64 ``b h w``, 255 missing."""
        logits = to_pixels(upcast(output.logits), (target.shape[-2], target.shape[-1]))
        return balanced_bce(logits[:, 0], target, self.present(target), self.positive)

    def decode(self, output: Output, size: tuple[int, int]) -> Tensor:
        """Probability of an edge, float ``b h w`` in [0, 1]."""
        return to_pixels(upcast(output.logits), size)[:, 0].sigmoid()

    def discover(self, output: Output, size: tuple[int, int]) -> Discovered:
        """An edge where the probability exceeds ``certain``; confidence ``2 |p - 0.5|``."""
        probability = self.decode(output, size)
        return Discovered((probability > self.certain).long(), 2 * (probability - 0.5).abs())

    def kept(self, confidence: Tensor) -> Tensor:
        """Above the threshold, or below it as in the public release."""
        return confidence > self.threshold if self.keep == "confident" else confidence < self.threshold

    def discovered_loss(self, output: Output, found: Discovered, valid: Tensor) -> Tensor:
        """Balanced binary cross entropy, mean over the kept pixels."""
        logits = to_pixels(upcast(output.logits), (valid.shape[-2], valid.shape[-1]))[:, 0]
        return balanced_bce(logits, found.label, valid & self.kept(found.confidence), self.positive)

    def belief(self, output: Output) -> Tensor:
        """Probability of an edge, ``b 1 h/s w/s``."""
        return upcast(output.logits).sigmoid()

    def imitation_loss(self, output: Output, belief: Tensor) -> Tensor:
        """Binary cross entropy without class weights: the teacher's probability has come from balanced ones."""
        return F.binary_cross_entropy_with_logits(upcast(output.logits), belief, reduction="none")[:, 0]

    def metrics(self) -> Metric:
        """F measures in percent: one threshold for the data set, one per image."""
        return BoundaryF(self.tolerance, self.thresholds, self.thin)

    def test_metrics(self) -> Metric:
        """The same from ``test_thresholds``."""
        return BoundaryF(self.tolerance, self.test_thresholds, self.thin)

    def colour(self, values: Tensor) -> Tensor:
        """A heat map of the probability."""
        return heat(values.float().masked_fill(values == IGNORE, torch.nan))

    def constant(self, targets: Iterable[Tensor]) -> Tensor:
        """An edge everywhere: an edge nowhere scores zero."""
        return torch.tensor(1.0)
