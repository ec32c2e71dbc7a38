"""Trees of ``.npy`` files as MTAN published NYUD-v2 and Cityscapes: a folder per split and kind, a file per image.

Prepared by S. Liu, E. Johns and A. Davison for "End-to-End Multi-Task Learning with Attention", CVPR 2019
(protocol.md 1.2 and 1.4).
"""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from io import BytesIO
from itertools import islice
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from htt_lightning.data.dataset import DenseDataset, check_each, dataset_folder, refuse_other_size
from htt_lightning.errors import HTTError, raise_or_collect, several
from htt_lightning.io.arrays import lengths, normalised

TOLERANCE = 1e-3
"""How far stored colours may lie outside [0, 1]."""


class Layout(NamedTuple):
    """How a kind of files is stored, and what its values mean.

    Attributes:
        folder: Of the split, in which the files lie.
        kinds: numpy's letters of the types a file may have.
        shapes: What may follow h w in its shape.
        words: All this in words.
        read: Turns path and stored array into an image or a map; the path is for messages.
        looked_at: Whether values are read before training begins, and not only when they are used.
    """

    folder: str
    kinds: str
    shapes: tuple[tuple[int, ...], ...]
    words: str
    read: Callable[[Path, np.ndarray], np.ndarray]
    looked_at: bool = False


class NpyTree(DenseDataset):
    """One split of such a tree. Files are read when they are asked for and never unpickled.

    Args:
        title: Of the dataset, for messages.
        root: The tree's folder, or the one that holds it.
        home: Name of the tree's folder.
        split: ``train`` or ``val``.
        layouts: Of the images (``image``) and of each task.
        tree: The expected folders and files, in words.
        published: Number of images as published, by split.
        one_size: Whether ``check`` refuses images of different sizes.

    Raises:
        HTTError: If there is no such split, or no file in it, or a file that is not named by an integer.
    """

    def __init__(
        self,
        title: str,
        root: str | Path,
        home: str,
        split: str,
        layouts: Mapping[str, Layout],
        tree: str,
        published: Mapping[str, int],
        one_size: bool = True,
    ) -> None:
        self.folder = dataset_folder(title, root, home, split, tree) / split
        self.title, self.layouts, self.tree, self.one_size = title, layouts, tree, one_size
        self.published = published[split]
        # A sample whose image is lost is still one of the split: whoever reads it is told.
        files = sorted(path for layout in layouts.values() for path in self.folder.glob(f"{layout.folder}/*.npy"))
        if not files:
            images = self.folder / layouts["image"].folder
            raise HTTError(f"{images} is missing or holds no .npy file", missing=images, trees=[tree])
        if odd := [path for path in files if not path.stem.isdecimal()]:
            errors = [HTTError(f"{path} is not named by an integer; move it elsewhere") for path in odd]
            raise_or_collect(several(errors))
        self.ids = sorted({path.stem for path in files if path.stem.isdecimal()}, key=int)
        self._size: tuple[int, tuple[int, int]] | None = None  # of the image asked for last
        self.tasks = tuple(task for task in layouts if task != "image")

    def image(self, index: int) -> np.ndarray:
        """RGB image, float32 ``h w 3`` in [0, 1].

        Raises:
            HTTError: If the file is missing or broken, has another shape or type, or colours outside [0, 1].
        """
        path, stored = self._open(index, "image", whole=True)
        return self.layouts["image"].read(path, stored)

    def label(self, index: int, task: str) -> np.ndarray:
        """One task's map, with missing pixels marked as ``tasks.base.Task`` describes it.

        Args:
            index: Position in ``ids``.
            task: ``semseg``: uint8 ``h w``, or 255 where -1 is stored. ``depth``: float32 ``h w``, NaN where 0, a
                negative or no finite number is stored. ``normals``: float32 unit vectors ``h w 3``, NaN where a zero
                vector or no finite one is stored.

        Raises:
            HTTError: If there is no such task, or the file is missing or broken, has another shape or type or another
                size than its image, or holds classes that do not exist or vectors that are none of unit length.
        """
        path, stored = self._open(index, task, whole=True)
        return self.layouts[task].read(path, stored)

    def image_file(self, index: int) -> Path:
        """Where an image lies."""
        return self._file(index, "image")

    def doubts(self) -> list[str]:
        """Numbers that are left out, and a count other than the published one."""
        numbers = {int(name) for name in self.ids}
        top = max(numbers, default=-1)
        if not (left_out := top + 1 - len(numbers)):
            return super().doubts()
        lowest = ", ".join(map(str, islice((number for number in range(top) if number not in numbers), 3)))
        return [f"{left_out} of the numbers 0 to {top} name no file, such as {lowest}.", *super().doubts()]

    def check(self, labels: Mapping[str, Sequence[str]]) -> None:
        """Look at type, shape and length of every file that will be used, and at the values of semseg.

        All other values are checked when they are read. Hidden labels are not touched.

        Args:
            labels: Names of the tasks whose labels will be used, by image id.

        Raises:
            HTTError: Files are missing, broken or hold wrong values: the message names three of them.
        """
        positions = {name: index for index, name in enumerate(self.ids)}
        first = self.size(0) if self.one_size else None

        def look(name: str) -> None:
            path, stored = self._open(positions[name], "image")
            if first:
                refuse_other_size(path, (stored.shape[0], stored.shape[1]), first)
            for key in labels[name]:
                path, stored = self._open(positions[name], key)
                if self.layouts[key].looked_at:
                    self.layouts[key].read(path, stored)

        check_each(labels, look, self.tree)

    def _open(self, index: int, key: str, whole: bool = False) -> tuple[Path, np.ndarray]:
        """A file and its array, header and length checked; see ``open_npy``."""
        if key not in self.layouts:
            raise HTTError(f"{self.title} has no labels for {key}; choose from {', '.join(self.tasks)}")
        path = self._file(index, key)
        stored = open_array(path, self.layouts[key], whole)
        shape = stored.shape[:2]
        if key == "image":
            self._size = index, (shape[0], shape[1])
        elif shape != (size := self.size(index)):
            raise HTTError(f"{path} is {shape}, but its image {size}; prepare the two again")
        return path, stored

    def _file(self, index: int, key: str) -> Path:
        return self.folder / self.layouts[key].folder / f"{self.ids[index]}.npy"

    def size(self, index: int) -> tuple[int, int]:
        """Height and width of an image."""
        known = self._size  # one object: threads that look at files together cannot mix two up
        if known is None or known[0] != index:
            height, width = self._open(index, "image")[1].shape[:2]
            return height, width
        return known[1]


