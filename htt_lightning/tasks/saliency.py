"""Saliency detection."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torchmetrics import Metric

from htt_lightning.losses import cross_entropy, masked_mean, upcast
from htt_lightning.metrics import MaxF
from htt_lightning.output import Output, to_pixels
from htt_lightning.tasks.base import IGNORE, Task
from htt_lightning.tasks.colours import heat


@dataclass(frozen=True, kw_only=True)
class Saliency(Task):
    """What draws the eye: class-balanced cross entropy over two channels, maximum F measure."""

    name: str = "saliency"

    headline: ClassVar[str] = "max_f"
    higher_is_better: ClassVar[bool] = True
    unit: ClassVar[str] = "%"

    @property
    def num_tokens(self) -> int:
        """Background and salient."""
        return 2

    def loss(self, output: Output, target: Tensor) -> Tensor:
        """Cross entropy weighted by the image's own label frequencies, mean over valid pixels (method.md 3).

        Salient pixels weigh the share of background among the valid pixels, and the other way round.
        """
        logits = to_pixels(upcast(output.logits), (target.shape[-2], target.shape[-1]))
        valid = target != IGNORE
        background = masked_mean((target == 0).to(logits.dtype), valid)[:, None, None]
        weight = torch.where(target == 1, background, 1 - background)
        return masked_mean(weight * cross_entropy(logits, target, valid), valid)

    def decode(self, output: Output, size: tuple[int, int]) -> Tensor:
        """Probability of being salient, float ``b h w`` in [0, 1]."""
        return to_pixels(upcast(output.logits), size).softmax(1)[:, 1]

    def metrics(self) -> dict[str, Metric]:
        """Maximum F measure in percent."""
        return {"max_f": MaxF()}

    def colour(self, values: Tensor) -> Tensor:
        """A heat map of the probability."""
        return heat(values.float().masked_fill(values == IGNORE, torch.nan))

    def constant(self, targets: Iterable[Tensor]) -> Tensor:
        """Everything salient: with no recall below any threshold, any other constant scores the same or zero."""
        return torch.tensor(1.0)
