"""Pictures of what the network sees, is told and predicts."""

from collections.abc import Mapping, Sequence
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

from htt_lightning.data.sample import Batch
from htt_lightning.files import atomic_path, run_directory
from htt_lightning.module import HTTModule
from htt_lightning.tasks import Task

MARGIN, TITLE = 6, 18
"""Pixels between the cells of a panel, and the height of its titles."""

WIDTH = 144
"""Smaller images are enlarged to at least this many pixels, which the longest title needs."""


class PredictionPanel(Callback):
    """Draws image, labels and predictions of every task at the end of validation, as PNG and into the logger.

    Labels that an image does not have are hatched. The picture lies in ``panels/`` of the run directory.

    Args:
        images: Validation images to draw; 0 draws no panel.
        train_images: Augmented training images to draw below them, with the labels they keep.
        every_n_epochs: Epochs between panels.
    """

    def __init__(self, images: int = 3, train_images: int = 2, every_n_epochs: int = 1) -> None:
        self.images, self.train_images, self.every_n_epochs = images, train_images, max(1, every_n_epochs)
        self.path: Path | None = None
        self._drawn: list[np.ndarray] = []
        self._training: Batch | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Find the run directory, which all ranks have to ask for together."""
        self._folder = run_directory(trainer)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Keep the first images of an epoch."""
        if batch_idx == 0 and self._wanted(trainer):
            self._training = _first(batch, self.train_images)

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
        if missing > 0 and self._wanted(trainer) and isinstance(pl_module, HTTModule):
            self._drawn += draw_images(_first(batch, missing), outputs, pl_module.tasks)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the panel."""
        if not self._drawn or self._folder is None or not isinstance(pl_module, HTTModule):
            return
        if self._training is not None and self.train_images:
            maps = pl_module.decode(self._training["image"].to(pl_module.device))
            self._drawn += draw_images(self._training, maps, pl_module.tasks)
        picture = stack(self._drawn)
        self._drawn, self._training = [], None
        self.path = self._folder / "panels" / f"epoch_{trainer.current_epoch:03d}.png"
        with atomic_path(self.path) as partial:
            Image.fromarray(picture).save(partial, format="PNG")
        for logger in trainer.loggers:
            log_image(logger, "panel", picture, trainer.global_step)

    def _wanted(self, trainer: L.Trainer) -> bool:
        due = trainer.current_epoch % self.every_n_epochs == 0 or trainer.current_epoch + 1 == trainer.max_epochs
        return due and trainer.is_global_zero and not trainer.sanity_checking and self._folder is not None


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
    columns = {"image": _image(batch["image"])}
    rows = []
    for task in tasks:
        both = [task.colour(values) for values in (batch[task.name], maps[task.name][:count].cpu())]
        columns[task.name] = _image(torch.cat(both))
    for k in range(count):
        picture = columns["image"][k]
        labels, predictions = [_titled(picture, f"image {batch['id'][k]}")], [_titled(_hatched(picture, ""), "")]
        for task in tasks:
            label = columns[task.name][k]
            given = bool(batch["labeled"][task.name][k])
            labels.append(_titled(label if given else _hatched(label, "no label"), f"{task.name}: label"))
            predictions.append(_titled(columns[task.name][count + k], f"{task.name}: prediction"))
        rows.append(np.concatenate([np.concatenate(labels, 1), np.concatenate(predictions, 1)], 0))
    return rows


def stack(pictures: Sequence[np.ndarray]) -> np.ndarray:
    """Pictures below each other, the narrower ones filled up with white: uint8 ``h w 3``."""
    width = max(picture.shape[1] for picture in pictures)
    filled = [np.pad(p, ((0, 0), (0, width - p.shape[1]), (0, 0)), constant_values=255) for p in pictures]
    return np.concatenate(filled)


def _first(batch: Batch, count: int) -> Batch:
    """The first images of a batch, on the CPU."""
    cut: Batch = {key: value[:count].cpu() for key, value in batch.items() if isinstance(value, Tensor)}
    cut["labeled"] = {task: labeled[:count].cpu() for task, labeled in batch["labeled"].items()}
    cut["id"] = batch["id"][:count]
    return cut


def _image(values: Tensor) -> np.ndarray:
    """``b 3 h w``, uint8 or in [0, 1], to uint8 ``b h w 3`` of a size one can look at."""
    pixels = values if values.dtype == torch.uint8 else (values.float().clamp(0, 1) * 255).round().to(torch.uint8)
    zoom = -(-WIDTH // pixels.shape[-1])
    return rearrange(pixels.cpu(), "b c h w -> b h w c").numpy().repeat(zoom, 1).repeat(zoom, 2)


def _hatched(picture: np.ndarray, text: str) -> np.ndarray:
    """A cell without content."""
    height, width = picture.shape[:2]
    cell = Image.new("RGB", (width, height), (235, 235, 235))
    if text:
        draw = ImageDraw.Draw(cell)
        for x in range(-height, width, 12):
            draw.line([(x, height), (x + height, 0)], fill=(205, 205, 205))
        draw.text((width // 2, height // 2), text, fill=(90, 90, 90), anchor="mm", font=_font())
    return np.asarray(cell)


def _titled(picture: np.ndarray, title: str) -> np.ndarray:
    """A picture with its title above and a margin around."""
    height, width = picture.shape[:2]
    cell = Image.new("RGB", (width + MARGIN, height + TITLE + MARGIN), "white")
    cell.paste(Image.fromarray(picture), (MARGIN // 2, TITLE))
    ImageDraw.Draw(cell).text((MARGIN // 2, 2), title, fill="black", font=_font())
    return np.asarray(cell)


def _font() -> Any:
    return ImageFont.load_default(size=12)
