"""Datasets whose splits are text files of image ids, with one file per id in each folder."""

import re
from abc import abstractmethod
from collections import Counter
from pathlib import Path
from typing import ClassVar

import numpy as np

from htt_lightning.data.datasets.file_dataset import PublishedDataset
from htt_lightning.data.masks.label_mask import natural_sort
from htt_lightning.errors import DataError, HTTError, combine_errors
from htt_lightning.io.arrays import resize
from htt_lightning.io.image_files import size_of
from htt_lightning.io.images import read_rgb

IMAGE_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")
"""Allowed image ids, which become parts of paths."""


class IdListDataset(PublishedDataset):
    """One split of a dataset that lists its image ids; subclasses name and read the files."""

    id_list_path: ClassVar[str]
    """Path of the id list in the dataset's own folder, with ``{split}`` in place of the split."""

    def __init__(self, root: str | Path, split: str, uniform_size: bool = True) -> None:
        super().__init__(root, split, uniform_size)
        self.ids = list(natural_sort(self._read_ids(self.folder / self.id_list_path.format(split=split))))

    def _read_ids(self, path: Path) -> list[str]:
        try:
            ids = path.read_text(encoding="utf-8").split()
        except FileNotFoundError:
            message = f"{path} is missing; data.root must be, or contain, the folder {self.folder_name}."
            raise DataError(message, missing_path=path, expected_layout=self.expected_layout) from None
        except (OSError, ValueError) as error:
            raise DataError(f"{path} must be a list of image ids ({error}). Unpack the dataset again.") from error
        problems = [f"{name[:128]!r}, which is no image id" for name in ids if not IMAGE_ID.fullmatch(name)]
        problems += [f"{name!r} twice" for name, count in Counter(ids).items() if count > 1]
        problems += [] if ids else ["no image"]
        if problems:
            raise combine_errors(DataError(f"{path} lists {text}. Unpack the dataset again.") for text in problems)
        return ids

    @abstractmethod
    def read(self, name: str, task: str, size: tuple[int, int]) -> np.ndarray:
        """Read a task's map of the image ``name``, at the image's ``size`` or at its stored size."""

    def read_image(self, index: int) -> np.ndarray:
        """Read an RGB image, uint8 ``h w 3``."""
        return read_rgb(self.image_path(index))

    def read_size(self, index: int) -> tuple[int, int]:
        """Read height and width of an image from the header of its file."""
        return size_of(self.image_path(index))

    def label(self, index: int, task: str) -> np.ndarray:
        """Read a task's map, resized to its image by nearest neighbor where it is stored at another size."""
        self.check_task(task)
        try:
            size = self.size(index)
        except HTTError:
            self.check_label(index, task)  # reports the label's own problem rather than that of the image
            raise
        stored = self.read(self.ids[index], task, size)
        self.check_turn(index, f"The label of {task}", stored.shape[:2])
        return resize(stored, size, "nearest")
