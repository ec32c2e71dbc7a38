"""Datasets of ``.npy`` files with a folder per split and kind, as MTAN published NYUD-v2 and Cityscapes.

Prepared by S. Liu, E. Johns and A. Davison for "End-to-End Multi-Task Learning with Attention", CVPR 2019
(https://github.com/lorenmt/mtan).
"""

from collections.abc import Callable, Mapping
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from htt_lightning.data.dataset import dataset_folder
from htt_lightning.data.datasets.file_dataset import FileDataset
from htt_lightning.errors import ConfigError, DataError, combine_errors
from htt_lightning.io.arrays import normalize_, read_npy, vector_norm

TOLERANCE = 1e-3
"""Largest distance of stored colors from [0, 1]."""


class FileFormat(NamedTuple):
    """Array type of a kind of files, and the meaning of its values.

    Attributes:
        folder: Folder of the files, relative to the split.
        dtype_kinds: Allowed values of ``dtype.kind``.
        channel_shapes: Allowed continuations of the shape behind ``h w``.
        description: Type and shape in words, for messages.
        decode: Function from path (for messages) and stored array to an image or a map.
    """

    folder: str
    dtype_kinds: str
    channel_shapes: tuple[tuple[int, ...], ...]
    description: str
    decode: Callable[[Path, np.ndarray], np.ndarray]

    def open(self, path: Path) -> np.ndarray:
        """Memory-map a file and check type and shape.

        Args:
            path: The file.

        Raises:
            DataError: The file is missing or corrupt, or has another type or shape.
        """
        stored = read_npy(path)
        valid = stored.dtype.kind in self.dtype_kinds and stored.ndim >= 2 and stored.shape[2:] in self.channel_shapes
        if not valid or not stored.size:
            raise DataError(f"{path} must be {self.description}, got {stored.dtype} {stored.shape}. Prepare it again.")
        return stored

    def read(self, path: Path) -> np.ndarray:
        """Read a file as an image or a map.

        Args:
            path: The file.

        Raises:
            DataError: See ``open``, or a value is not allowed.
        """
        return self.decode(path, self.open(path))


class NpyTree(FileDataset):
    """One split of a tree of ``.npy`` files.

    Args:
        title: Name of the dataset, for messages.
        root: Folder of the tree, or its parent.
        folder_name: Name of the tree's folder.
        split: ``train`` or ``val``.
        formats: Formats of the images (``image``) and of each task's labels.
        expected_layout: Folders and files of the dataset.
        published: Number of published images by split.
        uniform_size: True if ``check`` rejects images that differ in size.

    Raises:
        HTTError: The split is unknown or has no file, or files are not named by integers.
    """

    def __init__(
        self,
        title: str,
        root: str | Path,
        folder_name: str,
        split: str,
        formats: Mapping[str, FileFormat],
        expected_layout: str,
        published: Mapping[str, int],
        uniform_size: bool = True,
    ) -> None:
        self.folder = dataset_folder(title, root, folder_name, split, expected_layout) / split
        self.title, self.formats, self.expected_layout, self.uniform_size = (
            title,
            formats,
            expected_layout,
            uniform_size,
        )
        self.published = published[split]
        # A sample without its image still belongs to the split, so that the missing file is reported.
        files = sorted(path for kind in formats.values() for path in self.folder.glob(f"{kind.folder}/[!.]*.npy"))
        if not files:
            images = self.folder / formats["image"].folder
            message = f"{images} is missing or contains no .npy file. Copy or unpack it again."
            raise DataError(message, missing_path=images, expected_layout=expected_layout)
        if misnamed := [path for path in files if not path.stem.isdecimal()]:
            raise combine_errors(
                DataError(f"{path} must be named by an integer. Move it elsewhere.") for path in misnamed
            )
        self.ids = sorted({path.stem for path in files}, key=int)
        self.tasks = tuple(task for task in formats if task != "image")

    def image(self, index: int) -> np.ndarray:
        """Read an RGB image, float32 ``h w 3`` in [0, 1].

        Args:
            index: Position in ``ids``.

        Raises:
            DataError: The file is missing or corrupt, or has another type, shape or range.
        """
        image = self.formats["image"].read(self.image_path(index))
        self._last_size = index, (image.shape[0], image.shape[1])
        return image

    def label(self, index: int, task: str) -> np.ndarray:
        """Read a task's map, with missing pixels marked as ``Task`` defines it.

        Args:
            index: Position in ``ids``.
            task: ``semseg``: uint8 ``h w``, 255 where -1 is stored. ``depth``: float32 ``h w``, NaN where the stored
                value is not positive or not finite. ``normals``: float32 unit vectors ``h w 3``, NaN where the stored
                vector is zero or not finite.

        Raises:
            HTTError: The task is unknown, or the file is missing or corrupt, has another type, shape or size than the
                image, or contains invalid classes or vectors that are too long.
        """
        stored = self._open_label(index, task)
        return self.formats[task].decode(self._file(index, task), stored)

    def image_path(self, index: int) -> Path:
        """Return the path of an image."""
        return self._file(index, "image")

    def read_size(self, index: int) -> tuple[int, int]:
        """Read height and width of an image from the header of its file."""
        height, width = self.formats["image"].open(self.image_path(index)).shape[:2]
        return height, width

    def check_label(self, index: int, task: str) -> None:
        """Check existence, type, shape and length of a label's file."""
        self._open_label(index, task)

    def _open_label(self, index: int, task: str) -> np.ndarray:
        if task not in self.tasks:
            raise ConfigError(f"The task of a label of {self.title} must be in {', '.join(self.tasks)}, got {task}.")
        path = self._file(index, task)
        stored = self.formats[task].open(path)
        if (shape := stored.shape[:2]) != (size := self.size(index)):
            raise DataError(f"{path} must have the size {size} of its image, got {shape}. Prepare both again.")
        return stored

    def warnings(self) -> list[str]:
        """Return warnings about gaps in the numbers of the images and an unpublished number of images."""
        numbers = {int(name) for name in self.ids}
        count = max(numbers) + 1
        gaps = ", ".join(map(str, islice((number for number in range(count) if number not in numbers), 3)))
        missing = count - len(numbers)
        found = [f"{missing} of the numbers 0 to {count - 1} name no file, such as {gaps}."] if missing else []
        return [*found, *super().warnings()]

    def _file(self, index: int, key: str) -> Path:
        return self.folder / self.formats[key].folder / f"{self.ids[index]}.npy"


