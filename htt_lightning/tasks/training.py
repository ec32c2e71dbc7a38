"""Training of a task: supervised loss, decoding, pseudo-labels."""

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor

from htt_lightning.output import TaskOutput
from htt_lightning.tasks.pseudo_label import PseudoLabelMixin


class TrainingMixin(PseudoLabelMixin, ABC):
    """Training side of a task."""

    logits_are_distribution: ClassVar[bool] = False
    """True if ``decode`` depends on the softmax of the logits alone. Sliding windows then average probabilities."""

    @property
    @abstractmethod
    def num_tokens(self) -> int:
        """Return the number of logit channels K: classes, or bins of a regression task."""

    @abstractmethod
    def loss(self, output: TaskOutput, target: Tensor) -> Tensor:
        """Compute the supervised loss, without ``loss_weight``.

        Args:
            output: Network output at feature resolution.
            target: Ground truth at input size with missing pixels marked, possibly all of an image.

        Returns:
            One finite value per image, ``b``. It is 0 with zero gradient where no pixel is valid.
        """

    @abstractmethod
    def decode(self, output: TaskOutput, size: tuple[int, int]) -> Tensor:
        """Decode an output at feature resolution to classes or probabilities ``b h w``, or a field ``b c h w``.

        Args:
            output: Network output.
            size: Height and width of the image.
        """
