"""Drawing helpers for callbacks: panel cells, titles, PNG files and image loggers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from einops import rearrange
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image, ImageDraw
from torch import Tensor

from htt_lightning.data.batch import Batch
from htt_lightning.io.files import atomic_path
from htt_lightning.io.run_directory import run_directory
from htt_lightning.tasks import PseudoLabel

MARGIN, TITLE, FONT_SIZE = 6, 18, 12
"""Margin around a panel cell, height of its title and of the font, in pixels."""
MIN_CELL_WIDTH = 144
"""Minimum width of a panel cell in pixels, which fits the longest title."""


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
    with atomic_path(path) as partial:
        Image.fromarray(picture).save(partial, format="PNG")
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(key, picture, trainer.global_step, dataformats="HWC")
        elif hasattr(logger, "log_image"):  # such as Weights & Biases
            logger.log_image(key=key, images=[picture], step=trainer.global_step)


def vstack_images(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Stack pictures vertically, padded with white to equal width: uint8 ``h w 3``."""
    width = max(picture.shape[1] for picture in pictures)
    padded = [np.pad(p, ((0, 0), (0, width - p.shape[1]), (0, 0)), constant_values=255) for p in pictures]
    return np.concatenate(padded)


def head_of_batch(batch: Batch, count: int) -> Batch:
    """Copy the first ``count`` images of a batch, with all labels, to the CPU."""
    head: Batch = {key: value[:count].cpu() for key, value in batch.items() if isinstance(value, Tensor)}
    head["labeled"] = {task: labeled[:count].cpu() for task, labeled in batch["labeled"].items()}
    if "pseudo_labels" in batch:
        labels = batch["pseudo_labels"].items()
        head["pseudo_labels"] = {task: PseudoLabel(*(values[:count].cpu() for values in pair)) for task, pair in labels}
    head["id"] = batch["id"][:count]
    return head


def to_uint8_image(values: Tensor) -> np.ndarray:
    """Convert images ``b 3 h w``, uint8 or in [0, 1], to uint8 ``b h w 3`` of at least ``MIN_CELL_WIDTH``."""
    pixels = values if values.dtype == torch.uint8 else (values.float().clamp(0, 1) * 255).round().to(torch.uint8)
    factor = -(-MIN_CELL_WIDTH // pixels.shape[-1])
    return rearrange(pixels.cpu(), "b c h w -> b h w c").numpy().repeat(factor, 1).repeat(factor, 2)


def placeholder(picture: np.ndarray, text: str) -> np.ndarray:
    """Draw an empty cell of the size of ``picture``, hatched if it has a text."""
    height, width = picture.shape[:2]
    cell = Image.new("RGB", (width, height), (235, 235, 235))
    if text:
        draw = ImageDraw.Draw(cell)
        for x in range(-height, width, 12):
            draw.line([(x, height), (x + height, 0)], fill=(205, 205, 205))
        draw.text((width // 2, height // 2), text, fill=(90, 90, 90), anchor="mm", font_size=FONT_SIZE)
    return np.asarray(cell)


def with_title(picture: np.ndarray, title: str) -> np.ndarray:
    """Add a title above a picture and a margin around it."""
    height, width = picture.shape[:2]
    cell = Image.new("RGB", (width + MARGIN, height + TITLE + MARGIN), "white")
    cell.paste(Image.fromarray(picture), (MARGIN // 2, TITLE))
    ImageDraw.Draw(cell).text((MARGIN // 2, 2), title, fill="black", font_size=FONT_SIZE)
    return np.asarray(cell)
