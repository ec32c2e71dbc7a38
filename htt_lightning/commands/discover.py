"""The command ``discover``: write pseudo-labels for the labels that training images lack."""

import hashlib
import shutil
import warnings
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, cast

import lightning as L
import numpy as np
import torch
from einops import rearrange
from lightning.pytorch.utilities.exceptions import SIGTERMException
from rich.console import Console
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, default_collate

from htt_lightning.callbacks import LabelDiscovery
from htt_lightning.data.batch import Batch, SampleIndex, unpadded_window
from htt_lightning.data.datamodule import PartialLabelDataModule
from htt_lightning.data.dataset import PartialLabelDataset
from htt_lightning.data.origin import Origin
from htt_lightning.data.pseudo_labels import PseudoLabelStore
from htt_lightning.data.samplers import PaddedEvalSampler
from htt_lightning.discovery.outside import Alignment, TeacherOptions
from htt_lightning.discovery.outside.fit import build_teachers, fit_to_given_labels, image_sizes
from htt_lightning.discovery.outside.hub import HubTeacher
from htt_lightning.discovery.outside.maps import MapTeacher
from htt_lightning.discovery.outside.teacher import LabelWithConfidence, OutsideTeacher
from htt_lightning.errors import ConfigError
from htt_lightning.io.checkpoints import read_checkpoint
from htt_lightning.io.files import remove_partial_files
from htt_lightning.module import HTTModule
from htt_lightning.tasks import PseudoLabel, Task


def discover(
    trainer: L.Trainer,
    model: HTTModule,
    datamodule: PartialLabelDataModule,
    out: str,
    ckpt_path: str | None = None,
    teachers: dict[str, TeacherOptions] | None = None,
    overwrite: bool = False,
) -> None:
    """Write pseudo-labels, with their confidence, for the labels that training images lack.

    Existing files are kept, so an interrupted command resumes, and so are rejections. Train on the result with
    ``data.pseudo_labels``.

    Args:
        trainer: Trainer whose devices run the network.
        model: Module that receives the weights of the checkpoint.
        datamodule: Dataset with its label mask.
        out: Folder for the pseudo-labels.
        ckpt_path: Checkpoint of the network that makes the pseudo-labels of the tasks without a teacher from outside.
            Without one their labels stay missing.
        teachers: Teachers from outside by task, or a file with them: models that others trained, or maps that another
            program wrote.
        overwrite: If true, pseudo-labels of another checkpoint, teacher or dataset are deleted from the folder first.

    Raises:
        HTTError: The checkpoint or a teacher does not fit, or the folder holds something else or cannot be written.
    """
    if not ckpt_path and not teachers:
        raise ConfigError("--ckpt_path must be a checkpoint, or --teachers must have teachers by task, got neither.")
    tasks = _tasks_with_thresholds(trainer, model)
    checkpoint = _load_checkpoint(model, tasks, ckpt_path) if ckpt_path else None
    outside = build_teachers(teachers or {}, datamodule.tasks)
    datamodule.prepare_data()
    store = PseudoLabelStore(Path(out))
    writer = PseudoLabelWriter(model if ckpt_path else None, tasks, datamodule, store, checkpoint, outside, overwrite)
    for name, fit in writer.fit(trainer.strategy.root_device).items():
        if fit and trainer.is_global_zero:
            Console(soft_wrap=True).out(f"{name} from outside: {fit}", highlight=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Total length of `list` across ranks is zero")  # every file exists
        trainer.predict(writer, return_predictions=False)
    if trainer.is_global_zero:
        lines = [store.summary(), *writer.confident_shares(), store.manifest_path]
        Console(soft_wrap=True).out(*lines, sep="\n", highlight=False)


def _tasks_with_thresholds(trainer: L.Trainer, model: HTTModule) -> Sequence[Task]:
    """Return the tasks of a model with the confidence thresholds of the options ``discovery``."""
    callbacks = [callback for callback in cast(Any, trainer).callbacks if isinstance(callback, LabelDiscovery)]
    return callbacks[0].tasks_with_overrides(model) if callbacks else model.tasks


def _load_checkpoint(model: HTTModule, tasks: Sequence[Task], path: str) -> dict[str, Any]:
    """Load the weights of a checkpoint, and return its description for the manifest."""
    checkpoint = read_checkpoint(path, "--ckpt_path")
    model.on_load_checkpoint(checkpoint)
    model.load_state_dict(checkpoint["state_dict"])
    thresholds = {task.name: task.confidence_threshold for task in tasks}
    with Path(path).open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return {"name": Path(path).name, "sha256": sha256, "thresholds": thresholds}


class TeacherInputs(Dataset[Batch]):
    """Images, if a teacher reads them, with the labels of the teachers that read maps."""

    def __init__(
        self,
        images: PartialLabelDataset,
        reads_images: bool,
        teachers: Sequence[MapTeacher],
        missing: Mapping[str, Sequence[Task]],
    ) -> None:
        self.images, self.reads_images, self.teachers, self.missing = images, reads_images, teachers, missing

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: SampleIndex) -> Batch:
        """Read an image and its maps."""
        name = self.images.ids[key.dataset_index]
        sample: Batch = self.images[key] if self.reads_images else {"id": name}
        tasks = self.missing[name]
        sample["is_padding"] = key.is_padding
        sample["maps"] = {each.task.name: each.label(name) for each in self.teachers if each.task in tasks}
        return sample


