"""Images and maps as numpy arrays: resizing them, and the lengths of vectors."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np

from htt_lightning.errors import DataError


def read_npy(path: Path) -> np.ndarray:
    """Memory-map the array of a ``.npy`` file; nothing is unpickled.

    Args:
        path: The file.

    Returns:
        The array, read-only, with its values still on disk.

    Raises:
        DataError: The file is missing or corrupt.
    """
    try:
        array = np.lib.format.open_memmap(path, mode="r")
        if (size := path.stat().st_size) != array.offset + array.nbytes:
            raise ValueError(f"it has {size} bytes, but its header describes {array.offset + array.nbytes}")
    except FileNotFoundError:
        raise DataError(f"{path} is missing. Copy or unpack it again.", missing_path=path) from None
    except Exception as error:  # corrupt headers raise errors of many types
        raise DataError(f"{path} is corrupt or no .npy array ({error}). Copy or unpack it again.") from error
    return np.asarray(array)


def resize_nearest(array: np.ndarray, scaled: Sequence[int], rows: slice, columns: slice, **params: Any) -> np.ndarray:
    """Part of a map enlarged by nearest neighbour.

    Pixel centres are matched exactly, as the bilinear image's are. OpenCV's usual nearest neighbour matches corners,
    which shifts a map by up to half a pixel against its image.

    Args:
        array: ``h w`` or ``h w c``.
        scaled: Size ``(h, w)`` of the enlarged map.
        rows: The rows of the enlarged map to return.
        columns: Its columns to return.
        **params: Ignored.

    Returns:
        The pixels ``enlarged[rows, columns]``.
    """
    if tuple(scaled) == array.shape[:2]:
        return array[rows, columns]
    places = [
        (2 * np.arange(kept.start, kept.stop) + 1) * old // (2 * new)
        for old, new, kept in zip(array.shape, scaled, (rows, columns), strict=False)
    ]
    if array.ndim == 3 and array.shape[2] == 3 and array.dtype == np.float32:
        # numpy collects single values quickly, but not triples.
        columns_of, rows_of = np.meshgrid(*(place.astype(np.float32) for place in places[::-1]))
        return cv2.remap(array, columns_of, rows_of, cv2.INTER_NEAREST)
    if scaled[0] < array.shape[0]:
        return np.asarray(array.take(places[0], 0).take(places[1], 1))
    # Rows that will be repeated are copied whole, after the columns, which are collected one by one.
    top = places[0][0]
    return np.asarray(array[top : places[0][-1] + 1].take(places[1], 1).take(places[0] - top, 0))


def resize(
    array: np.ndarray, size: tuple[int, int], interpolation: Literal["bilinear", "nearest"] = "bilinear"
) -> np.ndarray:
    """An image or map at another size ``(h, w)``, pixel centres matched: bilinear if smooth, else nearest neighbour."""
    if array.shape[:2] == size:
        return array
    if interpolation == "bilinear":
        return cv2.resize(array, size[::-1])
    return resize_nearest(array, size, slice(0, size[0]), slice(0, size[1]))


def vector_norm(vectors: np.ndarray) -> np.ndarray:
    """Lengths ``h w`` of vectors ``h w 3``, in a fraction of the time that numpy's norm along a short axis takes."""
    return np.asarray(np.sqrt(cv2.transform(vectors * vectors, np.ones((1, 3)))))


def normalize_(vectors: np.ndarray, length: np.ndarray) -> np.ndarray:
    """Vectors ``h w 3`` by their lengths ``h w``, in place.

    In this form it is several times as quick as broadcasting along a short axis.
    """
    vectors /= cv2.merge([length, length, length])
    return vectors
