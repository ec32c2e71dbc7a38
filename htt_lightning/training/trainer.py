"""Lightning's trainer with five commands more.

``discover`` writes the labels that a dataset lacks; ``check`` reads a dataset and names what is broken in it;
``export`` writes a trained network for other programs; ``report`` compares runs; and ``info`` describes an installation
or a run.
"""

import shutil
import warnings
from itertools import chain
from pathlib import Path
from typing import Any, cast

import lightning as L
import numpy as np
from einops import rearrange
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.utilities.exceptions import SIGTERMException
from rich.console import Console
from torch.utils.data import DataLoader

from htt_lightning.callbacks import LabelDiscovery
from htt_lightning.commands.check.command import check
from htt_lightning.commands.export import export
from htt_lightning.commands.info import info
from htt_lightning.commands.report import report
from htt_lightning.data.batch import Batch
from htt_lightning.data.datamodule import PartialLabelDataModule
from htt_lightning.data.pseudo_labels import PseudoLabelStore, sha256_of
from htt_lightning.data.samplers import PaddedEvalSampler
from htt_lightning.errors import HTTError
from htt_lightning.io.checkpoints import AtomicCheckpointIO, read_checkpoint
from htt_lightning.io.files import remove_partial_files
from htt_lightning.module import HTTModule
from htt_lightning.training.resume import AUTO, LAST, is_requeued, newest_checkpoint
from htt_lightning.training.signals import sync_sigterm_across_ranks


class HTTTrainer(L.Trainer):
    """``lightning.Trainer`` that can check and complete a dataset, export a network, and compare runs."""

    export, report, info = staticmethod(export), staticmethod(report), staticmethod(info)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if type(self.strategy.checkpoint_io) is TorchCheckpointIO:  # keep a plugin of the user
            self.strategy.checkpoint_io = AtomicCheckpointIO()
        sync_sigterm_across_ranks(self)

    def fit(
        self,
        model: L.LightningModule,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        datamodule: L.LightningDataModule | None = None,
        ckpt_path: str | Path | None = None,
        weights_only: bool | None = None,
    ) -> None:
        """Train; a run that was interrupted goes on.

        Args:
            model: The model.
            train_dataloaders: Loaders, or a datamodule.
            val_dataloaders: Loaders of validation images.
            datamodule: The dataset and its label mask.
            ckpt_path: Checkpoint to go on from; ``auto`` for the newest whole one of this run where the loggers keep
                their runs, ``last`` for the newest whole one whose name begins so. If there is none, the run begins
                from the start. A job that SLURM has requeued does as with ``auto``.
            weights_only: As in ``torch.load``.
        """
        if ckpt_path is None and is_requeued():
            ckpt_path = AUTO
        if ckpt_path in (AUTO, LAST):
            ckpt_path = newest_checkpoint(self, model, str(ckpt_path))
        super().fit(model, train_dataloaders, val_dataloaders, datamodule, ckpt_path, weights_only)

    def save_checkpoint(
        self, filepath: str | Path, weights_only: bool | None = None, storage_options: Any = None
    ) -> None:
        """Save a checkpoint, but none where SLURM's signal happens to find the run.

        No run goes on exactly from the middle of an epoch, and the next in this directory, whichever, would load it.
        """
        if not Path(filepath).name.startswith("hpc_ckpt_"):
            super().save_checkpoint(filepath, weights_only, storage_options)

    def discover(
        self, model: HTTModule, datamodule: PartialLabelDataModule, ckpt_path: str, out: str, overwrite: bool = False
    ) -> None:
        """Run a trained network over the training images and write the labels they lack, with their confidence.

        What is there already is kept, so an interrupted command goes on where it stopped; given labels are not touched.
        Train on the result with ``data.pseudo_labels``.

        Args:
            model: The model; its weights come from the checkpoint.
            datamodule: The dataset and its label mask.
            ckpt_path: Checkpoint of the network that discovers.
            out: Folder for the completed dataset.
            overwrite: Whether what another checkpoint or dataset has written there may be deleted.

        Raises:
            HTTError: The checkpoint does not fit, the folder holds something else, or it cannot be written.
        """
        checkpoint = read_checkpoint(ckpt_path, "--ckpt_path")
        model.on_load_checkpoint(checkpoint)
        model.load_state_dict(checkpoint["state_dict"])
        datamodule.prepare_data()
        rules = [
            callback.tasks_with_overrides(model)
            for callback in cast(Any, self).callbacks
            if isinstance(callback, LabelDiscovery)
        ]
        thresholds = {task.name: task.confidence_threshold for task in next(iter(rules), model.tasks)}
        made_by = {"name": Path(ckpt_path).name, "sha256": sha256_of(Path(ckpt_path)), "thresholds": thresholds}
        discoverer = _Discoverer(model, datamodule, PseudoLabelStore(Path(out)), made_by, overwrite)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Total length of `list` across ranks is zero")  # everything is there
            self.predict(discoverer, return_predictions=False)
        if self.is_global_zero:
            Console().out(discoverer.completed.manifest_path, highlight=False)

    @staticmethod
    def check(
        datamodule: PartialLabelDataModule, out: str | None = None, overwrite: bool = False, images: int = 6
    ) -> None:
        """Read a dataset as training would, describe what it holds, and name every file that is broken.

        Hidden labels are not touched, and no model is built. Warnings, such as a class that never occurs, are no
        faults.

        Args:
            datamodule: The dataset and its label mask.
            out: Folder for ``check.json``, ``label_mask.json`` and ``contact_sheet.png``; by default the figures
                are only printed.
            overwrite: Whether files that are there may be replaced.
            images: Number of images on the contact sheet.

        Raises:
            HTTError: The dataset has faults or cannot be opened, or the folder is not empty or cannot be written.
        """
        check(datamodule, out, overwrite, num_images=images)