def collate(samples: list[Batch]) -> Batch:
    """Stack all but the maps, which are of some tasks alone."""
    maps = [sample.pop("maps") for sample in samples]
    return {**default_collate(samples), "maps": maps}


class PseudoLabelWriter(L.LightningModule):
    """Run the teachers, and write the labels that each image lacks.

    Args:
        model: Network that labels the tasks without a teacher from outside; None leaves these labels missing.
        confidence_tasks: Tasks whose confidence masks training will apply.
        datamodule: Dataset with its label mask.
        store: Folder for the pseudo-labels.
        checkpoint: Description of the network.
        outside: Teachers from outside, by task.
        overwrite: Whether pseudo-labels of another origin are deleted first.
    """

    pixels: Tensor

    def __init__(
        self,
        model: HTTModule | None,
        confidence_tasks: Sequence[Task],
        datamodule: PartialLabelDataModule,
        store: PseudoLabelStore,
        checkpoint: dict[str, Any] | None,
        outside: Mapping[str, OutsideTeacher],
        overwrite: bool,
    ) -> None:
        super().__init__()
        self.model, self.datamodule, self.store = model, datamodule, store
        self.checkpoint, self.outside, self.overwrite = checkpoint, outside, overwrite
        self.map_teachers = [teacher for teacher in outside.values() if isinstance(teacher, MapTeacher)]
        self.hub_teachers = [teacher for teacher in outside.values() if isinstance(teacher, HubTeacher)]
        self.hub_models = nn.ModuleList([teacher.model for teacher in self.hub_teachers])  # to be moved to the device
        self.pending: set[str] = set()  # ids of the images without a file
        self.dataset = datamodule.build_dataset("train")
        self.labels = datamodule.origins_per_image(self.dataset)
        tasks = [task for task in datamodule.tasks if task.supports_pseudo_labels and (model or task.name in outside)]
        self.missing = {name: [t for t in tasks if t.name not in own] for name, own in self.labels.items()}
        self.network_tasks = [task for task in tasks if task.name not in outside]
        self.confidence_tasks = confidence_tasks
        # Numbers of confident pixels and of all pixels that this command has written, ``t 2``.
        self.register_buffer("pixels", torch.zeros(len(confidence_tasks), 2, dtype=torch.long))

    def fit(self, device: torch.device) -> dict[str, str]:
        """Check the teachers from outside, align them with given labels, and describe the fits by task.

        An interrupted command goes on with its own alignment. Models run on the device.
        """
        indices = {name: index for index, name in enumerate(self.dataset.ids)}
        lacking = [name for name, tasks in self.missing.items() if tasks] if self.map_teachers else []
        sizes = {name: image_sizes(self.datamodule, self.dataset, indices[name]) for name in lacking}
        for teacher in self.map_teachers:
            teacher.check({name: size for name, size in sizes.items() if teacher.task in self.missing[name]})
        stored = self.store.manifest() if self.store.manifest_path.is_file() else {}
        same = stored and not changes(stored, self.manifest())
        earlier = stored.get("teachers", {}) if same else {}
        self.hub_models.to(device)
        return {name: self._fit(teacher, earlier.get(name, {})) for name, teacher in self.outside.items()}

    def _fit(self, teacher: OutsideTeacher, earlier: Mapping[str, Any]) -> str:
        if "alignment" not in earlier:
            return fit_to_given_labels(teacher, self.datamodule)
        teacher.alignment = Alignment(**earlier["alignment"])
        return teacher.alignment.summary

    def manifest(self) -> dict[str, Any]:
        """Return the teachers of the pseudo-labels, and the origin of each label by image."""
        images = {
            name: self.labels[name]
            | {t.name: Origin.OUTSIDE if t.name in self.outside else Origin.DISCOVERED for t in tasks}
            for name, tasks in self.missing.items()
        }
        teachers = {name: teacher.provenance() for name, teacher in self.outside.items()}
        fingerprint = self.datamodule.fingerprint()
        return {"dataset": fingerprint, "checkpoint": self.checkpoint, "teachers": teachers, "images": images}

    def predict_dataloader(self) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        """Return a loader of the images without a file; rank 0 searches them when all ranks are running."""
        if self.trainer.is_global_zero:
            prepare_folder(self.store, self.manifest(), self.overwrite)
        names = [name for name, tasks in self.missing.items() if tasks]
        rejected = self.store.rejected()
        wanted = [name for name in names if {task.name for task in self.missing[name]} - {*rejected.get(name, ())}]
        self.pending = {name for name in wanted if not self.store.path(name).is_file()}
        self.pending = self.trainer.strategy.broadcast(self.pending)
        if not self.pending:
            return []
        reads_images = bool(self.network_tasks or self.hub_teachers)
        images = self.datamodule.train_images_for_eval(names)
        batch_size = self.datamodule.eval_batch_size(images) if reads_images else self.datamodule.batch_size
        # Batches equal those of an uninterrupted command: in others, sums are rounded differently.
        step = batch_size * self.trainer.world_size
        groups = [names[start : start + step] for start in range(0, len(names), step)]
        images = self.datamodule.train_images_for_eval(
            chain(*(group for group in groups if not self.pending.isdisjoint(group)))
        )
        inputs = TeacherInputs(images, reads_images, self.map_teachers, self.missing)
        sampler = PaddedEvalSampler(inputs, self.trainer.world_size, self.trainer.global_rank)
        return self.datamodule.loader(inputs, batch_size, sampler=sampler, collate_fn=collate)

    def predict_step(self, batch: Batch, batch_idx: int) -> list[str]:
        """Write the pseudo-labels of a batch and return the ids of its images."""
        names: list[str] = batch["id"]
        found: list[dict[str, LabelWithConfidence]] = batch["maps"]
        if "image" in batch:
            self._run_models(batch, found)
        for name, labels, is_padding in zip(names, found, batch["is_padding"], strict=True):
            if name in self.pending and not is_padding:  # another rank writes the image
                maps = {task.name: (task, *labels[task.name]) for task in self.missing[name]}
                self.store.write(name, maps)
                for row, task in enumerate(self.confidence_tasks):
                    if task.name in maps:
                        confident = task.confidence_mask(torch.from_numpy(labels[task.name][1]))
                        self.pixels[row] += torch.tensor([confident.sum(), confident.numel()], device=self.device)
        if self.trainer.received_sigterm:  # Lightning stops only a training run
            raise SIGTERMException
        return names

    def on_predict_epoch_end(self) -> None:
        """Add up the pixels of all ranks."""
        self.pixels = self.trainer.strategy.reduce(self.pixels, reduce_op="sum")

    def confident_shares(self) -> list[str]:
        """Describe, in one line, the share of confident pixels by task; without new labels there is no line."""
        counts = zip(self.confidence_tasks, self.pixels.tolist(), strict=True)
        shares = [f"{task.name} {100 * confident / total:.1f} %" for task, (confident, total) in counts if total]
        return [f"Confident pixels of the labels written now: {', '.join(shares)}"] if shares else []

    def _run_models(self, batch: Batch, found: list[dict[str, LabelWithConfidence]]) -> None:
        """Add the labels that the network and the models from outside give to the images of a batch."""
        windows = [unpadded_window(valid) for valid in batch["valid"].cpu().numpy()]
        for teacher in self.hub_teachers:
            places = [k for k, name in enumerate(batch["id"]) if teacher.task in self.missing[name]]
            images = [batch["image"][k][:, *windows[k]] for k in places]
            for k, prediction in zip(places, teacher.predict(images) if images else (), strict=True):
                found[k][teacher.task.name] = teacher.finish(*prediction)
        if self.model is None or not self.network_tasks:
            return
        outputs, size = self.model(batch["image"]), (batch["image"].shape[-2], batch["image"].shape[-1])
        for task in self.network_tasks:
            label = task.pseudo_label(outputs[task.name], size)
            assert label is not None
            labels, confidences = to_arrays(label)
            for k, window in enumerate(windows):
                found[k][task.name] = labels[k][window], confidences[k][window]


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
        changed = changes(stored, manifest)
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


def changes(stored: Mapping[str, Any], manifest: Mapping[str, Any]) -> list[str]:
    """Name the parts in which two manifests are of other labels.

    Files hold every pixel with its confidence, so other thresholds change nothing in them. An alignment follows from
    the rest, but for rounding.
    """

    def parts(one: Mapping[str, Any]) -> dict[str, Any]:
        checkpoint = (one["checkpoint"] or {}).get("sha256")
        teachers = {name: {**each, "alignment": None} for name, each in one.get("teachers", {}).items()}
        return {"dataset": one["dataset"], "images": one["images"], "checkpoint": checkpoint, "teachers": teachers}

    before, now = parts(stored), parts(manifest)
    return [part for part in now if before[part] != now[part]]