def open_npy(path: Path, whole: bool = False) -> np.ndarray:
    """An array whose header and length are checked; nothing is ever unpickled.

    Args:
        path: The file.
        whole: Whether its values are wanted: then it is read at once, which takes half as long as by pages. Otherwise
            they stay on the disk.

    Raises:
        HTTError: If the file is missing or broken.
    """
    try:
        content: Any
        with path.open("rb") as file:
            if not (size := os.fstat(file.fileno()).st_size):
                raise ValueError("it is empty")
            if whole:
                content = np.empty(size, np.uint8)
                content = content[: file.readinto(content.data)]
            else:
                content = mmap(file.fileno(), 0, access=ACCESS_READ)
        start = 10 + int.from_bytes(content[8:10], "little")
        shape, fortran, dtype = _header(bytes(content[:start]))
        values = np.frombuffer(content, dtype, offset=start)
        if values.size != math.prod(shape):
            raise ValueError(f"{values.size} values where the header has {math.prod(shape)}")
        return values.reshape(shape, order="F" if fortran else "C")
    except FileNotFoundError:
        raise HTTError(f"{path} is missing; copy or unpack it again", missing=path) from None
    except Exception as error:  # a corrupt header raises errors of many kinds
        raise HTTError(f"{path} is truncated or no .npy array ({error}); copy or unpack it again") from error


