"""A callback that draws pseudo-labels, their confidence and the cross-task affinity."""

from collections.abc import Mapping, Sequence
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor

from htt_lightning.callbacks.drawing import EpochImageLogger, head_of_batch, save_and_log
from htt_lightning.callbacks.matrix import draw_matrix
from htt_lightning.callbacks.panel import PanelEntry, column_header, draw_panel, task_legend, to_uint8
from htt_lightning.data.batch import Batch, origin_of
from htt_lightning.models import HTTNet
from htt_lightning.module import HTTModule
from htt_lightning.tasks import IGNORE_INDEX, PseudoLabel, Task
from htt_lightning.tasks.colormap import heatmap


class DiscoveryPanel(EpochImageLogger):
    """Draw labels, pseudo-labels and confidences after validation, and heat maps of the cross-task affinity.

    Training images show the labels they keep and the pseudo-labels for the others; validation images show all labels.
    Pixels below the confidence threshold are gray. Pictures are written to ``discovery/`` and ``affinity/`` in the run
    directory, and sent to the loggers.

    Args:
        num_val_images: Number of validation images to draw.
        num_train_images: Number of augmented training images to draw below them.
        every_n_epochs: Number of epochs between pictures. The last epoch is always drawn.
    """

    def __init__(self, num_val_images: int = 2, num_train_images: int = 3, every_n_epochs: int = 1) -> None:
        super().__init__(num_val_images, num_train_images, every_n_epochs)
        self._val_batches: list[Batch] = []

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, *_: Any
    ) -> None:
        """Keep the first validation images."""
        missing = self.num_val_images - sum(len(kept["id"]) for kept in self._val_batches)
        if missing > 0 and trainer.state.fn == "fit" and self.should_draw(trainer):
            self._val_batches.append(head_of_batch(batch, missing))

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw and write the pictures."""
        batches = [(batch, "image") for batch in self._val_batches]
        batches += [(self._train_batch, "training image")] if self._train_batch else []
        self._val_batches, self._train_batch = [], None
        if self._folder is None or not batches or not isinstance(pl_module, HTTModule):
            return
        name, discovery = f"epoch_{trainer.current_epoch:03d}.png", pl_module.discovery
        if isinstance(pl_module.net, HTTNet) and (affinity := pl_module.net.task_affinity()) is not None:
            picture = draw_affinity(affinity.detach().float().cpu(), [task.name for task in pl_module.tasks])
            save_and_log(trainer, self._folder / "affinity" / name, "affinity", picture)
        if discovery is not None:
            drawn: list[PanelEntry] = []
            for batch, kind in batches:
                labels = discovery.pseudo_labels({**batch, "image": batch["image"].to(pl_module.device)})
                drawn += draw_pseudo_labels(batch, labels, discovery.tasks, kind)
            if drawn:
                picture = draw_panel(drawn, task_legend(discovery.tasks, drawn))
                save_and_log(trainer, self._folder / "discovery" / name, "discovery", picture)


def draw_pseudo_labels(
    batch: Batch, pseudo_labels: Mapping[str, PseudoLabel], tasks: Sequence[Task], kind: str = "image"
) -> list[PanelEntry]:
    """Draw labels, pseudo-labels and their confidence in three rows per image.

    The batch is on the CPU, and ``kind`` stands before the id of an image. Tasks without pseudo-labels are left out;
    without any, nothing is drawn.
    """
    columns = {
        task.name: _task_column(task, batch, pseudo_labels[task.name]) for task in tasks if task.name in pseudo_labels
    }
    if not columns:
        return []
    drawn = []
    for k, (name, image) in enumerate(zip(batch["id"], batch["image"], strict=True)):
        rows: dict[str, dict[str, np.ndarray | str]] = {"label": {}, "pseudo-label": {}, "confidence": {}}
        for task, pictures in columns.items():
            for cells, picture in zip(rows.values(), pictures, strict=True):
                cells[task] = to_uint8(picture[k])
            if not batch["labeled"][task][k]:
                rows["label"][task] = "no label"
        headers = {task: column_header(task, origin_of(batch, task, k)) for task in columns}
        rows["label"] = {headers[task]: cell for task, cell in rows["label"].items()}
        drawn.append(PanelEntry(f"{kind} {name}", to_uint8(image), [*rows.items()]))
    return drawn


def _task_column(task: Task, batch: Batch, pseudo_label: PseudoLabel) -> list[Tensor]:
    """Draw label, pseudo-label above the threshold, and confidence, each uint8 ``b 3 h w``."""
    label, confidence = (values.cpu() for values in pseudo_label)
    mask = task.confidence_mask(confidence) & batch["valid"]
    label = label.where(mask, IGNORE_INDEX) if label.ndim == 3 else label.where(mask[:, None], torch.nan)
    return [task.colorize(batch[task.name]), task.colorize(label), heatmap(confidence)]


def draw_affinity(affinity: Tensor, names: Sequence[str]) -> np.ndarray:
    """Draw a heat map per scale or group of channels, of the affinity ``s t t`` in percent, as uint8 ``h w 3``."""
    titles = [f"{scale + 1} of {len(affinity)}" for scale in range(len(affinity))]
    return np.hstack([draw_matrix(title, names, shares) for title, shares in zip(titles, affinity, strict=True)])
