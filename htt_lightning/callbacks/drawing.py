"""When callbacks draw, and the cells and rows of their pictures."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from einops import rearrange
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from htt_lightning.data.batch import Batch
from htt_lightning.io.files import atomic_path
from htt_lightning.io.run_directory import run_directory
from htt_lightning.tasks import PseudoLabel

MARGIN, TITLE = 6, 18
"""Pixels between the cells of a panel, and the height of its titles."""

WIDTH = 144
"""Smaller images are enlarged to at least this many pixels, which the longest title needs."""


class EpochImageLogger(Callback):
    """A callback that draws the first images of training and validation at the end of some epochs.

    Args:
        images: Validation images to draw.
        train_images: Augmented training images to draw below them.
        every_n_epochs: Epochs between pictures.
    """

    def __init__(self, images: int, train_images: int, every_n_epochs: int) -> None:
        self.images, self.train_images, self.every_n_epochs = images, train_images, max(1, every_n_epochs)
        self._training: Batch | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Find the run directory, which all ranks have to ask for together."""
        self._folder = run_directory(trainer)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Keep the first images of an epoch."""
        if batch_idx == 0 and self.train_images and self.wanted(trainer):
            self._training = first_images(batch, self.train_images)

    def wanted(self, trainer: L.Trainer) -> bool:
        """Whether this process draws in this epoch.

        Args:
            trainer: Knows the epoch and the process.
        """
        due = trainer.current_epoch % self.every_n_epochs == 0 or trainer.current_epoch + 1 == trainer.max_epochs
        return due and trainer.is_global_zero and not trainer.sanity_checking and self._folder is not None


def publish(trainer: L.Trainer, path: Path, key: str, picture: np.ndarray) -> None:
    """Write a picture as PNG and send it to the loggers.

    Args:
        trainer: Knows the loggers and the step.
        path: The file.
        key: Name of the picture in loggers.
        picture: uint8 ``h w 3``.
    """
    with atomic_path(path) as partial:
        Image.fromarray(picture).save(partial, format="PNG")
    for logger in trainer.loggers:
        log_image(logger, key, picture, trainer.global_step)


def log_image(logger: Logger, key: str, picture: np.ndarray, step: int) -> None:
    """Send a picture to a logger that takes pictures; others are left in peace.

    Args:
        logger: Any Lightning logger.
        key: Name of the picture.
        picture: uint8 ``h w 3``.
        step: Global step.
    """
    if hasattr(logger, "log_image"):  # Weights & Biases and its like
        logger.log_image(key=key, images=[picture], step=step)
    elif isinstance(logger, TensorBoardLogger):
        logger.experiment.add_image(key, picture, step, dataformats="HWC")


def stack(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Pictures below each other, the narrower ones filled up with white: uint8 ``h w 3``."""
    width = max(picture.shape[1] for picture in pictures)
    filled = [np.pad(p, ((0, 0), (0, width - p.shape[1]), (0, 0)), constant_values=255) for p in pictures]
    return np.concatenate(filled)


def first_images(batch: Batch, count: int) -> Batch:
    """The first images of a batch, on the CPU."""
    cut: Batch = {key: value[:count].cpu() for key, value in batch.items() if isinstance(value, Tensor)}
    cut["labeled"] = {task: labeled[:count].cpu() for task, labeled in batch["labeled"].items()}
    if "discovered" in batch:
        found = batch["discovered"].items()
        cut["discovered"] = {task: PseudoLabel(*(values[:count].cpu() for values in pair)) for task, pair in found}
    cut["id"] = batch["id"][:count]
    return cut


def to_picture(values: Tensor) -> np.ndarray:
    """``b 3 h w``, uint8 or in [0, 1], to uint8 ``b h w 3`` of a size one can look at."""
    pixels = values if values.dtype == torch.uint8 else (values.float().clamp(0, 1) * 255).round().to(torch.uint8)
    zoom = -(-WIDTH // pixels.shape[-1])
    return rearrange(pixels.cpu(), "b c h w -> b h w c").numpy().repeat(zoom, 1).repeat(zoom, 2)


def placeholder(picture: np.ndarray, text: str) -> np.ndarray:
    """A cell without content."""
    height, width = picture.shape[:2]
    cell = Image.new("RGB", (width, height), (235, 235, 235))
    if text:
        draw = ImageDraw.Draw(cell)
        for x in range(-height, width, 12):
            draw.line([(x, height), (x + height, 0)], fill=(205, 205, 205))
        draw.text((width // 2, height // 2), text, fill=(90, 90, 90), anchor="mm", font=font())
    return np.asarray(cell)


def with_title(picture: np.ndarray, title: str) -> np.ndarray:
    """A picture with its title above and a margin around."""
    height, width = picture.shape[:2]
    cell = Image.new("RGB", (width + MARGIN, height + TITLE + MARGIN), "white")
    cell.paste(Image.fromarray(picture), (MARGIN // 2, TITLE))
    ImageDraw.Draw(cell).text((MARGIN // 2, 2), title, fill="black", font=font())
    return np.asarray(cell)


def font() -> Any:
    """The font of all pictures."""
    return ImageFont.load_default(size=12)
