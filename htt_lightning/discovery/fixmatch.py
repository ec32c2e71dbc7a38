"""FixMatch for dense tasks: confident pixels of an image teach a strongly changed view of it."""

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, NamedTuple
from zlib import crc32

import numpy as np
import torch
from einops import rearrange
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from htt_lightning.data.batch import Batch, unlabeled_indices
from htt_lightning.discovery.consistency import ConsistencyLoss, Network
from htt_lightning.errors import ConfigError
from htt_lightning.models.layers import frozen_bn_stats
from htt_lightning.output import TaskOutput, any_selected, scatter_to_batch
from htt_lightning.seeding import derived_seed
from htt_lightning.tasks import PseudoLabel, Task
from htt_lightning.tasks.semseg import unpaired_sides

LUMA = (0.299, 0.587, 0.114)
"""Weights of R, G and B in the gray value of a pixel (ITU-R BT.601)."""
STREAM = 1
"""Number that keeps these draws apart from others of the same seed and epoch."""


class StrongViews(NamedTuple):
    """Hold the random changes of each image of a batch.

    Attributes:
        rows: Row of the image that each row of the view shows, int64 ``b h``, maybe outside the image.
        columns: Column of the image that each column of the view shows, int64 ``b w``, maybe outside the image.
        mirrored: Whether the view is mirrored left to right, bool ``b``.
        colors: Factors on brightness, contrast and saturation, ``b 3``.
        cut: Pixels of the view that are cut out, bool ``b h w``.
    """

    rows: Tensor
    columns: Tensor
    mirrored: Tensor
    colors: Tensor
    cut: Tensor

    def move(self, x: Tensor) -> Tensor:
        """Bring a map ``b h w`` or ``b c h w`` of the image to the view; pixels from outside repeat the border."""
        rows = self.rows.clamp(0, x.shape[-2] - 1)[:, :, None]
        columns = self.columns.clamp(0, x.shape[-1] - 1)[:, None, :]
        image = torch.arange(len(x), device=x.device)[:, None, None]
        if x.ndim == 3:
            return x[image, rows, columns]
        return rearrange(x[image, :, rows, columns], "b h w c -> b c h w")

    def inside(self) -> Tensor:
        """Find the pixels of the view that show the image and are not cut out, bool ``b h w``."""
        height, width = self.rows.shape[1], self.columns.shape[1]
        rows = (self.rows >= 0) & (self.rows < height)
        columns = (self.columns >= 0) & (self.columns < width)
        return rows[:, :, None] & columns[:, None, :] & ~self.cut