def image_format(folder: str) -> FileFormat:
    """Return the format of RGB images of floats in [0, 1]."""
    return FileFormat(folder, "f", ((3,),), "float h w 3 with colors in [0, 1]", _decode_image)


def class_format(folder: str, num_classes: int) -> FileFormat:
    """Return the format of class indices, -1 where missing."""
    return FileFormat(folder, "fiu", ((),), "float or integer h w", partial(_decode_classes, num_classes=num_classes))


def depth_format(folder: str) -> FileFormat:
    """Return the format of depth or inverse depth, 0 where missing."""
    return FileFormat(folder, "f", ((1,), ()), "float h w 1 or h w", _decode_depth)


def normals_format(folder: str) -> FileFormat:
    """Return the format of unit vectors, all zero where missing."""
    return FileFormat(folder, "f", ((3,),), "float h w 3", unit_vectors)


def _decode_image(path: Path, stored: np.ndarray) -> np.ndarray:
    low, high = stored.min(), stored.max()
    if not (low >= -TOLERANCE and high <= 1 + TOLERANCE):  # negated, so that NaN fails
        hint = " Divide colors of 0 to 255 by 255." if 2 < high <= 255 else ""
        raise DataError(f"{path} must have colors in [0, 1], got {low:g} to {high:g}.{hint}")
    return as_float32(stored) if low >= 0 and high <= 1 else as_float32(stored).clip(0, 1)


def _decode_classes(path: Path, stored: np.ndarray, num_classes: int) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        labels = stored.astype(np.int16)
    invalid = (labels != stored) | (labels < -1) | (labels >= num_classes)
    if invalid.any():
        value = stored[invalid][0]
        raise DataError(f"{path} must have classes from 0 to {num_classes - 1}, or -1 where missing, got {value:g}.")
    return labels.astype(np.uint8)  # turns -1 into IGNORE_INDEX, 255


def _decode_depth(path: Path, stored: np.ndarray) -> np.ndarray:
    depth = as_float32(stored).reshape(stored.shape[:2])
    np.copyto(depth, np.nan, where=~((depth > 0) & (depth < np.inf)))
    return depth


def unit_vectors(path: Path, stored: np.ndarray) -> np.ndarray:
    """Normalize vectors ``h w 3`` to float32 unit vectors, NaN where the direction is missing.

    Args:
        path: Source of the vectors, for the message.
        stored: Vectors ``h w 3``.

    Raises:
        DataError: A vector is longer than 2, as are normals stored as colors.
    """
    normals = as_float32(stored)
    with np.errstate(over="ignore", invalid="ignore"):
        norm = vector_norm(normals)
    valid = np.isfinite(norm) & (norm > 0)
    longest = cv2.minMaxLoc(norm, valid.view(np.uint8))[1] if valid.any() else 0  # 4x faster than numpy
    if longest > 2:
        raise DataError(f"{path} must contain unit vectors in [-1, 1], got a vector of length {longest:g}.")
    norm[~valid] = np.nan
    return normalize_(normals, norm)


def as_float32(stored: np.ndarray) -> np.ndarray:
    """Return stored values as writable float32; values out of range become infinite."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.require(stored, np.float32, "W")
