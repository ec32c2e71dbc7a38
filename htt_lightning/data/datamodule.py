"""Base class of all datamodules: partial labels, splits and loaders."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import compress
from pathlib import Path
from typing import Any, Literal

import lightning as L
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only, rank_zero_warn
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from htt_lightning.data.batch import Batch, labeled_indices, unlabeled_indices
from htt_lightning.data.dataset import DenseDataset, PartialLabelDataset, find_train_val_overlap
from htt_lightning.data.derivation.derived_labels import RULES, DerivationRule, DerivedLabels, build_derivations
from htt_lightning.data.extra_transforms import check_values_stay_right
from htt_lightning.data.first_look import first_look
from htt_lightning.data.loader import build_loader
from htt_lightning.data.masks.files import check_label_source, read_mask
from htt_lightning.data.masks.label_mask import LabelMask, impossible_label_message, is_protocol, sample_mask
from htt_lightning.data.origin import Origin, build_origin_weights
from htt_lightning.data.pseudo_labels import PseudoLabelStore, with_pseudo_label_maps
from htt_lightning.data.samplers import PaddedEvalSampler, SeededDistributedSampler
from htt_lightning.data.task_selection import limit_val_labels, select_tasks
from htt_lightning.data.transforms import AugmentConfig, EvalTransform, TrainTransform
from htt_lightning.errors import CheckpointError, ConfigError, DataError
from htt_lightning.io.run_directory import run_directory
from htt_lightning.seeding import run_seed
from htt_lightning.tasks import Task
from htt_lightning.tasks.semseg import unpaired_sides

logger = logging.getLogger(__name__)

Split = Literal["train", "val", "test"]
LABEL_MASK = "label_mask.json"
"""Name of the label mask in a run's folder."""


