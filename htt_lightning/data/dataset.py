"""A split as it lies on disk, and the same split with labels for only some tasks on each image."""

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from filecmp import cmp
from pathlib import Path
from zlib import crc32

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Dataset

from htt_lightning.data.batch import Arrays, Batch, SampleIndex, to_sample
from htt_lightning.data.pseudo_labels import PseudoLabelStore, to_pseudo_label
from htt_lightning.errors import ConfigError, DataError, HTTError
from htt_lightning.io.arrays import resize
from htt_lightning.io.progress import track
from htt_lightning.tasks import Task

Transform = Callable[[Arrays, np.random.Generator], tuple[Arrays, np.ndarray]]
"""Turns an image's arrays and its own source of randomness into arrays and the map of valid pixels."""


class DenseDataset(ABC):
    """One split of a dataset as it lies on disk: images and maps by index, nothing hidden, nothing augmented.

    Attributes:
        ids: Image ids in natural order ("2" before "10").
        expected_layout: Folders and files of the dataset, for error messages; empty if they are not fixed.
        published: Number of images in the published split; None if it was not published.
    """

    ids: list[str]
    expected_layout: str = ""
    published: int | None = None

    @abstractmethod
    def image(self, index: int) -> np.ndarray:
        """RGB image ``h w 3``: uint8, or float32 in [0, 1].

        Args:
            index: Position in ``ids``.
        """

    @abstractmethod
    def label(self, index: int, task: str) -> np.ndarray:
        """A task's map as ``tasks.base.Task`` describes it: uint8 ``h w``, or float32 ``h w`` / ``h w c``.

        Args:
            index: Position in ``ids``.
            task: Its name.
        """

    def size(self, index: int) -> tuple[int, int]:
        """Height and width of an image; cheap where its file says so before its pixels.

        Args:
            index: Position in ``ids``.
        """
        height, width = self.image(index).shape[:2]
        return height, width

    def available(self, task: str) -> NDArray[np.bool_]:
        """Which images can have a label of a task at all, bool ``n`` (protocol.md 2.3.3).

        Args:
            task: Its name.
        """
        return np.ones(len(self.ids), np.bool_)

    def label_availability(self, tasks: Sequence[str]) -> NDArray[np.bool_]:
        """Which images can have a label of which task, bool ``n t``.

        Args:
            tasks: Their names.
        """
        return np.stack([self.available(task) for task in tasks], 1)

    def image_path(self, index: int) -> Path | None:
        """The file that holds an image, if one does.

        Args:
            index: Position in ``ids``.
        """
        return None

    def content_hash(self) -> str:
        """SHA-256 over the pixels of three images: the first, the last and the middle one."""
        pixels = hashlib.sha256()
        for index in sorted({0, len(self.ids) // 2, len(self.ids) - 1}):
            pixels.update(self.image(index).tobytes())
        return pixels.hexdigest()

    def warnings(self) -> list[str]:
        """What may be wrong with the split as a whole, though all of it can be read; each is a sentence."""
        if self.published is None or self.published == len(self.ids):
            return []
        hint = ": a part of the archive is missing, unless fewer are meant" if len(self.ids) < self.published else ""
        return [f"{len(self.ids)} images, where {self.published} were published{hint}."]

    def check(self, labels: Mapping[str, Sequence[str]]) -> None:
        """Check that the files of a run exist and have valid headers; nothing is decoded.

        Args:
            labels: Names of the tasks whose labels will be used, by image id; other labels are not touched.

        Raises:
            HTTError: Files are missing or corrupt; the message names three of them, and ``errors`` all.
        """
        return


def find_train_val_overlap(train: DenseDataset, val: DenseDataset) -> str:
    """A sentence about training images that are validation images as well; empty if there are none.

    Their files are the same, links included, or are copies of one name. Names alone tell nothing: cameras and archives
    begin anew in each split.
    """
    files = {name: path for index, name in enumerate(val.ids) if (path := val.image_path(index))}
    real = {os.path.realpath(path) for path in files.values()}
    both = [
        name
        for index, name in enumerate(train.ids)
        if (path := train.image_path(index))
        and (os.path.realpath(path) in real or (name in files and same_content(path, files[name])))
    ]
    if not both:
        return ""
    found = f"{len(both)} of {len(train.ids)} training images are in the validation split as well, such as {both[0]!r}"
    return f"{found}: its figures do not tell what becomes of other images."


def same_content(one: Path, other: Path) -> bool:
    """Whether two files have the same content; one that cannot be read is told of elsewhere."""
    try:
        return cmp(one, other, shallow=False)
    except OSError:
        return False


def dataset_folder(title: str, root: str | Path, folder_name: str, split: str, expected_layout: str) -> Path:
    """Return the dataset's own folder, which the root is or contains.

    Args:
        title: Name of the dataset, for messages.
        root: The folder, or its parent.
        folder_name: Name of the folder.
        split: ``train`` or ``val``.
        expected_layout: Folders and files of the dataset, for messages.

    Raises:
        HTTError: The split or the root does not exist.
    """
    if split not in ("train", "val"):
        raise ConfigError(f"The split of {title} must be train or val, got {split!r}.")
    root = Path(root).expanduser()
    if not root.is_dir():
        problem = "is a file" if root.exists() else "is missing"
        message = f"data.root {root} {problem}; it must be, or contain, the folder {folder_name}."
        raise DataError(message, missing_path=root, expected_layout=expected_layout)
    return root / folder_name if (root / folder_name).is_dir() else root


def check_in_parallel(
    names: Collection[str], check: Callable[[str], None], description: str = "Checking"
) -> list[HTTError]:
    """Check samples in several threads and return their errors in the order of the samples.

    Args:
        names: Ids of the samples.
        check: Function that raises an ``HTTError`` for an invalid sample.
        description: Verb for the progress bar.
    """

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
    """A split whose images carry labels for only some tasks. Labels that are hidden are never even read.

    Args:
        dataset: The split.
        tasks: The run's tasks.
        labels: Names of the tasks each image keeps its label of, by image id; other images are left out.
        transform: Turns an image's arrays and a random generator into arrays and the map of valid pixels.
        size: ``(h, w)`` to resize images and maps to on reading; None leaves them as stored.
        seed: Of the augmentation, which depends on it, the epoch and the image's id alone.
        pseudo_labels: Discovered labels, which training images carry beside the given ones.

    Attributes:
        items: Position in the dataset, and names of the tasks with a label, of each image.
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
    ) -> None:
        self.pseudo_labels = pseudo_labels
        self.dataset, self.tasks, self.transform, self.size, self.seed = dataset, tuple(tasks), transform, size, seed
        place = {name: index for index, name in enumerate(dataset.ids)}
        self.ids = list(labels)
        self.items = [(place[name], tuple(labels[name])) for name in self.ids]

    def __len__(self) -> int:
        return len(self.ids)

    def stored_size(self, position: int) -> tuple[int, int]:
        """Height and width of an image as it lies on disk.

        Args:
            position: In this dataset.
        """
        return self.dataset.size(self.items[position][0])

    def missing_tasks(self, position: int) -> list[Task]:
        """Tasks that an image keeps no label of.

        Args:
            position: In this dataset.
        """
        return [task for task in self.tasks if task.name not in self.items[position][1]]

    def __getitem__(self, key: int | SampleIndex) -> Batch:
        draw = key if isinstance(key, SampleIndex) else SampleIndex(key)
        name, (index, labeled) = self.ids[draw.dataset_index], self.items[draw.dataset_index]
        arrays = {"image": self.dataset.image(index)}
        for task in self.tasks:
            if task.name in labeled and not draw.is_padding:
                arrays[task.name] = self.dataset.label(index, task.name)
        if self.pseudo_labels:
            height, width = self.size or arrays["image"].shape[:2]
            arrays |= self.pseudo_labels.read(name, self.missing_tasks(draw.dataset_index), (height, width))
        if self.size:
            arrays = {
                key: resize(array, self.size, "bilinear" if key == "image" else "nearest")
                for key, array in arrays.items()
            }
        rng = np.random.default_rng([self.seed, draw.epoch, crc32(name.encode())])
        arrays, valid = self.transform(arrays, rng)
        sample = to_sample(arrays, valid, self.tasks, name)
        if self.pseudo_labels:
            height, width = valid.shape
            tasks = [task for task in self.tasks if task.supports_pseudo_labels]
            sample["pseudo_labels"] = {task.name: to_pseudo_label(arrays, task, (height, width)) for task in tasks}
        return sample
