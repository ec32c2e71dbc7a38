"""Lightning's trainer with one command more: ``discover``, which writes the labels that a dataset lacks."""

import shutil
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from einops import rearrange
from rich.console import Console

from htt_lightning.data.base import PartialLabelDataModule
from htt_lightning.data.completed import CompletedDataset, fingerprint_of
from htt_lightning.data.partial import PartialLabels
from htt_lightning.data.sample import Batch
from htt_lightning.errors import HTTError
from htt_lightning.files import read_hyperparameters
from htt_lightning.module import HTTModule


class HTTTrainer(L.Trainer):
    """``lightning.Trainer`` that can complete a dataset."""

    def discover(
        self, model: HTTModule, datamodule: PartialLabelDataModule, ckpt_path: str, out: str, overwrite: bool = False
    ) -> None:
        """Run a trained network over the training images and write the labels they lack, with their confidence.

        What is there already is kept, so an interrupted command goes on where it stopped; given labels are not touched.
        Train on the result with ``data.discovered``.

        Args:
            model: The model; its weights come from the checkpoint.
            datamodule: The dataset and its label mask.
            ckpt_path: Checkpoint of the network that discovers.
            out: Folder for the completed dataset.
            overwrite: Whether what another checkpoint or dataset has written there may be deleted.

        Raises:
            HTTError: The checkpoint does not fit, the folder holds something else, or it cannot be written.
        """
        read_hyperparameters(ckpt_path, "--ckpt_path")
        checkpoint = torch.load(ckpt_path, map_location="cpu", weights_only=True)
        model.on_load_checkpoint(checkpoint)
        model.load_state_dict(checkpoint["state_dict"])
        datamodule.prepare_data()
        images, completed = datamodule.unaugmented(), CompletedDataset(Path(out))
        if self.is_global_zero:
            _begin(completed, _manifest(model, datamodule, images, ckpt_path), overwrite)
        self.strategy.barrier("discover")
        absent = [k for k, name in enumerate(images.ids) if images.lacking(k) and not completed.path(name).is_file()]
        if absent:
            loader = datamodule.loader(images, sampler=absent)
            self.predict(_Discoverer(model, completed, images), dataloaders=loader, return_predictions=False)
        if self.is_global_zero:
            Console().out(completed.manifest_path, highlight=False)


class _Discoverer(L.LightningModule):
    """Predicts, and writes what each image lacks."""

    def __init__(self, model: HTTModule, completed: CompletedDataset, images: PartialLabels) -> None:
        super().__init__()
        self.model, self.completed = model, completed
        self.lacking = {name: images.lacking(k) for k, name in enumerate(images.ids)}

    def predict_step(self, batch: Batch, batch_idx: int) -> list[str]:
        """Write one batch; the ids of its images are returned."""
        outputs, size = self.model(batch["image"]), (batch["image"].shape[-2], batch["image"].shape[-1])
        valid = batch["valid"].cpu().numpy()
        maps: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for task in self.model.tasks:
            found = task.discover(outputs[task.name], size)
            if found is not None:
                label = found.label[:, 0] if task.channels == 1 else found.label
                label = rearrange(label, "b c h w -> b h w c") if label.ndim == 4 else label
                maps[task.name] = label.cpu().numpy(), found.confidence.float().cpu().numpy()
        for k, name in enumerate(batch["id"]):
            rows, columns = np.flatnonzero(valid[k].any(1)), np.flatnonzero(valid[k].any(0))
            inside = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
            self.completed.write(
                name,
                {
                    task.name: (task, maps[task.name][0][k][inside], maps[task.name][1][k][inside])
                    for task in self.lacking[name]
                    if task.name in maps
                },
            )
        ids: list[str] = batch["id"]
        return ids


def _manifest(
    model: HTTModule, datamodule: PartialLabelDataModule, images: PartialLabels, ckpt_path: str
) -> dict[str, Any]:
    """Where the labels come from, and which are given."""
    lacking = {name: {task.name for task in images.lacking(k)} for k, name in enumerate(images.ids)}
    return {
        "dataset": type(datamodule).__name__,
        "image_size": list(datamodule.image_size) if datamodule.image_size else None,
        "checkpoint": {"name": Path(ckpt_path).name, "sha256": fingerprint_of(Path(ckpt_path))},
        "thresholds": {task.name: task.threshold for task in model.tasks},
        "images": {
            name: {task.name: "discovered" if task.name in lacks else "given" for task in model.tasks}
            for name, lacks in lacking.items()
        },
    }


def _begin(completed: CompletedDataset, manifest: dict[str, Any], overwrite: bool) -> None:
    """Go on with a folder that has the same manifest, refuse or empty one that has not."""
    folder = completed.folder
    if folder.exists() and any(folder.iterdir()):
        try:
            stored = completed.manifest()
        except HTTError as error:
            if not overwrite:
                raise HTTError(f"{folder} is not empty and no completed dataset; choose another --out.") from error
            stored = {}
        differ = [key for key, value in manifest.items() if stored.get(key) != value]
        if not differ:
            return
        if not overwrite:
            raise HTTError(
                f"{folder} was written with another {' and '.join(differ)}; choose another --out, or give "
                "--overwrite true to delete what is there."
            )
        shutil.rmtree(folder / "maps", ignore_errors=True)
    completed.write_manifest(manifest)
