"""Pictures of what the network sees, is told and predicts."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor

from htt_lightning.callbacks.drawing import (
    EpochImageLogger,
    first_images,
    placeholder,
    publish,
    stack,
    to_picture,
    with_title,
)
from htt_lightning.data.batch import Batch
from htt_lightning.module import HTTModule
from htt_lightning.tasks import Task


class PredictionPanel(EpochImageLogger):
    """Draws image, labels and predictions of every task at the end of validation, as PNG and into the logger.

    Labels that an image does not have are hatched. The picture lies in ``panels/`` of the run directory.

    Args:
        images: Validation images to draw; 0 draws no panel.
        train_images: Augmented training images to draw below them, with the labels they keep.
        every_n_epochs: Epochs between panels.
    """

    def __init__(self, images: int = 3, train_images: int = 2, every_n_epochs: int = 1) -> None:
        super().__init__(images, train_images, every_n_epochs)
        self.path: Path | None = None
        self._drawn: list[np.ndarray] = []

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draw the first validation images as they come by."""
        missing = self.images - len(self._drawn)
        if missing > 0 and self.wanted(trainer) and isinstance(pl_module, HTTModule):
            self._drawn += draw_images(first_images(batch, missing), outputs, pl_module.tasks)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the panel."""
        if not self._drawn or self._folder is None or not isinstance(pl_module, HTTModule):
            return
        if self._training is not None:
            maps = pl_module.decode(self._training["image"].to(pl_module.device))
            self._drawn += draw_images(self._training, maps, pl_module.tasks)
        picture = stack(self._drawn)
        self._drawn, self._training = [], None
        self.path = self._folder / "panels" / f"epoch_{trainer.current_epoch:03d}.png"
        publish(trainer, self.path, "panel", picture)


def draw_images(batch: Batch, maps: Mapping[str, Tensor], tasks: Sequence[Task]) -> list[np.ndarray]:
    """Two rows per image: the labels it has, and the predictions.

    Args:
        batch: As the network gets it.
        maps: Decoded maps by task, for at least as many images.
        tasks: The tasks to draw.

    Returns:
        Per image, uint8 ``h w 3``.
    """
    count = len(batch["id"])
    columns = {"image": to_picture(batch["image"])}
    rows = []
    for task in tasks:
        both = [task.colorize(values) for values in (batch[task.name], maps[task.name][:count].cpu())]
        columns[task.name] = to_picture(torch.cat(both))
    for k in range(count):
        picture = columns["image"][k]
        labels, predictions = (
            [with_title(picture, f"image {batch['id'][k]}")],
            [with_title(placeholder(picture, ""), "")],
        )
        for task in tasks:
            label = columns[task.name][k]
            given = bool(batch["labeled"][task.name][k])
            labels.append(with_title(label if given else placeholder(label, "no label"), f"{task.name}: label"))
            predictions.append(with_title(columns[task.name][count + k], f"{task.name}: prediction"))
        rows.append(np.concatenate([np.concatenate(labels, 1), np.concatenate(predictions, 1)], 0))
    return rows
