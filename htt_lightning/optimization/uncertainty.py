"""Task weights that are learned."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from htt_lightning.tasks import Task

TaskWeighting = Literal["fixed", "uncertainty"]


class UncertaintyWeights(nn.Module):
    """Weights of tasks by their learned uncertainty ([Kendall et al.](https://arxiv.org/abs/1705.07115), Eq. 10).

    With s the learned log-variance of a task, a regression loss L becomes ``exp(-s) L / 2 + s / 2``, and any other
    ``exp(-s) L + s / 2``. Each labeled image counts once, so a task that has few labels learns its s from these alone.

    Args:
        tasks: Tasks; those with fields as targets are regressions.
    """

    def __init__(self, tasks: Sequence[Task]) -> None:
        super().__init__()
        self.index = {task.name: index for index, task in enumerate(tasks)}
        self.scale = {task.name: 1.0 if task.field_channels is None else 0.5 for task in tasks}
        self.log_variance = nn.Parameter(torch.zeros(len(tasks)))

    def weight(self, name: str) -> Tensor:
        """Return the weight of a task's losses, a scalar."""
        return self.scale[name] * torch.exp(-self.log_variance[self.index[name]])

    def forward(self, name: str, losses: Tensor) -> Tensor:
        """Weight the losses of a task's labeled images, and add the penalty of large variances."""
        return self.weight(name) * losses + self.log_variance[self.index[name]] / 2

    def reset(self) -> None:
        """Set all variances to one."""
        nn.init.zeros_(self.log_variance)
