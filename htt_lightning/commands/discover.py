"""The command ``discover``: write pseudo-labels for the labels that training images lack."""

import shutil
import warnings
from itertools import chain
from pathlib import Path
from typing import Any, cast

import lightning as L
import numpy as np
from einops import rearrange
from lightning.pytorch.utilities.exceptions import SIGTERMException
from rich.console import Console
from torch.utils.data import DataLoader

from htt_lightning.callbacks import LabelDiscovery
from htt_lightning.data.batch import Batch
from htt_lightning.data.datamodule import PartialLabelDataModule
from htt_lightning.data.origin import Origin
from htt_lightning.data.pseudo_labels import PseudoLabelStore, sha256_of
from htt_lightning.data.samplers import PaddedEvalSampler
from htt_lightning.errors import ConfigError
from htt_lightning.io.checkpoints import read_checkpoint
from htt_lightning.io.files import remove_partial_files
from htt_lightning.module import HTTModule
from htt_lightning.tasks import PseudoLabel


def discover(
    trainer: L.Trainer,
    model: HTTModule,
    datamodule: PartialLabelDataModule,
    ckpt_path: str,
    out: str,
    overwrite: bool = False,
) -> None:
    """Write pseudo-labels, with their confidence, for the labels that training images lack.

    Existing files are kept, so an interrupted command resumes, and so are rejections. Train on the result with
    ``data.pseudo_labels``.

    Args:
        trainer: Trainer whose devices run the network.
        model: Module that receives the weights of the checkpoint.
        datamodule: Dataset with its label mask.
        ckpt_path: Checkpoint of the network that makes the pseudo-labels.
        out: Folder for the pseudo-labels.
        overwrite: If true, pseudo-labels of another checkpoint or dataset are deleted from the folder first.

    Raises:
        HTTError: The checkpoint does not fit, or the folder holds something else or cannot be written.
    """
    checkpoint = read_checkpoint(ckpt_path, "--ckpt_path")
    model.on_load_checkpoint(checkpoint)
    model.load_state_dict(checkpoint["state_dict"])
    datamodule.prepare_data()
    callbacks = [callback for callback in cast(Any, trainer).callbacks if isinstance(callback, LabelDiscovery)]
    tasks = callbacks[0].tasks_with_overrides(model) if callbacks else model.tasks
    provenance = {
        "name": Path(ckpt_path).name,
        "sha256": sha256_of(Path(ckpt_path)),
        "thresholds": {task.name: task.confidence_threshold for task in tasks},
    }
    writer = _PseudoLabelWriter(model, datamodule, PseudoLabelStore(Path(out)), provenance, overwrite)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Total length of `list` across ranks is zero")  # every file exists
        trainer.predict(writer, return_predictions=False)
    if trainer.is_global_zero:
        Console().out(writer.store.manifest_path, highlight=False)


