"""Pictures of what is discovered, and of what tasks take from each other."""

from collections.abc import Mapping, Sequence
from typing import Any

import lightning as L
import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from htt_lightning.callbacks.drawing import (
    TITLE,
    EpochImageLogger,
    font,
    head_of_batch,
    placeholder,
    save_and_log,
    to_uint8_image,
    vstack_images,
    with_title,
)
from htt_lightning.data.batch import Batch
from htt_lightning.models import HTTNet
from htt_lightning.module import HTTModule
from htt_lightning.tasks import IGNORE_INDEX, PseudoLabel, Task
from htt_lightning.tasks.colormap import heatmap

CELL = 26
"""Pixels of a cell of the affinity map."""


class DiscoveryPanel(EpochImageLogger):
    """Draws labels, discovered labels and confidences at the end of validation, as PNG and into the logger.

    Training images show the labels they keep and what is discovered in place of the others; validation images show the
    truth and what would be discovered. Pixels that are not kept are grey. Pictures lie in ``discovery/`` of the run
    directory, and heatmap maps of the cross-task affinity (method.md 1.4) in ``affinity/``.

    Args:
        num_val_images: Validation images to draw.
        num_train_images: Augmented training images to draw below them.
        every_n_epochs: Epochs between pictures.
    """

    def __init__(self, num_val_images: int = 2, num_train_images: int = 3, every_n_epochs: int = 1) -> None:
        super().__init__(num_val_images, num_train_images, every_n_epochs)
        self._batches: list[Batch] = []

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the first validation images."""
        missing = self.num_val_images - sum(len(kept["id"]) for kept in self._batches)
        if missing > 0 and trainer.state.fn == "fit" and self.should_draw(trainer):
            self._batches.append(head_of_batch(batch, missing))

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw and write."""
        batches = [*self._batches, *([self._train_batch] if self._train_batch else [])]
        self._batches, self._train_batch = [], None
        if self._folder is None or not batches or not isinstance(pl_module, HTTModule):
            return
        name = f"epoch_{trainer.current_epoch:03d}.png"
        with torch.no_grad():
            affinity = pl_module.net.task_affinity() if isinstance(pl_module.net, HTTNet) else None
        if affinity is not None:
            picture = draw_affinity(affinity.float().cpu(), [task.name for task in pl_module.tasks])
            save_and_log(trainer, self._folder / "affinity" / name, "affinity", picture)
        discovery = pl_module.discovery
        if discovery is not None:
            drawn: list[np.ndarray] = []
            for batch in batches:
                found = discovery.pseudo_labels({**batch, "image": batch["image"].to(pl_module.device)})
                drawn += draw_pseudo_labels(batch, found, discovery.tasks)
            if drawn:
                save_and_log(trainer, self._folder / "discovery" / name, "discovery", vstack_images(drawn))


def draw_pseudo_labels(batch: Batch, found: Mapping[str, PseudoLabel], tasks: Sequence[Task]) -> list[np.ndarray]:
    """Three rows per image: the labels it has, what is discovered, and the confidence.

    Args:
        batch: On the CPU.
        found: Discovered labels of its images by task.
        tasks: The tasks; those without a discovered label are left out.

    Returns:
        Per image, uint8 ``h w 3``; nothing if nothing is discovered.
    """
    shown = [task for task in tasks if task.name in found]
    pictures = {"image": to_uint8_image(batch["image"])}
    for task in shown:
        label, confidence = (values.cpu() for values in found[task.name])
        kept = task.confidence_mask(confidence) & batch["valid"]
        cut = torch.where(
            kept if label.ndim == 3 else kept[:, None], label, IGNORE_INDEX if label.ndim == 3 else torch.nan
        )
        rows = [task.colorize(batch[task.name]), task.colorize(cut), heatmap(confidence)]
        pictures[task.name] = np.stack([to_uint8_image(row) for row in rows])
    drawn = []
    for k, name in enumerate(batch["id"]):
        image = pictures["image"][k]
        blank = with_title(placeholder(image, ""), "")
        rows_of_cells = [[with_title(image, f"image {name}")], [blank], [blank]]
        for task in shown:
            label, discovered, confidence = pictures[task.name][:, k]
            given = bool(batch["labeled"][task.name][k])
            rows_of_cells[0].append(
                with_title(label if given else placeholder(label, "no label"), f"{task.name}: label")
            )
            rows_of_cells[1].append(with_title(discovered, f"{task.name}: discovered"))
            rows_of_cells[2].append(with_title(confidence, f"{task.name}: confidence"))
        if shown:
            drawn.append(np.concatenate([np.concatenate(row, 1) for row in rows_of_cells]))
    return drawn


def draw_affinity(affinity: Tensor, names: Sequence[str]) -> np.ndarray:
    """Heat maps of the affinity at every scale, rows take from columns, with the shares in percent.

    Args:
        affinity: ``s t t``, rows sum to one.
        names: Of the tasks.

    Returns:
        uint8 ``h w 3``.
    """
    scales, count = affinity.shape[:2]
    margin = 10 + 7 * max(map(len, names))
    width, height = margin + count * CELL + 10, TITLE + count * CELL + 10
    canvas = Image.new("RGB", (width * scales, height), "white")
    draw = ImageDraw.Draw(canvas)
    colours = heatmap(affinity).permute(0, 2, 3, 1).tolist()
    for scale in range(scales):
        left = scale * width
        draw.text((left + margin, 3), f"scale {scale + 1}", fill="black", font=font())
        for row in range(count):
            top = TITLE + row * CELL
            draw.text((left + margin - 6, top + CELL // 2), names[row], fill="black", anchor="rm", font=font())
            for column in range(count):
                x, share = left + margin + column * CELL, float(affinity[scale, row, column])
                draw.rectangle((x, top, x + CELL - 2, top + CELL - 2), fill=tuple(colours[scale][row][column]))
                shade = "black" if share > 0.6 else "white"
                place = (x + CELL // 2 - 1, top + CELL // 2 - 1)
                draw.text(place, f"{100 * share:.0f}", fill=shade, anchor="mm", font=font())
    return np.asarray(canvas)
