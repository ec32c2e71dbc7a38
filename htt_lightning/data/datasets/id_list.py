"""Datasets whose splits are text files of image ids, with one file per id in each folder."""

from abc import abstractmethod
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import numpy as np

from htt_lightning.data.dataset import dataset_folder
from htt_lightning.data.datasets.file_dataset import FileDataset
from htt_lightning.data.masks.label_mask import natural_sort
from htt_lightning.errors import ConfigError, DataError, HTTError, combine_errors
from htt_lightning.io.arrays import resize
from htt_lightning.io.images import read_rgb, size_of

ID_CHARACTERS = frozenset("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz_-")
"""Characters allowed in image ids, which become parts of paths."""

MAX_ID_LENGTH = 128


class IdListDataset(FileDataset):
    """One split of a dataset that lists its image ids; subclasses name and read the files.

    Args:
        root: Folder of the dataset, or its parent.
        split: ``train`` or ``val``.
        uniform_size: True if ``check`` rejects images that differ in size.

    Raises:
        HTTError: The split is unknown, or its id list is missing or empty, or has invalid or repeated ids.
    """

    title: ClassVar[str]
    """Name of the dataset, for messages."""
    folder_name: ClassVar[str]
    """Name of the dataset's own folder."""
    id_list_path: ClassVar[str]
    """Path of the id list in it, with ``{split}`` in place of the split."""
    num_images: ClassVar[Mapping[str, int]]
    """Number of published images by split."""
    tasks: ClassVar[tuple[str, ...]]
    """Names of the tasks with labels."""

    def __init__(self, root: str | Path, split: str, uniform_size: bool = True) -> None:
        self.folder = dataset_folder(self.title, root, self.folder_name, split, self.expected_layout)
        self.split, self.uniform_size, self.published = split, uniform_size, self.num_images[split]
        self.ids = list(natural_sort(self._read_ids(self.folder / self.id_list_path.format(split=split))))

    def _read_ids(self, path: Path) -> list[str]:
        try:
            ids = path.read_text(encoding="utf-8").split()
        except FileNotFoundError:
            message = f"{path} is missing; data.root must be, or contain, the folder {self.folder_name}."
            raise DataError(message, missing_path=path, expected_layout=self.expected_layout) from None
        except (OSError, ValueError) as error:
            raise DataError(f"{path} must be a list of image ids ({error}). Unpack the dataset again.") from error
        invalid = [name for name in ids if not set(name) <= ID_CHARACTERS or len(name) > MAX_ID_LENGTH]
        problems = [f"{name[:MAX_ID_LENGTH]!r}, which is no image id" for name in invalid]
        problems += [f"{name!r} twice" for name, count in Counter(ids).items() if count > 1]
        problems += [] if ids else ["no image"]
        if problems:
            raise combine_errors(DataError(f"{path} lists {text}. Unpack the dataset again.") for text in problems)
        return ids

    @abstractmethod
    def read(self, name: str, task: str, size: tuple[int, int]) -> np.ndarray:
        """Read a task's map, at the size of its image or at its stored size.

        Args:
            name: Image id.
            task: Name of the task.
            size: Height and width of the image.
        """

    def image(self, index: int) -> np.ndarray:
        """Read an RGB image, uint8 ``h w 3``.

        Args:
            index: Position in ``ids``.

        Raises:
            HTTError: The file is missing or corrupt.
        """
        image = read_rgb(self.image_path(index))
        self._last_size = index, (image.shape[0], image.shape[1])
        return image

    def read_size(self, index: int) -> tuple[int, int]:
        """Read height and width of an image from the header of its file."""
        return size_of(self.image_path(index))

    def label(self, index: int, task: str) -> np.ndarray:
        """Read a task's map, resized to its image by nearest neighbor where it is stored at another size.

        Args:
            index: Position in ``ids``.
            task: Name of the task; ``Task`` defines the map.

        Raises:
            HTTError: The task is unknown, or a file is missing or corrupt or contains invalid values.
        """
        if task not in self.tasks:
            raise ConfigError(f"The task of a label of {self.title} must be in {', '.join(self.tasks)}, got {task}.")
        try:
            size = self.size(index)
        except HTTError:
            self.check_label(index, task)  # reports the label's own problem rather than that of the image
            raise
        return resize(self.read(self.ids[index], task, size), size, "nearest")
