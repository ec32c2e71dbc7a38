"""From splits with partial labels to loaders: what every datamodule shares."""

import logging
import os
import signal
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import compress
from pathlib import Path
from typing import Any, Literal

import cv2
import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only
from torch import Tensor
from torch.utils.data import DataLoader, SequentialSampler

from htt_lightning.data.batch import Batch, collate, labeled_indices, unlabeled_indices
from htt_lightning.data.task_selection import limit_val_labels, select_tasks
from htt_lightning.data.dataset import DenseDataset, PartialLabelDataset, find_train_val_overlap
from htt_lightning.data.masks.files import check_label_source, read_mask
from htt_lightning.data.masks.label_mask import (
    LabelMask,
    impossible_label_message,
    is_protocol,
    natural_sort,
    sample_mask,
)
from htt_lightning.data.pseudo_labels import PseudoLabelStore, with_pseudo_label_maps
from htt_lightning.data.samplers import PaddedEvalSampler, SeededDistributedSampler
from htt_lightning.data.transforms import AugmentConfig, EvalTransform, TrainTransform
from htt_lightning.errors import HTTError
from htt_lightning.io.run_directory import run_directory
from htt_lightning.tasks import Task

logger = logging.getLogger(__name__)

Split = Literal["train", "val"]
LABEL_MASK = "label_mask.json"
"""Name of the label mask beside a run."""