class _Discoverer(L.LightningModule):
    """Predicts, and writes what each image lacks."""

    def __init__(
        self,
        model: HTTModule,
        datamodule: PartialLabelDataModule,
        completed: PseudoLabelStore,
        made_by: dict[str, Any],
        overwrite: bool,
    ) -> None:
        super().__init__()
        self.model, self.datamodule, self.completed = model, datamodule, completed
        self.made_by, self.overwrite = made_by, overwrite
        self.absent: set[str] = set()
        self.given = datamodule.labels_per_image("train", datamodule.build_dataset("train"))
        able = [task for task in model.tasks if task.supports_pseudo_labels]
        self.lacking = {name: [t for t in able if t.name not in given] for name, given in self.given.items()}

    def manifest(self) -> dict[str, Any]:
        """Where the labels come from, and which are given."""
        images = {
            name: dict.fromkeys(given, "ground_truth") | {task.name: "pseudo_label" for task in self.lacking[name]}
            for name, given in self.given.items()
        }
        return {"dataset": self.datamodule.fingerprint(), "checkpoint": self.made_by, "images": images}

    def predict_dataloader(self) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        """The images that lack an archive; the first process looks, once all of them have met."""
        if self.trainer.is_global_zero:
            begin(self.completed, self.manifest(), self.overwrite)
        lacking = [name for name, tasks in self.lacking.items() if tasks]
        self.absent = {name for name in lacking if not self.completed.path(name).is_file()}
        self.absent = self.trainer.strategy.broadcast(self.absent)
        if not self.absent:
            return []
        batch = self.datamodule.eval_batch_size(self.datamodule.train_images_for_eval(lacking))
        # Batches as an uninterrupted command has them: in others, sums are rounded otherwise.
        size = batch * self.trainer.world_size
        groups = [lacking[start : start + size] for start in range(0, len(lacking), size)]
        images = self.datamodule.train_images_for_eval(
            chain(*(group for group in groups if not self.absent.isdisjoint(group)))
        )
        sampler = PaddedEvalSampler(len(images), self.trainer.global_rank, self.trainer.world_size)
        return self.datamodule.loader(images, batch, sampler=sampler)

    def predict_step(self, batch: Batch, batch_idx: int) -> list[str]:
        """Write one batch; the ids of its images are returned."""
        outputs, size = self.model(batch["image"]), (batch["image"].shape[-2], batch["image"].shape[-1])
        valid = batch["valid"].cpu().numpy()
        maps: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        for task in self.model.tasks:
            found = task.pseudo_label(outputs[task.name], size)
            if found is not None:
                label = found.label[:, 0] if task.field_channels == 1 else found.label
                label = rearrange(label, "b c h w -> b h w c") if label.ndim == 4 else label
                maps[task.name] = label.cpu().numpy(), found.confidence.float().cpu().numpy()
        ids: list[str] = batch["id"]
        for k, name in enumerate(ids):
            if name not in self.absent:
                continue
            rows, columns = np.flatnonzero(valid[k].any(1)), np.flatnonzero(valid[k].any(0))
            inside = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
            cut = {t.name: (t, *(values[k][inside] for values in maps[t.name])) for t in self.lacking[name]}
            self.completed.write(name, cut)
        if self.trainer.received_sigterm:  # which Lightning only notes
            raise SIGTERMException
        return ids


def begin(completed: PseudoLabelStore, manifest: dict[str, Any], overwrite: bool) -> None:
    """Go on with a folder that holds the same; refuse one that does not, or delete what it holds.

    Args:
        completed: The folder.
        manifest: Of the labels to be written.
        overwrite: Whether another completed dataset may be deleted.

    Raises:
        HTTError: The folder holds something else.
    """
    folder = completed.folder
    if folder.is_file():
        raise HTTError(f"--out {folder} is a file; name a folder.")
    remove_partial_files(folder)
    if folder.is_dir() and any(folder.iterdir()):
        if not completed.manifest_path.is_file():
            raise HTTError(f"{folder} is not empty and no completed dataset; choose another --out.")
        stored = completed.manifest()
        # Archives hold every pixel with its confidence, so other thresholds change nothing in them.
        differ = [key for key in ("dataset", "images") if stored[key] != manifest[key]]
        differ += ["checkpoint"] if stored["checkpoint"]["sha256"] != manifest["checkpoint"]["sha256"] else []
        if differ and not overwrite:
            raise HTTError(
                f"{folder} was written with another {' and '.join(differ)}; choose another --out, or give "
                "--overwrite true to delete what is there."
            )
        if differ and (folder / "maps").exists():
            try:
                shutil.rmtree(folder / "maps")
            except OSError as error:
                raise HTTError(f"Cannot delete {folder / 'maps'}: {error.strerror}.") from error
    completed.write_manifest(manifest)
