"""Joint-task regularization: predictions and labels of all tasks agree in one latent space."""

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from htt_lightning.data.batch import Batch, labeled_indices
from htt_lightning.discovery.consistency import (
    ConsistencyLoss,
    Network,
    average_cells,
    cosine_distance,
    label_cells,
    weighted_mean,
)
from htt_lightning.losses import fully_valid_cells, masked_mean, upcast
from htt_lightning.output import TaskOutput, resize_bilinear
from htt_lightning.tasks import Task


class JointAutoencoder(nn.Module):
    """Encode the stacked maps of all tasks at a quarter of their size, and decode them again.

    Args:
        channels: Number of channels of the stack.
        width: Channels of the first layer; the latent space has twice as many.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(channels, width, 3, stride=2, padding=1),
            nn.GroupNorm(1, width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
        )
        self.expand = nn.Sequential(
            nn.Conv2d(2 * width, width, 3, padding=1), nn.GroupNorm(1, width), nn.ReLU(inplace=True)
        )
        self.restore = nn.Conv2d(width, channels, 3, padding=1)

    def decode(self, latent: Tensor, size: tuple[int, int]) -> Tensor:
        """Decode latent maps to stacked maps of a size in cells."""
        half = [(length + 1) // 2 for length in size]
        return cast(Tensor, self.restore(resize_bilinear(self.expand(resize_bilinear(latent, half)), size)))


class JointTaskRegularization(ConsistencyLoss):
    """Joint-task regularization ([JTR](https://arxiv.org/abs/2404.01976)).

    The predictions of all tasks are stacked along the channels. A second stack has the labels where there are any, and
    the predictions, without gradient, elsewhere. The loss is the cosine distance of both in the latent space of an
    autoencoder. A reconstruction loss trains the autoencoder, and keeps it from collapsing to a constant.

    Args:
        tasks: Tasks to learn.
        task_weights: Weight lambda of each task's loss, by name; not used.
        net: Network; not used.
        weight: Weight of the loss.
        reconstruction_weight: Weight of the reconstruction relative to the distance.
        width: Channels of the first layer of the encoder.

    Raises:
        ConfigError: There is one task, or a task has no encoding.
    """

    name = "joint_task"
    option_ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        **ConsistencyLoss.option_ranges,
        "reconstruction_weight": (0, math.inf),
    }

    def __init__(
        self,
        tasks: Sequence[Task],
        task_weights: Mapping[str, float],
        net: nn.Module,
        *,
        weight: float = 1.0,
        reconstruction_weight: float = 1.0,
        width: int = 32,
    ) -> None:
        super().__init__(tasks, task_weights, weight=weight)
        self.reconstruction_weight = reconstruction_weight
        self.autoencoder = JointAutoencoder(self.count_channels(), width)

    def forward(self, batch: Batch, outputs: Mapping[str, TaskOutput], net: Network, epoch: int) -> Tensor:
        """Compute the distance of both stacks in the latent space, and their reconstruction error, ``b``."""
        rows, columns = outputs[self.tasks[0].name].logits.shape[-2:]
        valid = fully_valid_cells(batch["valid"], (rows, columns))
        predicted, known = (stack * valid[:, None] for stack in self.stacks(batch, outputs))
        # The stack is decoded without gradient: predictions should be right, not easy to reconstruct.
        latents = self.autoencoder.encoder(torch.cat([predicted, predicted.detach(), known]))
        compared, *decoded = latents.chunk(3)
        weight = average_cells(valid[:, None].to(predicted.dtype), (latents.shape[-2], latents.shape[-1]))[:, 0]
        distance = weighted_mean(cosine_distance(compared, decoded[1]), weight)
        restored = upcast(self.autoencoder.decode(torch.cat(decoded), (rows, columns)))
        error = self._error(restored, torch.cat([predicted.detach(), known]))
        reconstruction = masked_mean(error, valid.repeat(2, 1, 1)).view(2, -1).mean(0)
        return self.weight * (distance + self.reconstruction_weight * reconstruction)

    def stacks(self, batch: Batch, outputs: Mapping[str, TaskOutput]) -> tuple[Tensor, Tensor]:
        """Stack all tasks' predictions, and the same without gradient with labels in the cells that have one.

        Args:
            batch: Training batch; targets of unlabeled images are not read.
            outputs: Output of the network, by task.

        Returns:
            Two stacks ``b c h/s w/s``.
        """
        indices = labeled_indices(batch)
        predicted = [task.encode_prediction(outputs[task.name]) for task in self.tasks]
        known = []
        for task, prediction in zip(self.tasks, predicted, strict=True):
            selected, found = indices[task.name], prediction.detach()
            label, share = label_cells(task, batch[task.name][selected], (found.shape[-2], found.shape[-1]))
            known.append(found.index_copy(0, selected, torch.where(share > 0, label.to(found.dtype), found[selected])))
        return torch.cat(predicted, 1), torch.cat(known, 1)

    def _error(self, restored: Tensor, stack: Tensor) -> Tensor:
        """Compute the squared error, ``b h w``: the mean over channels of each task, and over tasks."""
        parts = torch.split((restored - stack).square(), [task.num_channels or 0 for task in self.tasks], 1)
        return torch.stack([part.mean(1) for part in parts]).mean(0)
