"""Base of consistency losses, and their parts: losses that need no teacher, only the tasks and views of an image."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from htt_lightning.data.batch import Batch
from htt_lightning.errors import ConfigError
from htt_lightning.losses import upcast
from htt_lightning.output import TaskOutput, feature_stride
from htt_lightning.tasks import Task

Network = Callable[[Tensor], Mapping[str, TaskOutput]]
"""Function from images ``b 3 h w`` to an output per task."""


class ConsistencyLoss(nn.Module, ABC):
    """Base of losses on what a network predicts for the unlabeled tasks of an image.

    Parameters of such a loss are trained and stored with the network, but no prediction depends on them. An option of
    ``model.consistency_options`` is a keyword argument of the subclass.

    Args:
        tasks: Tasks to learn, at least two.
        task_weights: Weight lambda of each task's loss, by name.
        weight: Weight of the loss.

    Raises:
        ConfigError: There is one task, or a task has no encoding or pseudo-label that the loss needs.
    """

    name: ClassVar[str]
    """Value of ``model.consistency``."""
    option_ranges: ClassVar[Mapping[str, tuple[float, float]]] = {"weight": (0, math.inf)}
    """Smallest and largest value of each option. Options without an entry are at least 1."""

    def __init__(self, tasks: Sequence[Task], task_weights: Mapping[str, float], *, weight: float = 1.0) -> None:
        super().__init__()
        self.tasks, self.task_weights, self.weight = list(tasks), task_weights, weight
        if len(self.tasks) < 2:
            names = ", ".join(task.name for task in self.tasks)
            raise ConfigError(f"model.consistency must be null for a single task, got {self.name} for {names}.")

    def reset_parameters(self) -> None:
        """Reset all parameters to random values."""
        for layer in reversed([*self.modules()][1:]):  # a parent after its children, whose values it may replace
            if callable(reset := getattr(layer, "reset_parameters", None)):
                reset()

    def watch(self, net: nn.Module) -> None:
        """Prepare to read maps inside the network that is trained; by default do nothing."""

    @abstractmethod
    def forward(self, batch: Batch, outputs: Mapping[str, TaskOutput], net: Network, epoch: int) -> Tensor:
        """Compute the loss of each image, ``b``.

        Args:
            batch: Training batch with ``image``, ``labeled``, ``valid``, ``id`` and targets. Targets of unlabeled
                images are not read.
            outputs: Output of the network on the images, by task.
            net: The network.
            epoch: Number of the epoch, from which random views are drawn.
        """

    def count_channels(self) -> int:
        """Return the number of channels of all tasks' encodings; raise a ``ConfigError`` if a task has none."""
        for task in self.tasks:
            if task.num_channels is None:
                advice = "Set its output_range, or encode_label, encode_prediction and num_channels."
                raise ConfigError(f"model.consistency {self.name} must have an encoding of task {task.name}. {advice}")
        return sum(task.num_channels or 0 for task in self.tasks)


def label_cells(task: Task, target: Tensor, cells: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Encode a target, and average the valid pixels of each cell.

    Args:
        task: Task of the target.
        target: Target of labeled images, ``b h w`` or ``b c h w``.
        cells: Height and width of the feature map.

    Returns:
        Encoding ``b c h/s w/s``, 0 in cells without a valid pixel, and the share of valid pixels ``b 1 h/s w/s``.
    """
    valid = task.valid_mask(target)
    encoded = task.encode_label(target, valid)
    share = average_cells(valid[:, None].to(encoded.dtype), cells)
    return average_cells(encoded, cells) / torch.where(share > 0, share, torch.ones_like(share)), share


def average_cells(values: Tensor, cells: tuple[int, int]) -> Tensor:
    """Average a map ``b c h w`` over the pixels of each cell; missing pixels of incomplete cells are zeros.

    Examples:
        >>> average_cells(torch.tensor([[[[2.0, 4.0, 8.0, 0.0]] * 2]]), (1, 2))
        tensor([[[[3., 4.]]]])
    """
    height, width = values.shape[-2:]
    stride = feature_stride(cells, (height, width))
    padded = F.pad(values, (0, cells[1] * stride - width, 0, cells[0] * stride - height))
    return F.avg_pool2d(padded, stride)


def cosine_distance(x: Tensor, y: Tensor) -> Tensor:
    """Compute one minus the cosine of the channels: ``b c h w -> b h w``, in [0, 2]."""
    return 1 - F.cosine_similarity(upcast(x), upcast(y), dim=1)


def weighted_mean(values: Tensor, weight: Tensor) -> Tensor:
    """Average each map with weights of at least 0, ``b h w -> b``; 0 where all weights are 0.

    Examples:
        >>> weighted_mean(torch.tensor([[[1.0, 3.0]], [[1.0, 3.0]]]), torch.tensor([[[1.0, 1.0]], [[0.0, 0.0]]]))
        tensor([2., 0.])
    """
    total = weight.sum((1, 2))
    return (values * weight).sum((1, 2)) / torch.where(total > 0, total, torch.ones_like(total))
