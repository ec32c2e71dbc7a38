"""Edge detection."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torchmetrics import Metric

from htt_lightning.losses import balanced_bce, upcast
from htt_lightning.metrics import BoundaryF
from htt_lightning.output import Output, to_pixels
from htt_lightning.tasks.base import IGNORE, Task
from htt_lightning.tasks.colours import heat


@dataclass(frozen=True, kw_only=True)
class Edges(Task):
    """Borders between segments: balanced binary cross entropy, optimal-dataset-scale F measure.

    Args:
        positive: Weight of edge pixels in the loss; the others have ``1 - positive``.
        tolerance: Largest distance of matched pixels as a share of the image diagonal (protocol.md 5: NYUD 0.011,
            PASCAL 0.0075).
        thresholds: Number of thresholds swept for the F measure.
    """

    name: str = "edges"
    positive: float = 0.95
    tolerance: float = 0.011
    thresholds: int = 19

    headline: ClassVar[str] = "ods_f"
    higher_is_better: ClassVar[bool] = True
    unit: ClassVar[str] = "%"

    @property
    def num_tokens(self) -> int:
        """One logit."""
        return 1

    def loss(self, output: Output, target: Tensor) -> Tensor:
        """Balanced binary cross entropy, mean over valid pixels; target int64 ``b h w``, 255 missing."""
        logits = to_pixels(upcast(output.logits), (target.shape[-2], target.shape[-1]))
        return balanced_bce(logits[:, 0], target, target != IGNORE, self.positive)

    def decode(self, output: Output, size: tuple[int, int]) -> Tensor:
        """Probability of an edge, float ``b h w`` in [0, 1]."""
        return to_pixels(upcast(output.logits), size)[:, 0].sigmoid()

    def metrics(self) -> dict[str, Metric]:
        """Optimal-dataset-scale F measure in percent."""
        return {"ods_f": BoundaryF(tolerance=self.tolerance, thresholds=self.thresholds)}

    def colour(self, values: Tensor) -> Tensor:
        """A heat map of the probability."""
        return heat(values.float().masked_fill(values == IGNORE, torch.nan))

    def constant(self, targets: Iterable[Tensor]) -> Tensor:
        """An edge everywhere: an edge nowhere scores zero."""
        return torch.tensor(1.0)
