"""Panels of input images, labels and predictions."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor

from htt_lightning.callbacks.drawing import EpochImageLogger, head_of_batch, save_and_log
from htt_lightning.callbacks.panel import PanelEntry, Row, column_header, draw_map, draw_panel, task_legend, to_uint8
from htt_lightning.data.batch import Batch, origin_of
from htt_lightning.module import HTTModule
from htt_lightning.tasks import Task
from htt_lightning.tasks.colormap import error_heatmap


class PredictionPanel(EpochImageLogger):
    """Draw image, labels, predictions and errors of every task after validation.

    The panel is written to ``panels/`` in the run directory and sent to the loggers. Hidden labels are hatched.

    Args:
        num_val_images: Number of validation images to draw. 0 disables the panel.
        num_train_images: Number of augmented training images to draw below them, with the labels they keep.
        every_n_epochs: Number of epochs between panels. The last epoch is always drawn.
    """

    def __init__(self, num_val_images: int = 3, num_train_images: int = 2, every_n_epochs: int = 1) -> None:
        super().__init__(num_val_images, num_train_images, every_n_epochs)
        self.path: Path | None = None
        self._drawn: list[PanelEntry] = []

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
            self._drawn += draw_images(self._train_batch, maps, pl_module.tasks, "training image")
        picture = draw_panel(self._drawn, task_legend(pl_module.tasks, self._drawn, errors=True))
        self._drawn, self._train_batch = [], None
        self.path = self._folder / "panels" / f"epoch_{trainer.current_epoch:03d}.png"
        save_and_log(trainer, self.path, "panel", picture)


def draw_images(
    batch: Batch, maps: Mapping[str, Tensor], tasks: Sequence[Task], kind: str = "image"
) -> list[PanelEntry]:
    """Draw labels, decoded maps and their errors, in three rows per image; ``kind`` stands before its id."""
    return [
        PanelEntry(f"{kind} {name}", to_uint8(batch["image"][k]), _rows(batch, maps, tasks, k))
        for k, name in enumerate(batch["id"])
    ]


def _rows(batch: Batch, maps: Mapping[str, Tensor], tasks: Sequence[Task], k: int) -> list[tuple[str, Row]]:
    """Draw the rows of image ``k``."""
    labels: dict[str, np.ndarray | str] = {}
    predictions, errors = labels.copy(), labels.copy()
    for task in tasks:
        target, values = (source[task.name][k : k + 1].cpu() for source in (batch, maps))
        predictions[task.name] = draw_map(task, values[0])
        if batch["labeled"][task.name][k]:
            error = task.error_map(values, target).masked_fill(~task.valid_mask(target), torch.nan)
            labels[column_header(task.name, origin_of(batch, task.name, k))] = draw_map(task, target[0])
            errors[task.name] = to_uint8(error_heatmap(error)[0])
        else:
            labels[task.name] = errors[task.name] = "no label"
    return [("label", labels), ("prediction", predictions), ("error", errors)]
