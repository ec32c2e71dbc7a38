"""Training of a task: tokens, supervised loss, decoding."""

from abc import abstractmethod
from typing import ClassVar

from torch import Tensor

from htt_lightning.output import TaskOutput
from htt_lightning.tasks.pseudo_label import PseudoLabelMixin


class TrainingMixin(PseudoLabelMixin):
    """Loss and decoding of a task's outputs; pseudo-labels come from ``PseudoLabelMixin``."""

    logits_are_distribution: ClassVar[bool] = False
    """True if ``decode`` depends on the logits only through their softmax.

    Sliding-window inference then averages probabilities instead of logits.
    """

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
        """Decode a network output to a map at image size.

        Args:
            output: Network output at feature resolution.
            size: Height and width of the image.

        Returns:
            Classes or probabilities ``b h w``, or a field ``b c h w``.
        """
