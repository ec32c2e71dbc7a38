"""What regression tasks share: a value is the expectation over bins that the network classifies."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from htt_lightning.losses import BIN_WEIGHT, SHARPNESS, cross_entropy, l1, masked_mean, stand_out, upcast
from htt_lightning.output import Output, to_pixels
from htt_lightning.tasks.base import Task
from htt_lightning.tasks.pseudo_label import Discovered


@dataclass(frozen=True, kw_only=True)
class Binned(Task):
    """A field that is decoded as an expectation over bins (method.md, Shapes).

    Args:
        bins: Number of bins.
        bin_weight: Weight of the bin classification beside the L1 loss.
        sharpness: Factor on the bin logits whose largest probability is the confidence in a discovered value.
    """

    bins: int
    bin_weight: float = BIN_WEIGHT
    threshold: float = 0.85
    sharpness: float = SHARPNESS

    distribution: ClassVar[bool] = True
    training_only: ClassVar[tuple[str, ...]] = (*Task.training_only, "sharpness")

    @property
    def num_tokens(self) -> int:
        """One token per bin."""
        return self.bins

    @abstractmethod
    def centres(self, like: Tensor) -> Tensor:
        """Bin centres, made where they are used: no buffer to lose, no copy from the host.

        Args:
            like: A tensor of the device and type wanted.

        Returns:
            ``k`` or ``k c``.
        """

    @abstractmethod
    def expectation(self, output: Output) -> Tensor:
        """Decoded value at feature resolution.

        Args:
            output: Network output.

        Returns:
            ``b c h/s w/s``.
        """

    @abstractmethod
    def nearest_bin(self, target: Tensor) -> Tensor:
        """Index of each pixel's bin.

        Args:
            target: ``b c h w``, NaN where missing.

        Returns:
            int64 ``b h w``; any value where the target is missing.
        """

    def loss(self, output: Output, target: Tensor) -> Tensor:
        """L1 summed over components and cross entropy to the nearest bin; target ``b c h w``, NaN missing."""
        size, valid = (target.shape[-2], target.shape[-1]), self.present(target)
        regression = l1(self.decode(output, size), target, valid)
        logits = to_pixels(upcast(output.logits), size)
        classification = masked_mean(cross_entropy(logits, self.nearest_bin(target), valid), valid)
        return regression + self.bin_weight * classification

    def discover(self, output: Output, size: tuple[int, int]) -> Discovered:
        """The decoded value itself; it is trusted where one bin stands out."""
        return Discovered(self.decode(output, size), stand_out(output, size, self.sharpness))

    def discovered_loss(self, output: Output, found: Discovered, valid: Tensor) -> Tensor:
        """L1 of the kept pixels times their confidence, mean over all valid ones and the components.

        A given label's loss is the sum over components (protocol.md 6.22); the published weights belong to these two.
        """
        error = (self.decode(output, (valid.shape[-2], valid.shape[-1])) - found.label).abs().mean(1)
        return masked_mean(found.confidence * self.kept(found.confidence) * error, valid)

    def belief(self, output: Output) -> Tensor:
        """The decoded value, ``b c h/s w/s``."""
        return self.expectation(output)

    def imitation_loss(self, output: Output, belief: Tensor) -> Tensor:
        """As on a given label: L1 summed over components and cross entropy to the nearest bin."""
        error = (self.expectation(output) - belief).abs().sum(1)
        classification = F.cross_entropy(upcast(output.logits), self.nearest_bin(belief), reduction="none")
        return error + self.bin_weight * classification