class PartialLabelDataModule(L.LightningDataModule, ABC):
    """Loaders over a dataset whose training images keep the labels of only some tasks.

    A subclass defines the tasks of a dataset and builds its splits.

    Args:
        labels: Labels that training images keep: ``full``, ``one-label``, ``random-label``, or a file (``.json`` of a
            run, or a published ``.pth`` or ``.npy``).
        tasks: Tasks to train: a list of names, or names separated by commas; by default all tasks of the dataset. A
            ``Task`` object replaces the dataset's task of the same name.
        task_overrides: Settings of the dataset's tasks to override, such as ``{edges: {thin_predictions: true}}``.
        batch_size: Number of images per batch and process.
        image_size: Height and width in pixels that images are resized to on reading; null keeps their sizes.
        augment: Training augmentation; null disables it.
        num_workers: Number of loader processes; 0 loads in the main process.
        seed: Seed of label mask, order and augmentation; by default that of the run (``seed_everything``).
        pseudo_labels: Folder written by the command ``discover``, whose pseudo-labels training images carry.
        derive: Labels of training images that follow from the labels they keep: by task the task that implies it, as
            ``{normals: depth, edges: semseg}``, or that task (``from``) with options of the rule (docs/labels.md).
        field_of_view: Horizontal field of view of the images in degrees, for normals from depth; by default that of the
            dataset, if it is known.
        origin_weights: Weight of the loss of labels that are not given, by origin and perhaps task, as
            ``{derived: {normals: 0.5}, discovered: 0.3, outside: 1}``; by default 1.
        test_split: Split that ``test`` scores: ``train`` (with the labels of the mask), ``val`` or, where the dataset
            has one, ``test``. The default is ``test``, or else ``val``.

    Raises:
        HTTError: An argument is wrong, or (from ``prepare_data`` and ``setup``) files are missing or corrupt.
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
        derive: dict[str, str | dict[str, Any]] | None = None,
        field_of_view: float | None = None,
        origin_weights: dict[str, float | dict[str, float]] | None = None,
        test_split: Split | None = None,
    ) -> None:
        super().__init__()
        if test_split not in (None, *self.splits):
            raise ConfigError(f"data.test_split must be one of {', '.join(self.splits)}, got {test_split!r}.")
        self.test_split: Split = test_split or self.splits[-1]
        for name, value, minimum in (("batch_size", batch_size, 1), ("num_workers", num_workers, 0)):
            if value < minimum:
                raise ConfigError(f"data.{name} must be at least {minimum}, got {value}.")
        check_label_source(labels)
        self.labels, self.batch_size, self.num_workers, self.augment = labels, batch_size, num_workers, augment
        self.image_size = (image_size[0], image_size[1]) if image_size else None
        self.canonical_tasks = tuple(task.name for task in self.dataset_tasks())
        self.tasks = select_tasks(self.dataset_tasks(), tasks, task_overrides)
        check_values_stay_right(augment.extra if augment else (), self.tasks)
        self.seed = seed
        self.pseudo_labels = PseudoLabelStore(Path(pseudo_labels)) if pseudo_labels else None
        self.origin_weights = build_origin_weights(origin_weights, self.tasks) if origin_weights else None
        derivations = build_derivations(derive or {}, self.tasks, self.derivation_rules(), self.origin_weights)
        self.derived = DerivedLabels(derivations, field_of_view)
        self.mask: LabelMask | None = None
        self._has_looked = False

    @abstractmethod
    def dataset_tasks(self) -> list[Task]:
        """Return the tasks of the dataset with its settings, in the canonical order of published masks."""

    @abstractmethod
    def build_dataset(self, split: Split) -> DenseDataset:
        """Build a split with all its labels; raise an ``HTTError`` if it is missing."""

    def derivation_rules(self) -> Sequence[DerivationRule]:
        """Return the rules of ``derive``; a subclass may put its own before them."""
        return RULES

    @property
    def splits(self) -> tuple[Split, ...]:
        """Splits of the dataset, the one that ``test`` scores last."""
        return "train", "val"

    @property
    def required_splits(self) -> tuple[Split, ...]:
        """Splits that the running command reads; without a trainer those of ``fit``."""
        command = self.trainer.state.fn if self.trainer else "fit"
        splits: dict[Any, tuple[Split, ...]] = {"fit": ("train", "val"), "test": (self.test_split,)}
        return splits.get(command, ("val",))

    @property
    def run_seed(self) -> int:
        """The seed of the datamodule, by default that of the run."""
        return run_seed() if self.seed is None else self.seed

    def label_mask(self, dataset: DenseDataset) -> LabelMask:
        """Draw or read the mask of the training split over all canonical tasks, whatever tasks the run selects."""
        mask = self.mask if self.mask and set(self.mask.ids) == set(dataset.ids) else None
        if is_protocol(self.labels):
            if mask is None or mask.seed not in (None, self.run_seed):
                available = dataset.label_availability(self.canonical_tasks)
                mask = sample_mask(self.labels, dataset.ids, self.canonical_tasks, self.run_seed, available)
        elif mask is None:
            mask = read_mask(self.labels, dataset.ids, self.canonical_tasks)
            for task, names in self.impossible_labels(mask, dataset).items():
                rank_zero_only(logger.warning)("%s", impossible_label_message(self.labels, task, names))
        self.mask = mask
        return mask

    def impossible_labels(self, mask: LabelMask, dataset: DenseDataset) -> dict[str, list[str]]:
        """Find training images to which a mask gives a label that they cannot have, by task of the run."""
        able = {task.name: set(compress(dataset.ids, dataset.available(task.name))) for task in self.tasks}
        kept = {task: compress(mask.ids, mask.labeled[:, mask.tasks.index(task)]) for task in able}
        found = {task: [name for name in names if name not in able[task]] for task, names in kept.items()}
        return {task: names for task, names in found.items() if names}

    @property
    def label_summary(self) -> str:
        """Number of labels per task in one line, and of derived ones in another; empty before the mask is known."""
        if not self.mask:
            return ""
        rows = self.mask.select([task.name for task in self.tasks]).labels.values()
        return "\n".join(filter(None, (self.mask.description, self.derived.summary(rows))))

    def labels_per_image(self, split: Split, dataset: DenseDataset) -> dict[str, tuple[str, ...]]:
        """List the tasks whose label each image of a split keeps, by image id; other splits keep all."""
        names = [task.name for task in self.tasks]
        if split == "train":
            return self.label_mask(dataset).select(names).labels
        rows = zip(dataset.ids, dataset.label_availability(names), strict=True)
        return {name: tuple(compress(names, row)) for name, row in rows}

    def origins_per_image(self, dataset: DenseDataset) -> dict[str, dict[str, Origin]]:
        """Return the origin of each given and derived label of the training images, by image id and task."""
        return self.derived.origins(self.labels_per_image("train", dataset))

    def partial_label_dataset(self, split: Split, fitting: bool = False) -> PartialLabelDataset:
        """Build a split with its labels and transform; ``fitting`` applies ``max_val_images`` to ``val``."""
        dataset = self.build_dataset(split)
        if not dataset.ids:
            raise DataError(f"The {split} split of {type(self).__name__} must have images, got none.")
        labels = self.labels_per_image(split, dataset)
        if split != "train":
            return self._eval_dataset(dataset, limit_val_labels(labels, self.tasks) if fitting else labels)
        maps = with_pseudo_label_maps(self.tasks) if self.pseudo_labels else self.tasks
        transform = TrainTransform(maps, self.augment, self.image_size)
        others = self.pseudo_labels, self.derived, self.origin_weights
        return PartialLabelDataset(dataset, self.tasks, labels, transform, self.image_size, self.run_seed, *others)

    def train_images_for_eval(self, ids: Iterable[str] | None = None) -> PartialLabelDataset:
        """Build the training images of ``ids`` (default: all) with the transform of evaluation."""
        dataset = self.build_dataset("train")
        labels = self.labels_per_image("train", dataset)
        return self._eval_dataset(dataset, labels if ids is None else {name: labels[name] for name in ids})

    def _eval_dataset(self, dataset: DenseDataset, labels: dict[str, tuple[str, ...]]) -> PartialLabelDataset:
        transform = EvalTransform(self.tasks, self._min_eval_size)
        return PartialLabelDataset(dataset, self.tasks, labels, transform, self.image_size)

    def requires_uniform_size(self, split: Split) -> bool:
        """Return whether the images of a split must have one size as stored."""
        cropped = self.augment is not None and self.augment.crop is not None
        return split == "train" and self.image_size is None and not cropped

    @property
    def _min_eval_size(self) -> tuple[int, int] | None:
        return self.image_size or (self.augment.crop if self.augment else None)

    @property
    def input_size(self) -> dict[str, Any]:
        """Sizes of images in evaluation, as stored in checkpoints for ``InputResizer``."""
        size = self.image_size
        if size is None and self.requires_uniform_size("train"):
            size = (self.train.dataset if hasattr(self, "train") else self.build_dataset("train")).size(0)
        min_size = None if size else self._min_eval_size
        return {"image_size": size and list(size), "min_size": min_size and list(min_size)}

    def fingerprint(self) -> dict[str, Any]:
        """Describe the dataset: its class, a hash of three images, their size, and the meaning of labels."""
        dataset = self.build_dataset("train")
        settings = {task.name: task.output_settings for task in self.tasks}
        size = list(self.image_size) if self.image_size else None
        return {"kind": type(dataset).__name__, "images": dataset.content_hash(), "image_size": size, "tasks": settings}

    def prepare_data(self) -> None:
        """Check existence and headers of the files of the run, once per machine."""
        datasets: dict[Split, DenseDataset] = {}
        for split in self.required_splits:
            dataset = datasets[split] = self.build_dataset(split)
            labels = self.labels_per_image(split, dataset)
            dataset.check(labels)
            if split == "train" and self.pseudo_labels:
                self.pseudo_labels.check(self.derived.origins(labels), self.tasks, self.fingerprint())
            for warning in dataset.warnings() if len(self.required_splits) > 1 else ():
                logger.warning("%s: %s", split, warning)
        if len(datasets) > 1 and (overlap := find_train_val_overlap(datasets["train"], datasets["val"])):
            logger.warning("%s", overlap)

    def setup(self, stage: str) -> None:
        """Build the splits of a stage; ``fit`` also draws or reads the label mask and saves it in the run's folder."""
        if stage == "test":
            is_train = self.test_split == "train"
            self.test = self.train_images_for_eval() if is_train else self.partial_label_dataset(self.test_split)
            return
        if stage == "fit":
            self.train = self.partial_label_dataset("train")
            if len(self.train) < self.batch_size * self._world:
                raise ConfigError(
                    f"data.batch_size must be at most {len(self.train) // self._world}, as {self._world} processes "
                    f"share {len(self.train)} labeled training images, got {self.batch_size}."
                )
            rank_zero_info(self.label_summary)
            for warning in unpaired_sides(self.tasks) if self.augment and self.augment.hflip_prob else ():
                rank_zero_warn(warning)
            if self.pseudo_labels:
                rank_zero_info(self.pseudo_labels.summary({*self.train.ids}, [task.name for task in self.tasks]))
            for name in sorted({task.name for task in self.tasks}.difference(*self.train.origins.values())):
                rank_zero_info(f"No training image has a label of {name}, unless a teacher makes it. Check its files.")
            if self.trainer and (folder := run_directory(self.trainer)) and self.trainer.is_global_zero:
                self.label_mask(self.train.dataset).save(folder / LABEL_MASK)
        self.val = self.partial_label_dataset("val", fitting=stage == "fit")

    def state_dict(self) -> dict[str, Any]:
        """Return the fingerprint of the label mask and what is derived, which a resumed run compares."""
        return {"labels": self.mask.fingerprint if self.mask else None, "derive": self.derived.description}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Refuse to resume with other labels: another mask, or other derived ones."""
        if self.trainer and self.trainer.state.fn != "fit":
            return
        if self.mask and state_dict["labels"] not in (None, self.mask.fingerprint):
            raise CheckpointError(
                f"data.labels must be the label mask of the checkpoint, got {self.labels!r} with seed {self.run_seed}. "
                f"Set data.labels to the {LABEL_MASK} of that run."
            )
        if (derived := state_dict["derive"]) != self.derived.description:
            raise CheckpointError(
                f"data.derive must be {derived}, as in the checkpoint, got {self.derived.description}."
            )

    def train_dataloader(self) -> DataLoader[Batch]:
        """Return a loader over labeled images, reshuffled every epoch; an incomplete last batch is dropped.

        The first call warns of what may be wrong with the first images and labels.
        """
        if self._rank == 0 and not self._has_looked:
            self._has_looked = True
            for split, images in (("train", self.train), ("val", self.val)):
                for warning in first_look(images):
                    logger.warning("%s: %s", split, warning)
        sampler = SeededDistributedSampler(self.train, self._world, self._rank, seed=self.run_seed, drop_last=True)
        if self.trainer:  # in a resumed run Lightning sets the epoch only after loader processes have begun to prefetch
            progress: Any = self.trainer.fit_loop.epoch_progress.current
            sampler.set_epoch(progress.processed)
        return self.loader(self.train, sampler=sampler, drop_last=True)

    def val_dataloader(self) -> DataLoader[Batch]:
        """Return a loader over the validation images in order."""
        return self._eval_loader(self.val)

    def test_dataloader(self) -> DataLoader[Batch]:
        """Return a loader over the images of ``test_split`` in order."""
        return self._eval_loader(self.test)

    def _eval_loader(self, images: PartialLabelDataset) -> DataLoader[Batch]:
        sampler = PaddedEvalSampler(images, self._world, self._rank)
        return self.loader(images, self.eval_batch_size(images), sampler=sampler)

    def predict_dataloader(self) -> DataLoader[Batch]:
        """Return a loader over the validation images; Lightning distributes them among processes without padding."""
        return self.loader(self.val, self.eval_batch_size(self.val))

    def eval_batch_size(self, images: PartialLabelDataset) -> int:
        """Return the batch size for evaluating ``images``: 1 if sizes differ, as none is padded for another."""
        if self.image_size:
            return self.batch_size
        minimum = self._min_eval_size or (0, 0)
        with ThreadPoolExecutor() as pool:
            sizes = set(pool.map(images.dataset.size, [index for index, _ in images.items]))
        return 1 if len({(max(h, minimum[0]), max(w, minimum[1])) for h, w in sizes}) > 1 else self.batch_size

    def loader(self, dataset: Dataset[Batch], batch_size: int | None = None, **arguments: Any) -> DataLoader[Batch]:
        """Build a loader with the settings of the datamodule and further ``arguments`` of ``DataLoader``."""
        return build_loader(dataset, batch_size or self.batch_size, self.num_workers, self.run_seed, **arguments)

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Add the indices of labeled and unlabeled images on the host, as reading them from a device would wait."""
        return {**batch, "labeled_indices": labeled_indices(batch), "unlabeled_indices": unlabeled_indices(batch)}

    @property
    def _rank(self) -> int:
        return self.trainer.global_rank if self.trainer else 0

    @property
    def _world(self) -> int:
        return self.trainer.world_size if self.trainer else 1

    def training_targets(self, task: Task) -> Iterator[Tensor]:
        """Iterate over the labels of a task that training images keep: ``h w`` or ``c h w``, not augmented."""
        dataset = self.train.dataset
        labels = self.labels_per_image("train", dataset)
        plain = PartialLabelDataset(dataset, [task], labels, EvalTransform([task], None), self.image_size)
        for index, (_, labeled) in enumerate(plain.items):
            if task.name in labeled:
                yield plain[index][task.name]