class FixMatch(ConsistencyLoss):
    """FixMatch for dense tasks ([FixMatch](https://arxiv.org/abs/2001.07685), [dense](https://arxiv.org/abs/2210.09919)).

    The training image is the weak view. On images without a label of a task, the network's own prediction makes a
    pseudo-label by the rules of the task, without gradient. The network then learns it on a strong view of the same
    image, which is mirrored, shifted, changed in color and partly cut out. Pseudo-labels are moved like the image.
    Pixels from outside the image and those that are cut out do not count.

    Args:
        tasks: Tasks to learn, all with pseudo-labels. Their confidence thresholds and weights count.
        task_weights: Weight lambda of each task's loss, by name.
        net: Network; not used before the loss is computed.
        weight: Weight of the loss.
        mirror: Probability of mirroring, in [0, 1].
        shift: Largest shift relative to height and width, in [0, 0.5].
        color: Largest relative change of brightness, contrast and saturation, in [0, 1].
        cutout: Largest height and width of the rectangle that is cut out, relative to the image, in [0, 1].

    Raises:
        ConfigError: There is one task, or a task has no pseudo-labels.
    """

    name = "fixmatch"
    option_ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        "weight": (0, math.inf),
        "mirror": (0, 1),
        "shift": (0, 0.5),
        "color": (0, 1),
        "cutout": (0, 1),
    }

    def __init__(
        self,
        tasks: Sequence[Task],
        task_weights: Mapping[str, float],
        net: nn.Module,
        *,
        weight: float = 1.0,
        mirror: float = 0.5,
        shift: float = 0.1,
        color: float = 0.5,
        cutout: float = 0.5,
    ) -> None:
        super().__init__(tasks, task_weights, weight=weight)
        self.mirror, self.shift, self.color, self.cutout = mirror, shift, color, cutout
        self._warnings = unpaired_sides(self.tasks) if mirror else []
        for task in self.tasks:
            if not task.supports_pseudo_labels:
                advice = "Write its pseudo_label and pseudo_label_loss."
                raise ConfigError(f"model.consistency fixmatch must have pseudo-labels of task {task.name}. {advice}")

    def forward(self, batch: Batch, outputs: Mapping[str, TaskOutput], net: Network, epoch: int) -> Tensor:
        """Compute the loss of the strong view on the pseudo-labels of the weak one, summed over tasks, ``b``."""
        while self._warnings:  # once, and in training alone
            rank_zero_warn(self._warnings.pop())
        image, size = batch["image"], (batch["image"].shape[-2], batch["image"].shape[-1])
        views = self.draw(batch["id"], epoch, size, image.device)
        # All images and tasks, also those without a loss: synchronized BatchNorm waits for every process.
        strong = self._predict(net, change_colors(views, image))
        valid, total = views.move(batch["valid"]) & views.inside(), torch.zeros(len(image), device=image.device)
        indices = unlabeled_indices(batch)
        for task in self.tasks:
            selected = indices[task.name]
            if any_selected(selected):
                chosen = StrongViews(*(x[selected] for x in views))
                found = move_pseudo_label(task, TaskOutput(*(x[selected] for x in outputs[task.name])), chosen, size)
                output = TaskOutput(*(x[selected] for x in strong[task.name]))
                losses = task.pseudo_label_loss(output, found, valid[selected])
                scale = self.task_weights[task.name] * task.pseudo_label_weight
                total = total + scatter_to_batch(scale * losses, selected, len(image))
        return self.weight * total

    @staticmethod
    def _predict(net: Network, image: Tensor) -> Mapping[str, TaskOutput]:
        """Run the network; its running statistics stay those of the images that are not changed."""
        if not isinstance(net, nn.Module):
            return net(image)
        with frozen_bn_stats(net):
            outputs: Mapping[str, TaskOutput] = net(image)
        return outputs

    def draw(self, ids: Sequence[str], epoch: int, size: tuple[int, int], device: torch.device | str) -> StrongViews:
        """Draw the views of images of one size, each from the seed of the run, the epoch and the image's id alone."""
        height, width = size
        rows, columns, mirrored, colors, boxes = [], [], [], [], []
        for name in ids:
            rng = np.random.default_rng(derived_seed(epoch, crc32(name.encode()), STREAM))
            mirrored.append(rng.random() < self.mirror)
            down, right = (round(length * rng.uniform(-self.shift, self.shift)) for length in size)
            rows.append(np.arange(height) - down)
            shown = np.arange(width) - right
            columns.append(width - 1 - shown if mirrored[-1] else shown)
            colors.append(rng.uniform(1 - self.color, 1 + self.color, 3))
            tall, wide = (round(length * rng.uniform(0, self.cutout)) for length in size)
            top, left = rng.integers(height - tall + 1), rng.integers(width - wide + 1)
            boxes.append((top, top + tall, left, left + wide))
        arrays = (np.stack(rows), np.stack(columns), np.array(mirrored), np.stack(colors), np.array(boxes))
        *drawn, box = (torch.from_numpy(array).to(device, non_blocking=True) for array in arrays)
        first_row, end_row, first_column, end_column = box[..., None].unbind(1)
        row, column = (torch.arange(length, device=device) for length in size)
        in_rows, in_columns = (row >= first_row) & (row < end_row), (column >= first_column) & (column < end_column)
        return StrongViews(drawn[0], drawn[1], drawn[2], drawn[3], in_rows[:, :, None] & in_columns[:, None])


def change_colors(views: StrongViews, image: Tensor) -> Tensor:
    """Make strong views of images ``b 3 h w`` in [0, 1]: moved, changed in color, and cut out in the mean color."""
    brightness, contrast, saturation = views.colors.to(image.dtype)[..., None, None, None].unbind(1)
    x = views.move(image) * brightness
    x = (x - x.mean((1, 2, 3), keepdim=True)) * contrast + x.mean((1, 2, 3), keepdim=True)
    gray = torch.stack([LUMA[k] * x[:, k] for k in range(3)]).sum(0)[:, None]
    x = ((x - gray) * saturation + gray).clamp(0, 1)
    return torch.where(views.cut[:, None], x.mean((2, 3), keepdim=True), x)


@torch.no_grad()
def move_pseudo_label(task: Task, weak: TaskOutput, views: StrongViews, size: tuple[int, int]) -> PseudoLabel:
    """Make pseudo-labels from the output on the weak view of images, and move them to the strong one."""
    found = task.pseudo_label(weak, size)
    assert found is not None, "checked at the start"
    label, confidence = found
    # Mirroring changes more than places: the x component of a normal.
    mirrored = views.mirrored.view(-1, *[1] * (label.ndim - 1))
    label = torch.where(mirrored, task.unflip(label).flip(-1), label)
    return PseudoLabel(views.move(label), views.move(confidence))
