"""Datasets with all labels, and the same with labels for only some tasks on each image."""

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from filecmp import cmp
from pathlib import Path
from zlib import crc32

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from htt_lightning.data.batch import Arrays, Batch, SampleIndex, to_sample
from htt_lightning.data.derivation.camera import PinholeCamera
from htt_lightning.data.derivation.derived_labels import DerivedLabels
from htt_lightning.data.origin import NO_LABEL, Origin, WeightTable
from htt_lightning.data.pseudo_labels import PseudoLabelStore, pseudo_label_tasks, to_pseudo_label, usable_origins
from htt_lightning.errors import HTTError
from htt_lightning.io.arrays import resize, resize_image
from htt_lightning.io.progress import track
from htt_lightning.tasks import Task

Transform = Callable[[Arrays, np.random.Generator], tuple[Arrays, np.ndarray]]
"""Function from an image's arrays and a random generator to arrays and the map of valid pixels."""


class DenseDataset(ABC):
    """One split of a dataset with all labels, without augmentation; images are read by their index into ``ids``.

    Attributes:
        ids: Image ids in natural order ("2" before "10").
        expected_layout: Folders and files of the dataset, for error messages; empty if they are not fixed.
        published: Number of images in the published split; None if it was not published.
        restore_hint: How to get images that are missing from a published split.
        camera: Camera of all images; None if it is not known.
    """

    ids: list[str]
    expected_layout: str = ""
    published: int | None = None
    restore_hint: str = "Unpack the archive again"
    camera: PinholeCamera | None = None

    @abstractmethod
    def image(self, index: int) -> np.ndarray:
        """Read an image: RGB ``h w 3``, uint8 or float32 in [0, 1]."""

    @abstractmethod
    def label(self, index: int, task: str) -> np.ndarray:
        """Read a label: uint8 ``h w`` for index maps, float32 ``h w`` or ``h w c`` for fields; see ``Task``."""

    def size(self, index: int) -> tuple[int, int]:
        """Return height and width of an image; subclasses read them from the file's header."""
        height, width = self.image(index).shape[:2]
        return height, width

    def available(self, task: str) -> NDArray[np.bool_]:
        """Return which images can have a label of a task, bool ``n``."""
        return np.ones(len(self.ids), np.bool_)

    def label_availability(self, tasks: Sequence[str]) -> NDArray[np.bool_]:
        """Return which images can have a label of which task, bool ``n t``."""
        return np.stack([self.available(task) for task in tasks], 1)

    def camera_of(self, index: int) -> PinholeCamera | None:
        """Return the camera of an image, by default that of the dataset; None if it is not known."""
        return self.camera

    def image_path(self, index: int) -> Path | None:
        """Return the file of an image; None if it is not stored."""
        return None

    def content_hash(self) -> str:
        """Return the SHA-256 of the pixels of the first, the middle and the last image."""
        pixels = hashlib.sha256()
        for index in sorted({0, len(self.ids) // 2, len(self.ids) - 1}):
            pixels.update(self.image(index).tobytes())
        return pixels.hexdigest()

    def warnings(self) -> list[str]:
        """Return sentences about what may be wrong with the split as a whole."""
        if self.published is None or self.published == len(self.ids):
            return []
        hint = f" {self.restore_hint} if none was left out on purpose." if len(self.ids) < self.published else ""
        return [f"{len(self.ids)} images found, but {self.published} were published.{hint}"]

    def check(self, labels: Mapping[str, Sequence[str]]) -> None:
        """Check that the files of a run exist and have valid headers; nothing is decoded.

        Args:
            labels: Names of the tasks whose labels will be used, by image id; other labels are not touched.

        Raises:
            HTTError: Files are missing or corrupt; the message names three of them, and ``errors`` all.
        """
        return


def find_train_val_overlap(train: DenseDataset, val: DenseDataset, split: str = "validation") -> str:
    """Return a warning about training images that are validation images too: one file, or copies under one name.

    ``split`` is the name of the other split in the message.

    Equal names alone do not count, as archives number the images of each split. Without an overlap it is empty.
    """
    files = {name: path for index, name in enumerate(val.ids) if (path := val.image_path(index))}
    real = {os.path.realpath(path) for path in files.values()}
    shared = [
        name
        for index, name in enumerate(train.ids)
        if (path := train.image_path(index))
        and (os.path.realpath(path) in real or (name in files and same_content(path, files[name])))
    ]
    if not shared:
        return ""
    return (
        f"{len(shared)} of {len(train.ids)} training images also appear in the {split} split (e.g. {shared[0]!r}), "
        f"so {split} metrics will be optimistic."
    )


def same_content(one: Path, other: Path) -> bool:
    """Return whether two files have the same content; False if one cannot be read."""
    try:
        return cmp(one, other, shallow=False)
    except OSError:
        return False


def check_in_parallel(
    names: Collection[str], check: Callable[[str], None], description: str = "Checking"
) -> list[HTTError]:
    """Check samples by id in several threads and return their errors in order."""

    def find_error(name: str) -> HTTError | None:
        try:
            check(name)
        except HTTError as error:
            return error
        return None

    with ThreadPoolExecutor() as pool:
        results = track(pool.map(find_error, names), f"{description} {len(names)} images", len(names))
        return [error for error in results if error]


class PartialLabelDataset(Dataset[Batch]):
    """A split whose images carry labels for only some tasks; hidden labels are not read.

    Args:
        dataset: The split with all labels.
        tasks: Tasks of the run.
        labels: Names of the tasks each image keeps its label of, by image id; other images are left out.
        transform: Augmentation or padding of an image and its maps.
        size: Height and width in pixels to resize images and maps to on reading; None keeps their sizes.
        seed: Seed of the augmentation, which depends on it, the epoch and the image id alone.
        pseudo_labels: Pseudo-labels on disk for the missing labels; None for none. Labels that are rejected at this
            time are left out.
        derived: Labels that follow from the labels of an image; by default none.
        origin_weights: Weights of labels by origin and task; None for none.

    Attributes:
        ids: Image ids.
        items: Index into the dataset and names of the labeled tasks, per image.
        origins: Origins of the labels, by image id and task.
    """

    def __init__(
        self,
        dataset: DenseDataset,
        tasks: Sequence[Task],
        labels: Mapping[str, Sequence[str]],
        transform: Transform,
        size: tuple[int, int] | None = None,
        seed: int = 0,
        pseudo_labels: PseudoLabelStore | None = None,
        derived: DerivedLabels = DerivedLabels(),  # noqa: B008  # frozen
        origin_weights: WeightTable | None = None,
    ) -> None:
        self.pseudo_labels, self.derived, self.origin_weights = pseudo_labels, derived, origin_weights
        manifest = pseudo_labels.manifest() if pseudo_labels else {"images": {}}
        self._stored_tasks, stored = pseudo_label_tasks(manifest), usable_origins(manifest)
        self.dataset, self.tasks, self.transform, self.size, self.seed = dataset, tuple(tasks), transform, size, seed
        indices = {name: index for index, name in enumerate(dataset.ids)}
        self.ids = list(labels)
        self.items = [(indices[name], tuple(labels[name])) for name in self.ids]
        for index, labeled in self.items:
            derived.check_camera(labeled, dataset.camera_of(index), type(dataset).__name__)
        self.origins = {name: stored.get(name, {}) | own for name, own in derived.origins(labels).items()}

    def __len__(self) -> int:
        return len(self.ids)

    def missing_tasks(self, index: int) -> list[Task]:
        """Return the tasks of which an image has neither a given nor a derived label."""
        labeled = self.items[index][1]
        return [task for task in self.tasks if task.name not in (*labeled, *self.derived.tasks(labeled))]

    def tasks_with_pseudo_label(self, index: int) -> list[Task]:
        """Return the tasks of which an image has a usable pseudo-label on disk."""
        return [task for task in self.missing_tasks(index) if task.name in self.origins[self.ids[index]]]

    def derive(self, index: int, given: Arrays) -> Arrays:
        """Derive the labels that follow from the given labels of an image."""
        return self.derived.derive(given, self.dataset.camera_of(self.items[index][0]), self.size)

    def __getitem__(self, key: int | SampleIndex) -> Batch:
        """Read, resize and transform one image with its labels."""
        position, epoch, is_padding = key if isinstance(key, SampleIndex) else SampleIndex(key)
        name, (index, labeled) = self.ids[position], self.items[position]
        origins = {} if is_padding else self.origins[name]
        arrays = {"image": self.dataset.image(index)}
        kept = [task.name for task in self.tasks if task.name in labeled and not is_padding]
        given = {task: self.dataset.label(index, task) for task in kept}
        arrays |= given | self.derive(position, given)
        if self.pseudo_labels:
            height, width = self.size or arrays["image"].shape[:2]
            arrays |= self.pseudo_labels.read(name, self.tasks_with_pseudo_label(position), (height, width))
        if self.size:
            for map_name, array in arrays.items():
                is_image = map_name == "image"
                arrays[map_name] = resize_image(array, self.size) if is_image else resize(array, self.size, "nearest")
        rng = np.random.default_rng([self.seed, epoch, crc32(name.encode())])
        arrays, valid = self.transform(arrays, rng)
        sample = to_sample(arrays, valid, self.tasks, name)
        sample |= self._origins_and_weights(origins)
        if self.pseudo_labels:
            height, width = valid.shape
            tasks = [task for task in self.tasks if task.name in self._stored_tasks]
            sample["pseudo_labels"] = {task.name: to_pseudo_label(arrays, task, (height, width)) for task in tasks}
        return sample

    def _origins_and_weights(self, origins: Mapping[str, Origin]) -> Batch:
        known = [(task.name, origins.get(task.name)) for task in self.tasks]
        codes = {task: torch.tensor(origin.code if origin else NO_LABEL) for task, origin in known}
        if self.origin_weights is None:
            return {"origin": codes}
        weights = {task: torch.tensor(self.origin_weights[origin][task] if origin else 1.0) for task, origin in known}
        return {"origin": codes, "label_weights": weights}