class _PseudoLabelWriter(L.LightningModule):
    """Predict, and write the labels that each image lacks."""

    def __init__(
        self,
        model: HTTModule,
        datamodule: PartialLabelDataModule,
        store: PseudoLabelStore,
        provenance: dict[str, Any],
        overwrite: bool,
    ) -> None:
        super().__init__()
        self.model, self.datamodule, self.store = model, datamodule, store
        self.provenance, self.overwrite = provenance, overwrite
        self.pending: set[str] = set()  # ids of the images without a file
        self.labels = datamodule.origins_per_image(datamodule.build_dataset("train"))
        tasks = [task for task in model.tasks if task.supports_pseudo_labels]
        self.missing = {name: [t for t in tasks if t.name not in own] for name, own in self.labels.items()}

    def manifest(self) -> dict[str, Any]:
        """Return the origin of the pseudo-labels, and the origin of each label by image."""
        images = {
            name: own | {task.name: Origin.DISCOVERED for task in self.missing[name]}
            for name, own in self.labels.items()
        }
        return {"dataset": self.datamodule.fingerprint(), "checkpoint": self.provenance, "images": images}

    def predict_dataloader(self) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        """Return a loader of the images without a file; rank 0 searches them when all ranks are running."""
        if self.trainer.is_global_zero:
            prepare_folder(self.store, self.manifest(), self.overwrite)
        names = [name for name, tasks in self.missing.items() if tasks]
        rejected, lacking = self.store.rejected(), self.missing
        wanted = [name for name in names if {task.name for task in lacking[name]} - {*rejected.get(name, ())}]
        self.pending = {name for name in wanted if not self.store.path(name).is_file()}
        self.pending = self.trainer.strategy.broadcast(self.pending)
        if not self.pending:
            return []
        batch_size = self.datamodule.eval_batch_size(self.datamodule.train_images_for_eval(names))
        # Batches equal those of an uninterrupted command: in others, sums are rounded differently.
        step = batch_size * self.trainer.world_size
        groups = [names[start : start + step] for start in range(0, len(names), step)]
        images = self.datamodule.train_images_for_eval(
            chain(*(group for group in groups if not self.pending.isdisjoint(group)))
        )
        sampler = PaddedEvalSampler(images, self.trainer.world_size, self.trainer.global_rank)
        return self.datamodule.loader(images, batch_size, sampler=sampler)

    def predict_step(self, batch: Batch, batch_idx: int) -> list[str]:
        """Write the pseudo-labels of a batch and return the ids of its images."""
        outputs, size = self.model(batch["image"]), (batch["image"].shape[-2], batch["image"].shape[-1])
        found = {task.name: task.pseudo_label(outputs[task.name], size) for task in self.model.tasks}
        arrays = {name: to_arrays(label) for name, label in found.items() if label is not None}
        names: list[str] = batch["id"]
        for k, (name, valid) in enumerate(zip(names, batch["valid"].cpu().numpy(), strict=True)):
            if name in self.pending:
                rows, columns = np.flatnonzero(valid.any(1)), np.flatnonzero(valid.any(0))
                unpadded = (k, slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
                maps = {
                    task.name: (task, label[unpadded], confidence[unpadded])
                    for task in self.missing[name]
                    for label, confidence in [arrays[task.name]]
                }
                self.store.write(name, maps)
        if self.trainer.received_sigterm:  # Lightning stops only a training run
            raise SIGTERMException
        return names


def to_arrays(found: PseudoLabel) -> tuple[np.ndarray, np.ndarray]:
    """Return the labels of a batch, ``b h w`` or ``b h w c``, and their confidence, ``b h w``."""
    label = found.label
    if label.ndim == 4:
        label = label[:, 0] if label.shape[1] == 1 else rearrange(label, "b c h w -> b h w c")
    return label.cpu().numpy(), found.confidence.float().cpu().numpy()


def prepare_folder(store: PseudoLabelStore, manifest: dict[str, Any], overwrite: bool) -> None:
    """Prepare a folder for pseudo-labels, and write its manifest; ``overwrite`` deletes those of another manifest.

    Labels that were rejected stay so.
    """
    folder = store.folder
    if folder.is_file():
        raise ConfigError(f"--out must be a folder, got the file {folder}.")
    remove_partial_files(folder)
    if folder.is_dir() and any(folder.iterdir()):
        if not store.manifest_path.is_file():
            raise ConfigError(f"--out must be empty or a folder of pseudo-labels, got {folder}. Choose another one.")
        stored = store.manifest()
        # Files hold every pixel with its confidence, so other thresholds change nothing in them.
        changed = [key for key in ("dataset", "images") if stored[key] != manifest[key]]
        changed += ["checkpoint"] if stored["checkpoint"]["sha256"] != manifest["checkpoint"]["sha256"] else []
        if changed and not overwrite:
            differences = " and ".join(changed)
            raise ConfigError(
                f"--out {folder} was written with another {differences}. To delete it, add --overwrite true."
            )
        if changed and (folder / "maps").exists():
            shutil.rmtree(folder / "maps")
        if not changed and "rejected" in stored:
            manifest = manifest | {"rejected": stored["rejected"]}
    store.write_manifest(manifest)
