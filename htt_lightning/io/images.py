"""Read image files: photographs, index maps, gray levels, and normals coded as colors.

Pillow keeps the indices of a palette and refuses truncated files; OpenCV does neither.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from htt_lightning.errors import DataError, HTTError, missing_file
from htt_lightning.io.arrays import normalize_, resize, vector_norm

HIGH_BIT_DEPTH_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I")
"""Pillow's modes of gray images with more than 8 bits."""

ZERO_VECTOR_NORM = 2 / 255
"""Upper bound of the length of vectors coded by the gray levels 127 and 128."""

NORMAL_LUT = np.arange(256, dtype=np.float32) / np.float32(127.5) - 1
"""Component of a vector, by the color value that codes it."""


class ImageFormat(Enum):
    """Accepted containers and modes of an image file, all with 8 bits per channel or a palette.

    Pillow scales gray levels of fewer bits, and drops half of 16-bit colors without a warning. ``ANY`` accepts every
    format that Pillow opens.
    """

    RGB = ("PNG RGB", "PNG L", "PNG P", "JPEG RGB", "JPEG L")
    INDEX = ("PNG L", "PNG P")
    NORMALS = ("PNG RGB",)
    ANY = ()


def size_of(path: Path, form: ImageFormat = ImageFormat.RGB) -> tuple[int, int]:
    """Read the size ``(h, w)`` of an image from its header."""
    with open_image(path, form, verify=False) as image:
        return image.height, image.width


def read_rgb(path: Path, form: ImageFormat = ImageFormat.RGB) -> np.ndarray:
    """Read uint8 colors ``h w 3``; gray images and palettes are converted, transparency is dropped."""
    with open_image(path, form) as image:
        _check_bit_depth(image, str(path))
        return _convert_to_rgb(image)


def read_photograph(path: Path) -> np.ndarray:
    """Read a photograph of any format as a viewer shows it, uint8 RGB ``h w 3``."""
    with open_image(path, ImageFormat.ANY) as image:
        return to_rgb(image, str(path))


def to_rgb(image: Image.Image, name: str) -> np.ndarray:
    """Convert a Pillow image to uint8 RGB ``h w 3``, upright by EXIF; of 16-bit colors keep the upper half."""
    if image.format != "MPO":  # cameras add previews to a photograph
        _check_single_frame(image, name)
    _check_bit_depth(image, name)
    if image.has_transparency_data and image.convert("RGBA").getchannel("A").getextrema() != (255, 255):
        raise DataError(f"{name} must be opaque, got transparent pixels. Save it on a background.")
    return _convert_to_rgb(ImageOps.exif_transpose(image))


def read_gray(path: Path) -> np.ndarray:
    """Read gray levels, or palette indices as stored: uint8 or uint16 ``h w``; one bit gives 0 and 1."""
    with open_image(path, ImageFormat.ANY) as image:
        if image.mode not in ("1", "L", "P", *HIGH_BIT_DEPTH_MODES):
            raise DataError(f"{path} must be gray with at most 16 bits or have a palette, got {image.mode}.")
        values = np.array(image)
    if image.mode not in HIGH_BIT_DEPTH_MODES:
        return values.astype(np.uint8)
    if values.min() < 0 or values.max() > np.iinfo(np.uint16).max:
        raise DataError(f"{path} must hold values from 0 to 65535, got {values.min()} to {values.max()}.")
    return values.astype(np.uint16)


def read_index(path: Path) -> np.ndarray:
    """Read indices or gray levels of a PNG file as stored, uint8 ``h w``, whatever the colors of a palette."""
    with open_image(path, ImageFormat.INDEX) as image:
        return np.array(image)


def read_normals(path: Path, size: tuple[int, int], absent: NDArray[np.bool_] | None = None) -> np.ndarray:
    """Read unit vectors coded as colors ``2 * color / 255 - 1``: float32 ``h w 3`` of ``size``, NaN where missing.

    Vectors are normalized once, after cubic resizing. Pixels in ``absent`` (bool ``h w``) and zero vectors are missing.
    The zero vector has no exact code, so it includes vectors as short as the gray levels next to it.
    """
    with open_image(path, ImageFormat.NORMALS) as image:
        vectors: np.ndarray = cv2.LUT(np.asarray(image), NORMAL_LUT)
    norm = vector_norm(vectors)
    missing = norm < ZERO_VECTOR_NORM
    if vectors.shape[:2] != size:
        missing = resize(missing.view(np.uint8), size, "nearest").view(np.bool_)
        vectors = cv2.resize(vectors, size[::-1], interpolation=cv2.INTER_CUBIC)
        norm = vector_norm(vectors)
        missing |= norm < ZERO_VECTOR_NORM
    if absent is not None:
        missing |= absent
    np.copyto(norm, np.nan, where=missing)
    return normalize_(vectors, norm)


@contextmanager
def open_image(path: Path, form: ImageFormat, verify: bool = True) -> Iterator[Image.Image]:
    """Open an image and check its format; errors inside the block become a ``DataError`` that names the file.

    ``verify`` compares the checksums of a PNG file first. Pixels are not decoded yet.
    """
    formats = None if form is ImageFormat.ANY else ("PNG", "JPEG")
    try:
        with BytesIO(path.read_bytes()) if verify else path.open("rb") as file:
            if verify:
                with Image.open(file, formats=formats) as image:
                    image.verify()
            file.seek(0)
            head = file.read(26)
            with Image.open(file, formats=formats) as image:
                if form is not ImageFormat.ANY:
                    _check_format(path, image, head, form)
                yield image
    except HTTError:
        raise
    except FileNotFoundError:
        raise missing_file(path) from None
    except Exception as error:  # corrupt images raise errors of many types
        kind = "image" if form is ImageFormat.ANY else "JPEG or PNG image"
        reason = "" if isinstance(error, UnidentifiedImageError) else f" ({error})"
        raise DataError(f"{path} is corrupt or no {kind}{reason}. Copy or unpack it again.") from error


def _check_format(path: Path, image: Image.Image, head: bytes, form: ImageFormat) -> None:
    found = f"{image.format} {image.mode}"
    if image.format == "PNG" and image.mode != "P" and head[24] != 8:  # Pillow does not tell the bit depth
        found = f"{head[24]}-bit {found}"
    if found not in form.value:
        raise DataError(f"{path} must be {' or '.join(form.value)} with 8 bits per channel, got {found}.")
    _check_single_frame(image, str(path))


def _check_single_frame(image: Image.Image, name: str) -> None:
    if (frames := getattr(image, "n_frames", 1)) > 1:
        raise DataError(f"{name} must be a single frame, got {frames}. Save one of them.")


def _convert_to_rgb(image: Image.Image) -> np.ndarray:
    if image.mode == "P":
        image = image.convert("RGBA")  # Pillow warns unless transparency is made explicit first
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def _check_bit_depth(image: Image.Image, name: str) -> None:
    if image.mode in (*HIGH_BIT_DEPTH_MODES, "F"):
        raise DataError(f"{name} must have 8 bits per channel, got {image.mode}. Save it with 8 bits.")
