"""Datasets of ``.npy`` files with a folder per split and kind, as MTAN published NYUD-v2 and Cityscapes.

Prepared by S. Liu, E. Johns and A. Davison for "End-to-End Multi-Task Learning with Attention", CVPR 2019
(https://github.com/lorenmt/mtan).
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from htt_lightning.data.datasets.file_dataset import PublishedDataset
from htt_lightning.errors import DataError, combine_errors
from htt_lightning.io.arrays import normalize_, read_npy, vector_norm

TOLERANCE = 1e-3
"""Largest distance of stored colors from [0, 1]."""


MAX_LENGTH_ERROR = 0.02
"""Largest deviation of a unit vector's length from 1."""


class FileFormat(NamedTuple):
    """Array type of the files in a folder, in words as well, and function from location and array to image or map."""

    folder: str
    dtype_kinds: str
    channel_shapes: tuple[tuple[int, ...], ...]  # allowed behind h w
    description: str
    decode: Callable[[str | Path, np.ndarray], np.ndarray]

    def open(self, path: Path) -> np.ndarray:
        """Memory-map a file and check type and shape."""
        stored = read_npy(path)
        valid = stored.dtype.kind in self.dtype_kinds and stored.ndim >= 2 and stored.shape[2:] in self.channel_shapes
        if not valid or not stored.size:
            raise DataError(f"{path} must be {self.description}, got {stored.dtype} {stored.shape}. Prepare it again.")
        return stored

    def read(self, path: Path) -> np.ndarray:
        """Read a file as an image or a map, and check its values."""
        return self.decode(path, self.open(path))


class NpyTree(PublishedDataset):
    """One split of a tree of ``.npy`` files, named by integers."""

    def __init__(self, root: str | Path, split: str, uniform_size: bool = True) -> None:
        super().__init__(root, split, uniform_size)
        self.folder /= split
        self.formats = self.file_formats()
        # A sample without its image still belongs to the split, so that the missing file is reported.
        files = sorted(path for kind in self.formats.values() for path in self.folder.glob(f"{kind.folder}/[!.]*.npy"))
        if not files:
            images = self.folder / self.formats["image"].folder
            message = f"{images} is missing or contains no .npy file. Copy or unpack it again."
            raise DataError(message, missing_path=images, expected_layout=self.expected_layout)
        misnamed = [path for path in files if not path.stem.isdecimal()]
        if errors := [DataError(f"{path} must be named by an integer. Move it elsewhere.") for path in misnamed]:
            raise combine_errors(errors)
        self.ids = sorted({path.stem for path in files}, key=int)

    @abstractmethod
    def file_formats(self) -> Mapping[str, FileFormat]:
        """Return the formats of the images (``image``) and of each task's labels in ``self.folder``."""

    def read_image(self, index: int) -> np.ndarray:
        """Read an RGB image, float32 ``h w 3`` in [0, 1]."""
        return self.formats["image"].read(self.image_path(index))

    def label(self, index: int, task: str) -> np.ndarray:
        """Read a task's map, with missing pixels marked as ``Task`` defines it: 255 in uint8, NaN in float32 maps."""
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
        self.check_task(task)
        path = self._file(index, task)
        stored = self.formats[task].open(path)
        self.check_size(index, path, stored.shape[:2])
        return stored

    def warnings(self) -> list[str]:
        """Return warnings about gaps in the numbers of the images and an unpublished number of images."""
        numbers = {int(name) for name in self.ids}
        last = max(numbers)
        gaps = ", ".join(map(str, islice((number for number in range(last) if number not in numbers), 3)))
        found = f"{last + 1 - len(numbers)} of the numbers 0 to {last} name no file, such as {gaps}."
        return ([found] if gaps else []) + super().warnings()

    def _file(self, index: int, key: str) -> Path:
        return self.folder / self.formats[key].folder / f"{self.ids[index]}.npy"


def decode_image(path: str | Path, stored: np.ndarray) -> np.ndarray:
    """Return uint8 colors as they are and others as float32; reject those out of [0, 1], except for rounding errors."""
    if stored.dtype == np.uint8:
        return np.array(stored)
    low, high = stored.min(), stored.max()
    if not (low >= -TOLERANCE and high <= 1 + TOLERANCE):  # negated, so that NaN fails
        hint = " Divide colors of 0 to 255 by 255." if 2 < high <= 255 else ""
        raise DataError(f"{path} must have colors in [0, 1], got {low:g} to {high:g}.{hint}")
    return as_float32(stored) if low >= 0 and high <= 1 else as_float32(stored).clip(0, 1)


def _decode_classes(path: str | Path, stored: np.ndarray, num_classes: int) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        labels = stored.astype(np.int16)
    invalid = (labels != stored) | (labels < -1) | (labels >= num_classes)
    if invalid.any():
        value = stored[invalid][0]
        raise DataError(f"{path} must have classes from 0 to {num_classes - 1}, or -1 where missing, got {value:g}.")
    return labels.astype(np.uint8)  # turns -1 into IGNORE_INDEX, 255


def _decode_depth(path: str | Path, stored: np.ndarray) -> np.ndarray:
    depth = as_float32(stored).reshape(stored.shape[:2])
    np.copyto(depth, np.nan, where=~((depth > 0) & (depth < np.inf)))
    return depth


def unit_vectors(path: str | Path, stored: np.ndarray) -> np.ndarray:
    """Normalize vectors ``h w 3`` to float32, NaN where zero or not finite; reject colors, which are longer than 2."""
    normals = as_float32(stored)
    with np.errstate(over="ignore", invalid="ignore"):
        norm = vector_norm(normals)
    valid = np.isfinite(norm) & (norm > 0)
    longest = cv2.minMaxLoc(norm, valid.view(np.uint8))[1] if valid.any() else 0  # 4x faster than numpy
    if longest > 2:
        raise DataError(f"{path} must contain unit vectors in [-1, 1], got a vector of length {longest:g}.")
    norm[~valid] = np.nan
    return normalize_(normals, norm)


def _decode_normals(path: str | Path, stored: np.ndarray) -> np.ndarray:
    check_no_colors(path, stored)
    return unit_vectors(path, stored)


def check_no_colors(path: str | Path, stored: np.ndarray) -> None:
    """Reject vectors ``h w 3`` that are colors in [0, 1]: no component is negative, and most are not of unit length."""
    if (stored < 0).any():
        return
    norm = vector_norm(as_float32(stored))
    norm = norm[np.isfinite(norm) & (norm > 0)]
    if norm.size and (np.abs(norm - 1) > MAX_LENGTH_ERROR).mean() > 0.5:
        raise DataError(
            f"{path} must contain unit vectors in [-1, 1], got other lengths and values of 0 to {np.nanmax(stored):g}. "
            "If they are colors in [0, 1], store 2 * color - 1, or set scale: 2 and offset: -1."
        )


def as_float32(stored: np.ndarray) -> np.ndarray:
    """Return stored values as writable float32; values out of range become infinite."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.require(stored, np.float32, "W")


IMAGE = FileFormat("image", "f", ((3,),), "float h w 3 with colors in [0, 1]", decode_image)
DEPTH = FileFormat("depth", "f", ((1,), ()), "float h w 1 or h w", _decode_depth)
NORMALS = FileFormat("normal", "f", ((3,),), "float h w 3", _decode_normals)


def class_format(folder: str, num_classes: int) -> FileFormat:
    """Return the format of class indices, -1 where missing."""
    return FileFormat(folder, "fiu", ((),), "float or integer h w", partial(_decode_classes, num_classes=num_classes))
