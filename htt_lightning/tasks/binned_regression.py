"""Regression as an expected value over bins."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from htt_lightning.errors import ConfigError
from htt_lightning.losses import (
    BIN_LOSS_WEIGHT,
    CONFIDENCE_INV_TEMPERATURE,
    bin_confidence,
    cross_entropy,
    l1,
    masked_mean,
    upcast,
)
from htt_lightning.output import TaskOutput, upsample_to_image
from htt_lightning.tasks.base import Task
from htt_lightning.tasks.pseudo_label import PseudoLabel


@dataclass(frozen=True, kw_only=True)
class BinnedRegression(Task):
    """A field that is decoded as the expected value over bins.

    Args:
        num_bins: Number of bins.
        bin_loss_weight: Weight of the bin classification relative to the L1 loss.
        confidence_inv_temperature: Factor on the bin logits before the softmax whose maximum is the confidence in a
            pseudo-label.
        **kwargs: Fields of ``Task``.
    """

    num_bins: int
    bin_loss_weight: float = BIN_LOSS_WEIGHT
    confidence_threshold: float = 0.85
    confidence_inv_temperature: float = CONFIDENCE_INV_TEMPERATURE

    logits_are_distribution: ClassVar[bool] = True
    training_fields: ClassVar[tuple[str, ...]] = (*Task.training_fields, "confidence_inv_temperature")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_bins < 2:
            raise ConfigError(f"num_bins of {self.name} must be at least 2, got {self.num_bins}.")

    @property
    def num_tokens(self) -> int:
        """Return the number of bins."""
        return self.num_bins

    @abstractmethod
    def bin_centers(self, like: Tensor) -> Tensor:
        """Compute the bin centers ``k`` or ``k c``, of the device and type of ``like``."""

    @abstractmethod
    def expected_value(self, output: TaskOutput) -> Tensor:
        """Compute the expected value over bins at feature resolution, ``b c h/s w/s``."""

    def decode(self, output: TaskOutput, size: tuple[int, int]) -> Tensor:
        """Upsample the expected value to ``b c h w``."""
        return upsample_to_image(self.expected_value(output), size)

    @abstractmethod
    def nearest_bin(self, target: Tensor) -> Tensor:
        """Find the nearest bin of each pixel of a target: int64 ``b h w``, any value where it is missing."""

    def loss(self, output: TaskOutput, target: Tensor) -> Tensor:
        """Compute the L1 loss, summed over components, and the cross entropy of the nearest bin."""
        size, valid = (target.shape[-2], target.shape[-1]), self.valid_mask(target)
        regression = l1(self.decode(output, size), target, valid)
        logits = upsample_to_image(upcast(output.logits), size)
        classification = masked_mean(cross_entropy(logits, self.nearest_bin(target), valid), valid)
        return regression + self.bin_loss_weight * classification

    def pseudo_label(self, output: TaskOutput, size: tuple[int, int]) -> PseudoLabel:
        """Take the decoded value; its confidence is high where one bin stands out."""
        return PseudoLabel(self.decode(output, size), bin_confidence(output, size, self.confidence_inv_temperature))

    def pseudo_label_loss(self, output: TaskOutput, found: PseudoLabel, valid: Tensor) -> Tensor:
        """Compute the L1 loss of confident pixels times their confidence, mean over valid pixels and components.

        The supervised loss is the sum over components instead; the published weights belong to these two.
        """
        error = (self.decode(output, (valid.shape[-2], valid.shape[-1])) - found.label).abs().mean(1)
        return masked_mean(found.confidence * self.confidence_mask(found.confidence) * error, valid)

    def soft_target(self, output: TaskOutput) -> Tensor:
        """Compute the expected value, ``b c h/s w/s``."""
        return self.expected_value(output)

    def distillation_loss(self, output: TaskOutput, soft_target: Tensor) -> Tensor:
        """Compute the L1 loss and the cross entropy of the nearest bin, as on ground truth."""
        error = (self.expected_value(output) - soft_target).abs().sum(1)
        classification = F.cross_entropy(upcast(output.logits), self.nearest_bin(soft_target), reduction="none")
        return error + self.bin_loss_weight * classification