@lru_cache(maxsize=64)  # files of a kind begin alike, and numpy takes long to read how
def _header(start: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether in Fortran's order, and type, from the first bytes of a file."""
    file = BytesIO(start)
    version = np.lib.format.read_magic(file)
    if version != (1, 0):
        raise ValueError(f"version {version} of the format, which is not what numpy.save writes for such an array")
    return np.lib.format.read_array_header_1_0(file)


def open_array(path: Path, layout: Layout, whole: bool = False) -> np.ndarray:
    """As ``open_npy``, and an ``HTTError`` if the array is not as the layout has it."""
    stored = open_npy(path, whole)
    shape = stored.shape
    if stored.dtype.kind not in layout.kinds or len(shape) < 2 or shape[2:] not in layout.shapes or not stored.size:
        raise HTTError(f"{path} is {stored.dtype} {shape}; it must be {layout.words}; prepare it again")
    return stored


def images(folder: str) -> Layout:
    """RGB images of floats in [0, 1]."""
    return Layout(folder, "f", ((3,),), "float h w 3, colours in [0, 1]", _colours)


def classes(folder: str, count: int) -> Layout:
    """Class indices below ``count``, -1 where missing."""
    return Layout(folder, "fiu", ((),), "float or integer h w", partial(_classes, count=count), looked_at=True)


def distances(folder: str) -> Layout:
    """Depth or inverse depth, 0 where missing."""
    return Layout(folder, "f", ((1,), ()), "float h w 1 or h w", _distances)


def directions(folder: str) -> Layout:
    """Unit vectors, all zero where missing; vectors longer than 2, as normals coded as colours are, are refused."""
    return Layout(folder, "f", ((3,),), "float h w 3", unit_vectors)


def _colours(path: Path, stored: np.ndarray) -> np.ndarray:
    low, high = stored.min(), stored.max()
    if not (low >= -TOLERANCE and high <= 1 + TOLERANCE):  # written so that NaN fails
        hint = "; divide colours of 0 to 255 by 255" if 2 < high <= 255 else ""
        raise HTTError(f"{path} holds colours from {low:g} to {high:g}; they must lie in [0, 1]{hint}")
    image = np.asarray(stored, np.float32)
    return image if low >= 0 and high <= 1 else image.clip(0, 1)


def _classes(path: Path, stored: np.ndarray, count: int) -> np.ndarray:
    with np.errstate(invalid="ignore"):
        labels = stored.astype(np.int16)
    last = count - 1
    if not ((labels == stored).all() and labels.min() >= -1 and labels.max() <= last):
        wrong = stored[(labels != stored) | (labels < -1) | (labels > last)][0]
        raise HTTError(f"{path} holds {wrong:g}; classes must be whole numbers from -1 (missing) to {last}")
    return labels.astype(np.uint8)  # which makes 255 of -1, as IGNORE is


def _distances(path: Path, stored: np.ndarray) -> np.ndarray:
    depth = floats(stored).reshape(stored.shape[:2])
    np.copyto(depth, np.nan, where=~((depth > 0) & (depth < np.inf)))
    return depth


def unit_vectors(path: Path, stored: np.ndarray) -> np.ndarray:
    """Vectors ``h w 3`` brought to length 1, float32, NaN where they have no direction; ``path`` is for the message.

    Raises:
        HTTError: If one is longer than 2.
    """
    normals = floats(stored)
    with np.errstate(over="ignore", invalid="ignore"):
        norm = lengths(normals)
    valid = np.isfinite(norm) & (norm > 0)
    longest = cv2.minMaxLoc(norm, valid.view(np.uint8))[1] if valid.any() else 0  # four times as quick as numpy here
    if longest > 2:
        raise HTTError(f"{path} holds vectors of length {longest:g}; normals must be unit vectors within [-1, 1]")
    norm[~valid] = np.nan
    return normalised(normals, norm)


def floats(stored: np.ndarray) -> np.ndarray:
    """Read values as float32 that may be written to; what is too large for it becomes infinite."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.require(stored, np.float32, "W")
