"""Base class of callbacks that draw, PNG files and image loggers."""

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from htt_lightning.data.batch import Batch
from htt_lightning.io.images import write_png
from htt_lightning.io.run_directory import run_directory
from htt_lightning.tasks import PseudoLabel


class EpochImageLogger(Callback):
    """Base class of callbacks that draw the first images of an epoch."""

    def __init__(self, num_val_images: int, num_train_images: int, every_n_epochs: int) -> None:
        self.num_val_images, self.num_train_images = num_val_images, num_train_images
        self.every_n_epochs = max(1, every_n_epochs)
        self._train_batch: Batch | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Find the run directory on all ranks."""
        self._folder = run_directory(trainer)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Keep the first training images of the epoch."""
        if batch_idx == 0 and self.num_train_images and self.should_draw(trainer):
            self._train_batch = head_of_batch(batch, self.num_train_images)

    def should_draw(self, trainer: L.Trainer) -> bool:
        """Return True if this process draws in the current epoch."""
        due = trainer.current_epoch % self.every_n_epochs == 0 or trainer.current_epoch + 1 == trainer.max_epochs
        return due and trainer.is_global_zero and not trainer.sanity_checking and self._folder is not None


def save_and_log(trainer: L.Trainer, path: Path, key: str, picture: np.ndarray) -> None:
    """Write a picture, uint8 ``h w 3``, as PNG and send it to the loggers that take images."""
    write_png(path, picture)
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(key, picture, trainer.global_step, dataformats="HWC")
        elif hasattr(logger, "log_image"):  # such as Weights & Biases
            logger.log_image(key=key, images=[picture], step=trainer.global_step)


def head_of_batch(batch: Batch, count: int) -> Batch:
    """Copy the first ``count`` images of a batch, with all labels, to the CPU."""
    head: Batch = {key: value[:count].cpu() for key, value in batch.items() if isinstance(value, Tensor)}
    for key in {"labeled", "origin"} & batch.keys():
        head[key] = {task: values[:count].cpu() for task, values in batch[key].items()}
    if "pseudo_labels" in batch:
        labels = batch["pseudo_labels"].items()
        head["pseudo_labels"] = {task: PseudoLabel(*(values[:count].cpu() for values in pair)) for task, pair in labels}
    head["id"] = batch["id"][:count]
    return head
