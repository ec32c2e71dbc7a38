"""Predictions on disk, as they come."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from einops import rearrange
from lightning.pytorch.callbacks import BasePredictionWriter
from PIL import Image
from rich.console import Console

from htt_lightning.files import atomic_path, refuse_existing, run_directory
from htt_lightning.module import HTTModule


class PredictionWriter(BasePredictionWriter):
    """Writes each image's maps as ``<id>_<task>.npy``, and ``<id>_<task>.png`` to look at.

    Index maps are int64 ``h w``, probabilities float32 ``h w``, fields float32 ``c h w`` in the task's unit.

    Args:
        folder: Where to; ``predictions/`` of the run directory by default.
        overwrite: Whether files that are there may be replaced.

    Raises:
        HTTError: From ``setup``: the folder is not empty, or a file.
    """

    def __init__(self, folder: str | None = None, overwrite: bool = False) -> None:
        super().__init__(write_interval="batch")
        self.folder, self.overwrite = folder, overwrite

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Find the folder, which all ranks have to ask for together, before any of them writes."""
        super().setup(trainer, pl_module, stage)
        run = run_directory(trainer)
        folder = self._folder = run and (Path(self.folder) if self.folder else run / "predictions")
        if stage == "predict" and folder:
            refuse_existing(folder, self.overwrite)

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep nothing in memory: what is on disk need not be returned."""
        trainer.predict_loop.return_predictions = False

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say where the files are."""
        if self._folder and trainer.is_global_zero:
            Console().out(self._folder, highlight=False)

    def write_on_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Write one batch; the ids come from the batch, so ranks never write the same file."""
        if self._folder is None or not isinstance(pl_module, HTTModule):
            return
        for task in pl_module.tasks:
            maps = prediction[task.name]
            pictures = rearrange(task.colour(maps).cpu(), "b c h w -> b h w c").numpy()
            for name, values, picture in zip(prediction["id"], maps.cpu().numpy(), pictures, strict=True):
                with atomic_path(self._folder / f"{name}_{task.name}.npy") as partial, partial.open("wb") as file:
                    np.save(file, values)
                with atomic_path(self._folder / f"{name}_{task.name}.png") as partial:
                    Image.fromarray(picture).save(partial, format="PNG")
