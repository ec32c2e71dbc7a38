"""Datasets that keep images and labels in files, and their datamodules."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from htt_lightning.data.datamodule import PartialLabelDataModule, Split
from htt_lightning.data.dataset import DenseDataset, check_in_parallel
from htt_lightning.errors import ConfigError, DataError, HTTError, collect_errors, combine_errors
from htt_lightning.io.image_files import is_turned


def check_turn(location: str | Path, size: tuple[int, ...], image_size: tuple[int, int], image: Path | None) -> None:
    """Raise an error if a label has the size of its image as stored, which EXIF turns to ``image_size``."""
    height, width = image_size
    if height != width and size == (width, height) and image and is_turned(image):
        raise DataError(
            f"{location} must lie as its image {image} does, which EXIF turns to {image_size}, got {size}. "
            "Turn the label, or save the image upright without EXIF."
        )


class FileDataset(DenseDataset):
    """One split of a dataset of files; ``check`` rejects images that differ in size if ``uniform_size`` is set."""

    uniform_size: bool = True
    _last_size: tuple[int, tuple[int, int]] | None = None

    @abstractmethod
    def read_image(self, index: int) -> np.ndarray:
        """Read an RGB image ``h w 3``."""

    @abstractmethod
    def read_size(self, index: int) -> tuple[int, int]:
        """Read height and width of an image from the header of its file."""

    def check_turn(self, index: int, location: str | Path, size: tuple[int, ...]) -> None:
        """Raise an error if a label fits its image only as stored, before EXIF turns it upright."""
        check_turn(location, size, self.size(index), self.image_path(index))

    def check_size(self, index: int, location: str | Path, size: tuple[int, ...]) -> None:
        """Raise an error if a label has another size than its image."""
        self.check_turn(index, location, size)
        if size != (expected := self.size(index)):
            raise DataError(f"{location} must have the size {expected} of its image, got {size}. Prepare both again.")

    def image(self, index: int) -> np.ndarray:
        """Read an RGB image ``h w 3``, and keep its size for the labels that are read next."""
        image = self.read_image(index)
        self._last_size = index, (image.shape[0], image.shape[1])
        return image

    def size(self, index: int) -> tuple[int, int]:
        """Return height and width of an image, kept for the labels that are read next."""
        last = self._last_size  # read once, as other threads may replace it
        if last is None or last[0] != index:
            self._last_size = last = index, self.read_size(index)
        return last[1]

    def location(self, index: int) -> str:
        """Return where an image is stored, for messages."""
        return str(self.image_path(index))

    @abstractmethod
    def check_label(self, index: int, task: str) -> None:
        """Check that the files of a label exist and have valid headers; nothing is decoded."""

    def check(self, labels: Mapping[str, Sequence[str]]) -> None:
        """Check existence, headers and, if ``uniform_size`` is set, equal sizes of the files of a run."""
        positions = {image_id: index for index, image_id in enumerate(self.ids)}
        sizes: dict[str, tuple[int, int]] = {}

        def check_files(image_id: str) -> None:
            index, errors = positions[image_id], list[HTTError]()
            with collect_errors(errors):
                sizes[image_id] = self.size(index)
            for task in labels[image_id]:
                with collect_errors(errors):
                    self.check_label(index, task)
            if errors:
                raise combine_errors(errors)

        errors = check_in_parallel(labels, check_files)
        if self.uniform_size and sizes:
            first = next(image_id for image_id in labels if image_id in sizes)
            errors += [
                DataError(
                    f"{self.location(positions[image_id])} must have the size {sizes[first]} of the image {first!r}, "
                    f"got {sizes[image_id]}. Set data.image_size or data.augment.crop."
                )
                for image_id in labels
                if sizes.get(image_id, sizes[first]) != sizes[first]
            ]
        if errors:
            raise combine_errors(errors, expected_layout=self.expected_layout)


class PublishedDataset(FileDataset):
    """One split of a published archive, which subclasses declare.

    Args:
        root: Folder of the dataset, or its parent.
        split: ``train`` or ``val``.
        uniform_size: True if ``check`` rejects images that differ in size.

    Raises:
        HTTError: The split is unknown, missing or empty, or image ids are invalid.
    """

    title: str
    """Name of the dataset, for messages."""
    folder_name: ClassVar[str]
    """Name of the dataset's own folder."""
    num_images: ClassVar[Mapping[str, int]]
    """Number of published images by split."""
    tasks: ClassVar[tuple[str, ...]]
    """Names of the tasks with labels."""

    def __init__(self, root: str | Path, split: str, uniform_size: bool = True) -> None:
        if split not in ("train", "val"):
            raise ConfigError(f"The split of {self.title} must be train or val, got {split!r}.")
        root = Path(root).expanduser()
        if not root.is_dir():
            problem = "is a file" if root.exists() else "is missing"
            message = f"data.root {root} {problem}; it must be, or contain, the folder {self.folder_name}."
            raise DataError(message, missing_path=root, expected_layout=self.expected_layout)
        self.folder = root / self.folder_name if (root / self.folder_name).is_dir() else root
        self.split, self.uniform_size, self.published = split, uniform_size, self.num_images[split]

    @abstractmethod
    def image_path(self, index: int) -> Path:
        """Return the path of an image."""

    def check_task(self, task: str) -> None:
        """Raise an error if the dataset has no labels of a task."""
        if task not in self.tasks:
            raise ConfigError(f"The task of a label of {self.title} must be in {', '.join(self.tasks)}, got {task}.")


class FileDataModule(PartialLabelDataModule):
    """Datamodule of a dataset in a folder, whose splits are opened once per run.

    Args:
        root: Folder of the dataset.
        **kwargs: Arguments of ``PartialLabelDataModule``.
    """

    def __init__(self, root: str, **kwargs: Any) -> None:
        self.root = root
        self._datasets: dict[Split, FileDataset] = {}
        super().__init__(**kwargs)

    @abstractmethod
    def open_split(self, split: Split, uniform_size: bool) -> FileDataset:
        """Open a split, whose ``check`` must reject images that differ in size if ``uniform_size`` is set."""

    def build_dataset(self, split: Split) -> FileDataset:
        """Return a split, which is opened at the first call."""
        if split not in self._datasets:
            self._datasets[split] = self.open_split(split, self.requires_uniform_size(split))
        return self._datasets[split]