class PartialLabelDataModule(L.LightningDataModule, ABC):
    """Loaders over a dataset whose training images keep the labels of only some tasks.

    A dataset's module says which tasks it has and where a split lies; everything else is here.

    Args:
        labels: Which training image keeps which label: ``full``, ``one-label``, ``random-label``, or a file (JSON as
            saved beside a run, or a published ``.pth``).
        tasks: Tasks to train: a list of names, or names separated by commas; by default all tasks of the dataset. A
            ``Task`` object replaces the dataset's task of the same name.
        task_overrides: Settings of the dataset's tasks to override, such as ``{edges: {thin_predictions: true}}``.
        batch_size: Images per batch and process.
        image_size: ``[h, w]`` that images are resized to on reading; as stored by default.
        augment: Training augmentation; null for none.
        num_workers: Loader processes; 0 loads in the main process.
        seed: Of label mask, order and augmentation; by default that of the run (``seed_everything``).
        pseudo_labels: Folder that the command ``discover`` has written: training images carry its labels as well.

    Raises:
        HTTError: An argument is wrong, or (from ``prepare_data`` and ``setup``) data are missing or broken.
    """

    def __init__(
        self,
        labels: str = "one-label",
        tasks: str | list[str | Task] | None = None,
        task_overrides: dict[str, dict[str, Any]] | None = None,
        batch_size: int = 6,
        image_size: tuple[int, int] | None = None,
        augment: AugmentConfig | None = AugmentConfig(),  # noqa: B008  # frozen
        num_workers: int = 2,
        seed: int | None = None,
        pseudo_labels: str | None = None,
    ) -> None:
        super().__init__()
        if batch_size < 1 or num_workers < 0:
            raise HTTError(
                f"data.batch_size must be at least 1 and data.num_workers at least 0, not {batch_size}, {num_workers}."
            )
        check_label_source(labels)
        self.labels, self.batch_size, self.num_workers, self.augment = labels, batch_size, num_workers, augment
        self.image_size = (image_size[0], image_size[1]) if image_size else None
        self.canonical_tasks = tuple(task.name for task in self.dataset_tasks())
        self.tasks = select_tasks(self.dataset_tasks(), tasks, task_overrides)
        self.seed = seed
        self.pseudo_labels = PseudoLabelStore(Path(pseudo_labels)) if pseudo_labels else None
        self.mask: LabelMask | None = None

    @abstractmethod
    def dataset_tasks(self) -> list[Task]:
        """The dataset's tasks with its settings, in the canonical order of published masks."""

    @abstractmethod
    def build_dataset(self, split: Split) -> DenseDataset:
        """A split as it lies on disk.

        Args:
            split: ``train`` or ``val``.

        Raises:
            HTTError: It is missing; the message says what.
        """

    @property
    def run_seed(self) -> int:
        """The module's seed, else that of ``seed_everything``, else 0."""
        return int(os.environ.get("PL_GLOBAL_SEED", 0)) if self.seed is None else self.seed

    def label_mask(self, dataset: DenseDataset) -> LabelMask:
        """The label mask over all canonical tasks, whatever tasks the run lists (contracts.md, Label masks).

        Args:
            dataset: The training split.
        """
        mask, ids = self.mask, natural_sort(dataset.ids)
        if is_protocol(self.labels):
            if mask is None or mask.ids != ids or mask.seed not in (None, self.run_seed):
                available = np.stack([dataset.available(task) for task in self.canonical_tasks], 1)
                mask = sample_mask(self.labels, dataset.ids, self.canonical_tasks, self.run_seed, available)
        elif mask is None or mask.ids != ids:
            mask = read_mask(self.labels, dataset.ids, self.canonical_tasks)
            for task, names in self.impossible_labels(mask, dataset).items():
                rank_zero_only(logger.warning)("%s", impossible_label_message(self.labels, task, names))
        self.mask = mask
        return mask

    def impossible_labels(self, mask: LabelMask, dataset: DenseDataset) -> dict[str, list[str]]:
        """Ids of the images that a mask gives a label which they cannot have, by task of the run.

        Args:
            mask: The mask.
            dataset: The training split.
        """
        able = {task.name: set(compress(dataset.ids, dataset.available(task.name))) for task in self.tasks}
        given = {task: compress(mask.ids, mask.labeled[:, mask.tasks.index(task)]) for task in able}
        found = {task: [name for name in names if name not in able[task]] for task, names in given.items()}
        return {task: names for task, names in found.items() if names}

    @property
    def label_summary(self) -> str:
        """How many training images keep which label, in one line; only once the mask is known."""
        return self.mask.description if self.mask else ""

    def labels_per_image(self, split: Split, dataset: DenseDataset) -> dict[str, tuple[str, ...]]:
        """Names of the tasks each image of a split keeps its label of; validation images keep all they have.

        Args:
            split: ``train`` or ``val``.
            dataset: That split.
        """
        names = [task.name for task in self.tasks]
        ids, labeled = dataset.ids, dataset.label_availability(names)
        if split == "train":
            mask = self.label_mask(dataset).select(names)
            ids, labeled = list(mask.ids), mask.labeled
        return {name: tuple(compress(names, row)) for name, row in zip(ids, labeled, strict=True)}

    def partial_label_dataset(self, split: Split, fitting: bool = False) -> PartialLabelDataset:
        """A split as training or evaluation reads it.

        Args:
            split: ``train`` or ``val``.
            fitting: Whether evaluation is that of ``fit``, which scores what ``limit_val_labels`` leaves.
        """
        dataset = self.build_dataset(split)
        if not dataset.ids:
            raise HTTError(f"The {split} split of {type(self).__name__} has no images.")
        labels = self.labels_per_image(split, dataset)
        if split == "val":
            labels = limit_val_labels(labels, self.tasks) if fitting else labels
            return PartialLabelDataset(
                dataset, self.tasks, labels, EvalTransform(self.tasks, self._canvas), self.image_size
            )
        maps = with_pseudo_label_maps(self.tasks) if self.pseudo_labels else self.tasks
        transform = TrainTransform(maps, self.augment, self.image_size)
        return PartialLabelDataset(
            dataset, self.tasks, labels, transform, self.image_size, self.run_seed, self.pseudo_labels
        )

    def train_images_for_eval(self, ids: Iterable[str] | None = None) -> PartialLabelDataset:
        """Training images as evaluation reads them, with the labels they keep.

        Args:
            ids: Which images; all of them by default.
        """
        dataset = self.build_dataset("train")
        labels = self.labels_per_image("train", dataset)
        chosen = labels if ids is None else {name: labels[name] for name in ids}
        return PartialLabelDataset(
            dataset, self.tasks, chosen, EvalTransform(self.tasks, self._canvas), self.image_size
        )

    def requires_uniform_size(self, split: Split) -> bool:
        """Whether images must have one size as stored: training on whole images needs that.

        Args:
            split: ``train`` or ``val``.
        """
        cropped = self.augment is not None and self.augment.crop is not None
        return split == "train" and self.image_size is None and not cropped

    @property
    def _canvas(self) -> tuple[int, int] | None:
        """Least size of images in evaluation."""
        return self.image_size or (self.augment.crop if self.augment else None)

    @property
    def input_size(self) -> dict[str, Any]:
        """What a checkpoint says of the size of images in evaluation; see ``sizes.InputResizer``."""
        least = None if self.image_size else self._canvas
        return {"image_size": self.image_size and list(self.image_size), "min_size": least and list(least)}

    def fingerprint(self) -> dict[str, Any]:
        """What tells this dataset from another: its kind, three images, their size, and what labels mean."""
        dataset = self.build_dataset("train")
        meaning = {task.name: task.output_settings for task in self.tasks}
        size = list(self.image_size) if self.image_size else None
        return {"kind": type(dataset).__name__, "images": dataset.content_hash(), "image_size": size, "tasks": meaning}

    def prepare_data(self) -> None:
        """Check existence and headers of the files of the run, once per machine."""
        fitting = self.trainer is None or self.trainer.state.fn == "fit"
        splits: tuple[Split, ...] = ("train", "val") if fitting else ("val",)
        datasets: dict[Split, DenseDataset] = {}
        for split in splits:
            dataset = datasets[split] = self.build_dataset(split)
            labels = self.labels_per_image(split, dataset)
            dataset.check(labels)
            if split == "train" and self.pseudo_labels:
                self.pseudo_labels.check(labels, self.tasks, self.fingerprint())
        if fitting and (shared := find_train_val_overlap(datasets["train"], datasets["val"])):
            logger.warning("%s", shared)

    def setup(self, stage: str) -> None:
        """Build the splits of a stage; for ``fit``, draw or read the label mask and save it beside the run."""
        if stage == "fit":
            self.train = self.partial_label_dataset("train")
            if len(self.train) < self.batch_size * self._world:
                raise HTTError(
                    f"{len(self.train)} labelled training images do not fill one batch of {self.batch_size} on each of "
                    f"{self._world} processes; lower data.batch_size."
                )
            mask, folder = self.label_mask(self.train.dataset), run_directory(self.trainer) if self.trainer else None
            rank_zero_info(self.label_summary)
            if self.trainer and folder and self.trainer.is_global_zero:
                mask.save(folder / LABEL_MASK)
        self.val = self.partial_label_dataset("val", fitting=stage == "fit")

    def state_dict(self) -> dict[str, Any]:
        """Fingerprint of the label mask, so that a resumed run cannot mix masks up."""
        return {"labels": self.mask.fingerprint if self.mask else None}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Refuse to go on with other labels than the run began with."""
        if self.mask and state_dict["labels"] not in (None, self.mask.fingerprint):
            raise HTTError(
                f"The checkpoint was trained with other labels than data.labels={self.labels!r} with seed "
                f"{self.run_seed} gives; point data.labels at the {LABEL_MASK} beside that run."
            )

    def train_dataloader(self) -> DataLoader[Batch]:
        """Batches of labelled images, reshuffled every epoch; an incomplete last batch is dropped."""
        sampler = SeededDistributedSampler(len(self.train), self.run_seed, self._rank, self._world)
        if self.trainer:  # when a run goes on, Lightning sets it only after loader processes have begun to read ahead
            progress: Any = self.trainer.fit_loop.epoch_progress.current
            sampler.set_epoch(progress.processed)
        return self.loader(self.train, sampler=sampler, drop_last=True)

    def val_dataloader(self) -> DataLoader[Batch]:
        """Batches of the validation images in order."""
        sampler = PaddedEvalSampler(len(self.val), self._rank, self._world)
        return self.loader(self.val, self.eval_batch_size(self.val), sampler=sampler)

    def test_dataloader(self) -> DataLoader[Batch]:
        """The benchmarks have no test split of their own: the validation images (protocol.md 2.2)."""
        return self.val_dataloader()

    def predict_dataloader(self) -> DataLoader[Batch]:
        """The validation images; Lightning shares them among processes without repeats."""
        return self.loader(self.val, self.eval_batch_size(self.val), sampler=SequentialSampler(self.val))

    def eval_batch_size(self, images: PartialLabelDataset) -> int:
        """How many images to evaluate together: one where sizes differ, as none may be padded for another's sake.

        Args:
            images: The images to evaluate.
        """
        if self.image_size:
            return self.batch_size
        least = self._canvas or (0, 0)
        with ThreadPoolExecutor() as pool:
            sizes = set(pool.map(images.stored_size, range(len(images))))
        return 1 if len({(max(h, least[0]), max(w, least[1])) for h, w in sizes}) > 1 else self.batch_size

    def loader(
        self, dataset: PartialLabelDataset, batch_size: int | None = None, **arguments: Any
    ) -> DataLoader[Batch]:
        """A loader with the module's workers.

        Args:
            dataset: What to load.
            batch_size: By default the module's.
            **arguments: Further ones of torch's ``DataLoader``.
        """
        return DataLoader(
            dataset=dataset,
            batch_size=batch_size or self.batch_size,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            collate_fn=collate,
            worker_init_fn=worker_init,
            generator=torch.Generator().manual_seed(self.run_seed),  # or it would draw from the global one
            **arguments,
        )

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Note which images are labelled while the host knows: asking a device would wait for it."""
        return {**batch, "labeled_indices": labeled_indices(batch), "unlabeled_indices": unlabeled_indices(batch)}

    @property
    def _rank(self) -> int:
        return self.trainer.global_rank if self.trainer else 0

    @property
    def _world(self) -> int:
        return self.trainer.world_size if self.trainer else 1

    def training_targets(self, task: Task) -> Iterator[Tensor]:
        """The labels that training images keep for a task, one at a time and not augmented: ``h w`` or ``c h w``.

        Args:
            task: The task.
        """
        plain = PartialLabelDataset(
            self.train.dataset,
            [task],
            self.labels_per_image("train", self.train.dataset),
            EvalTransform([task], None),
            self.image_size,
        )
        for index, (_, labeled) in enumerate(plain.items):
            if task.name in labeled:
                yield plain[index][task.name]


def worker_init(_: int) -> None:
    """Prepare a loader process: no OpenCV threads, and no reaction to signals.

    A terminal or a scheduler signals all processes of a run. The main process ends its loaders itself, and would fail
    if one died first.
    """
    cv2.setNumThreads(0)
    for name in ("SIGINT", "SIGTERM", "SIGUSR1"):
        if hasattr(signal, name):  # Windows has no SIGUSR1
            signal.signal(getattr(signal, name), signal.SIG_IGN)
