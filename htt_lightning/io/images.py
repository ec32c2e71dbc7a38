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

from htt_lightning.errors import DataError, HTTError
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
    """Read the size ``(h, w)`` of an image from its header.

    Raises:
        DataError: The file is missing, no image, of another format, or holds several frames.
    """
    with open_image(path, form, verify=False) as image:
        return image.height, image.width


def read_rgb(path: Path, form: ImageFormat = ImageFormat.RGB) -> np.ndarray:
    """Read the colors of an image; gray images and palettes are converted, transparency is dropped.

    Returns:
        uint8 RGB ``h w 3``.

    Raises:
        DataError: The file is missing or corrupt, of another format, or has more than 8 bits per color.
    """
    with open_image(path, form) as image:
        _check_bit_depth(image, str(path))
        if image.mode == "P":
            image = image.convert("RGBA")  # Pillow warns unless transparency is made explicit first
        return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def read_photograph(path: Path) -> np.ndarray:
    """Read a photograph of any format as a viewer shows it.

    Returns:
        uint8 RGB ``h w 3``; see ``to_rgb``.

    Raises:
        DataError: The file is missing or corrupt, or its colors are not defined.
    """
    with open_image(path, ImageFormat.ANY) as image:
        return to_rgb(image, str(path))


def to_rgb(image: Image.Image, name: str) -> np.ndarray:
    """Convert a Pillow image to RGB, rotated upright by its EXIF orientation.

    Gray images, palettes and CMYK are converted. Of 16-bit colors the upper half is kept.

    Args:
        image: The image.
        name: Name of the image in error messages.

    Returns:
        uint8 RGB ``h w 3``.

    Raises:
        DataError: The image has several frames, gray levels of more than 8 bits, or transparent pixels.
    """
    if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":  # cameras add previews to a photograph
        raise DataError(f"{name} must be a single frame, got {getattr(image, 'n_frames', 1)}. Save one of them.")
    _check_bit_depth(image, name)
    if image.has_transparency_data and image.convert("RGBA").getchannel("A").getextrema() != (255, 255):
        raise DataError(f"{name} must be opaque, got transparent pixels. Save it on a background.")
    upright = ImageOps.exif_transpose(image)
    # Pillow warns about a palette unless transparency is made explicit first.
    return np.array((upright.convert("RGBA") if upright.mode == "P" else upright).convert("RGB"))


def read_gray(path: Path) -> np.ndarray:
    """Read a one-channel image: gray levels, or palette indices as stored.

    Args:
        path: The file; an image of one bit holds 0 and 1.

    Returns:
        uint8 or uint16 ``h w``.

    Raises:
        DataError: The file is missing or corrupt, no image, or has colors or values beyond 16 bits.
    """
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
    """Read a map of indices or gray levels as stored, whatever the colors of a palette.

    Args:
        path: A PNG file with 8 bits per pixel or a palette.

    Returns:
        uint8 ``h w``.

    Raises:
        DataError: The file is missing or corrupt, or of another format.
    """
    with open_image(path, ImageFormat.INDEX) as image:
        return np.array(image)


def read_normals(path: Path, size: tuple[int, int], absent: NDArray[np.bool_] | None = None) -> np.ndarray:
    """Read unit vectors coded as colors: ``2 * color / 255 - 1``.

    Vectors are normalized once, after resizing. The zero vector has no exact code: vectors as short as the gray levels
    next to it are missing.

    Args:
        path: A PNG file.
        size: Height and width of the result in pixels; other sizes are resized by cubic interpolation.
        absent: Pixels without a normal, bool ``h w`` of that size.

    Returns:
        float32 ``h w 3``, NaN where missing.

    Raises:
        DataError: The file is missing or corrupt, or of another format.
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
    """Open an image and check its format; errors inside the block are reported for the file.

    Args:
        path: The file.
        form: Accepted formats.
        verify: Whether Pillow compares the checksums of a PNG file first.

    Yields:
        The image; its pixels are not decoded yet.

    Raises:
        DataError: The file is missing or corrupt, or of another format.
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
        raise DataError(f"{path} is missing. Copy or unpack it again.", missing_path=path) from None
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
    if getattr(image, "n_frames", 1) > 1:
        raise DataError(f"{path} must be a single frame, got several. Save one of them.")


def _check_bit_depth(image: Image.Image, name: str) -> None:
    if image.mode in (*HIGH_BIT_DEPTH_MODES, "F"):
        raise DataError(f"{name} must have 8 bits per channel, got {image.mode}. Save it with 8 bits.")
