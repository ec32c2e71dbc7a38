"""Predictions on disk, as they come."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from einops import rearrange
from lightning.pytorch.callbacks import BasePredictionWriter
from PIL import Image

from htt_lightning.files import atomic_path, run_directory
from htt_lightning.module import HTTModule


class PredictionWriter(BasePredictionWriter):
    """Writes each image's maps as ``<id>_<task>.npy``, and ``<id>_<task>.png`` to look at.

    Index maps are int64 ``h w``, probabilities float32 ``h w``, fields float32 ``c h w`` in the task's unit.

    Args:
        folder: Where to; ``predictions/`` of the run directory by default.
    """

    def __init__(self, folder: str | None = None) -> None:
        super().__init__(write_interval="batch")
        self.folder = folder

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Find the run directory, which all ranks have to ask for together."""
        super().setup(trainer, pl_module, stage)
        run = run_directory(trainer)
        self._folder = run and (Path(self.folder) if self.folder else run / "predictions")

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep nothing in memory: what is on disk need not be returned."""
        trainer.predict_loop.return_predictions = False

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
