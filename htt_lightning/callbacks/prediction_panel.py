"""Panels of input images, labels and predictions."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from torch import Tensor

from htt_lightning.callbacks.drawing import (
    EpochImageLogger,
    head_of_batch,
    placeholder,
    save_and_log,
    to_uint8_image,
    vstack_images,
    with_title,
)
from htt_lightning.data.batch import Batch
from htt_lightning.module import HTTModule
from htt_lightning.tasks import Task


class PredictionPanel(EpochImageLogger):
    """Draw image, labels and predictions of every task after validation.

    The panel is written to ``panels/`` in the run directory and sent to the loggers. Hidden labels are hatched.

    Args:
        num_val_images: Number of validation images to draw. 0 disables the panel.
        num_train_images: Number of augmented training images to draw below them, with the labels they keep.
        every_n_epochs: Number of epochs between panels. The last epoch is always drawn.
    """

    def __init__(self, num_val_images: int = 3, num_train_images: int = 2, every_n_epochs: int = 1) -> None:
        super().__init__(num_val_images, num_train_images, every_n_epochs)
        self.path: Path | None = None
        self._drawn: list[np.ndarray] = []

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, *_: int
    ) -> None:
        """Draw validation images until there are enough."""
        missing = self.num_val_images - len(self._drawn)
        if missing > 0 and self.should_draw(trainer) and isinstance(pl_module, HTTModule):
            self._drawn += draw_images(head_of_batch(batch, missing), outputs, pl_module.tasks)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the panel and send it to the loggers."""
        if not self._drawn or self._folder is None or not isinstance(pl_module, HTTModule):
            return
        if self._train_batch is not None:
            maps = pl_module.decode(self._train_batch["image"].to(pl_module.device))
            self._drawn += draw_images(self._train_batch, maps, pl_module.tasks)
        picture = vstack_images(self._drawn)
        self._drawn, self._train_batch = [], None
        self.path = self._folder / "panels" / f"epoch_{trainer.current_epoch:03d}.png"
        save_and_log(trainer, self.path, "panel", picture)


def draw_images(batch: Batch, maps: Mapping[str, Tensor], tasks: Sequence[Task]) -> list[np.ndarray]:
    """Draw a picture per image, uint8 ``h w 3``: a row of labels above a row of decoded maps."""
    pictures = []
    for k, image in enumerate(to_uint8_image(batch["image"])):
        labels = [with_title(image, f"image {batch['id'][k]}")]
        predictions = [with_title(placeholder(image, ""), "")]
        for task in tasks:
            pair = [values[task.name][k : k + 1].cpu() for values in (batch, maps)]
            label, prediction = (to_uint8_image(task.colorize(values))[0] for values in pair)
            shown = label if batch["labeled"][task.name][k] else placeholder(label, "no label")
            labels.append(with_title(shown, f"{task.name}: label"))
            predictions.append(with_title(prediction, f"{task.name}: prediction"))
        pictures.append(np.concatenate([np.concatenate(labels, 1), np.concatenate(predictions, 1)]))
    return pictures
