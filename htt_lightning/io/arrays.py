"""Read, resize and normalize images and maps as numpy arrays."""

from pathlib import Path
from typing import Literal
from zipfile import ZipFile

import cv2
import numpy as np

from htt_lightning.errors import DataError
from htt_lightning.io.files import reading


def read_npy(path: Path) -> np.ndarray:
    """Memory-map the array of a ``.npy`` file, read-only; nothing is unpickled."""
    with reading(path, "no .npy array"):
        array = _open_memmap(path)
        if (size := path.stat().st_size) != array.offset + array.nbytes:
            raise ValueError(f"it has {size} bytes, but its header describes {array.offset + array.nbytes}")
        return np.asarray(array)


def _open_memmap(path: Path) -> np.memmap:
    try:
        return np.lib.format.open_memmap(str(path), mode="r")  # of a Path, numpy resolves every folder
    except SystemError:  # a race of Python 3.11.7 and before: https://github.com/python/cpython/issues/106905
        return np.lib.format.open_memmap(str(path), mode="r")


def read_npz(path: Path, name: str, header_only: bool = False) -> np.ndarray:
    """Read the array of a ``.npz`` file: the only one, or that called ``name``; nothing is unpickled.

    ``header_only`` gives an array of its type and shape without its values, which costs no decompression.
    """
    with reading(path, "no .npz archive"), ZipFile(path) as archive:
        names = [entry.removesuffix(".npy") for entry in archive.namelist()]
        if len(names) != 1 and name not in names:
            found = ", ".join(names) or "none"
            raise DataError(f"{path} must hold one array, or one called {name!r}, got {found}.")
        with archive.open(f"{name if name in names else names[0]}.npy") as file:
            if not header_only:
                return np.asarray(np.lib.format.read_array(file, allow_pickle=False))
            version = np.lib.format.read_magic(file)
            read_header = {1: np.lib.format.read_array_header_1_0, 2: np.lib.format.read_array_header_2_0}
            shape, _, dtype = read_header[version[0]](file)
            return np.broadcast_to(np.zeros((), dtype), shape)


def resize(
    array: np.ndarray, size: tuple[int, int], interpolation: Literal["bilinear", "nearest"] = "bilinear"
) -> np.ndarray:
    """Resize an image or map ``h w`` or ``h w c`` with half-pixel centers; one of that size is returned itself.

    Examples:
        >>> resize(np.array([[1, 2]], np.uint8), (1, 4), "nearest")
        array([[1, 1, 2, 2]], dtype=uint8)
    """
    if array.shape[:2] == size:
        return array
    # INTER_NEAREST matches corners instead of centers: https://github.com/opencv/opencv/issues/9096
    flag = cv2.INTER_LINEAR if interpolation == "bilinear" else cv2.INTER_NEAREST_EXACT
    return cv2.resize(array, size[::-1], interpolation=flag)


def resize_image(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize an image ``h w c``: bilinear, or the mean over areas where bilinear interpolation would skip pixels."""
    if 2 * size[0] < image.shape[0] or 2 * size[1] < image.shape[1]:
        return cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA)
    return resize(image, size)


def vector_norm(vectors: np.ndarray) -> np.ndarray:
    """Return the lengths ``h w`` of vectors ``h w 3``."""
    # numpy's norm along the short last axis is several times slower.
    return np.asarray(np.sqrt(cv2.transform(vectors * vectors, np.ones((1, 3)))))


def normalize_(vectors: np.ndarray, norm: np.ndarray) -> np.ndarray:
    """Divide vectors ``h w 3`` by their lengths ``h w`` in place."""
    vectors /= cv2.merge([norm, norm, norm])  # broadcasting along the short last axis is several times slower
    return vectors
