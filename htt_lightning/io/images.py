"""Read image files: photographs, index maps, gray levels, and normals coded as colors; write PNG files.

Pillow keeps the indices of a palette and refuses most truncated files; OpenCV does neither.
"""

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from htt_lightning.errors import DataError
from htt_lightning.io.arrays import normalize_, resize, vector_norm
from htt_lightning.io.files import atomic_path
from htt_lightning.io.image_files import ImageFormat, open_image, orientation_of
from htt_lightning.io.notices import notify_once

HIGH_BIT_DEPTH_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I")
"""Pillow's modes of gray images with more than 8 bits."""

ZERO_VECTOR_NORM = 2 / 255
"""Upper bound of the length of vectors coded by the gray levels 127 and 128."""

NORMAL_LUT = np.arange(256, dtype=np.float32) / np.float32(127.5) - 1
"""Component of a vector, by the color value that codes it."""

_SAMPLES_PER_PIXEL, _EXTRA_SAMPLES = 277, 338


def read_rgb(path: Path, form: ImageFormat = ImageFormat.RGB) -> np.ndarray:
    """Read an image as a viewer shows it, uint8 RGB ``h w 3``; see ``to_rgb``."""
    with open_image(path, form) as image:
        return to_rgb(image, str(path))


def read_photograph(path: Path) -> np.ndarray:
    """Read a photograph of any format as a viewer shows it, uint8 RGB ``h w 3``."""
    return read_rgb(path, ImageFormat.ANY)


def to_rgb(image: Image.Image, name: str) -> np.ndarray:
    """Convert a Pillow image to uint8 RGB ``h w 3``, upright by EXIF.

    Transparent pixels are put on white, of several frames the first is taken, of more bands the first three, and of
    16-bit colors the upper half. A notice says so once.
    """
    if image.mode in (*HIGH_BIT_DEPTH_MODES, "F"):
        raise DataError(f"{name} must have 8 bits per channel, got {image.mode}. Save it with 8 bits.")
    _notice_frames_and_bands(image, name)
    # Of these Pillow keeps the upper half; a decoded image does not tell.
    has_16_bits = any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))
    image = to_upright(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")  # Pillow warns unless transparency of a palette is made explicit first
        if image.getchannel("A").getextrema() != (255, 255):
            notify_once("transparent", f"{name} has transparent pixels, which are put on white.")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    pixels = np.array(image if image.mode == "RGB" else image.convert("RGB"))
    if has_16_bits and pixels.max() < 16:
        notify_once(
            "12 bits", f"{name} has 16 bits per channel, but no value above 4095, so it is nearly black. Rescale it."
        )
    return pixels


def to_upright(image: Image.Image) -> Image.Image:
    """Decode an image and turn it as EXIF says."""
    image.load()  # turns TIFF files itself
    return ImageOps.exif_transpose(image) if orientation_of(image) != 1 else image


def read_gray(path: Path, form: ImageFormat = ImageFormat.ANY) -> np.ndarray:
    """Read gray levels, or palette indices as stored: uint8, uint16 or float32 ``h w``; one bit gives 0 and 1."""
    with open_image(path, form) as image:
        if image.mode not in ("1", "L", "P", "F", *HIGH_BIT_DEPTH_MODES):
            raise DataError(
                f"{path} must have one value per pixel (8 or 16 bits, 32-bit floats, or a palette), got {image.mode}. "
                "Convert its colors to values."
            )
        _notice_frames_and_bands(image, str(path))
        image = to_upright(image)
        mode, values = image.mode, np.array(image)
    if mode == "F":
        return values
    if mode not in HIGH_BIT_DEPTH_MODES:
        return values.astype(np.uint8)
    if values.min() < 0 or values.max() > np.iinfo(np.uint16).max:
        raise DataError(f"{path} must hold values from 0 to 65535, got {values.min()} to {values.max()}.")
    return values.astype(np.uint16)


def read_colors(path: Path, form: ImageFormat = ImageFormat.ANY) -> np.ndarray:
    """Read the colors of a label, uint8 ``h w 3``; transparent pixels, which have no color, are an error."""
    with open_image(path, form) as image:
        if image.has_transparency_data and image.convert("RGBA").getchannel("A").getextrema() != (255, 255):
            raise DataError(f"{path} must be opaque, got transparent pixels. Save missing values as black.")
        return to_rgb(image, str(path))


def read_index(path: Path) -> np.ndarray:
    """Read indices or gray levels of a PNG file as stored, uint8 ``h w``, whatever the colors of a palette."""
    with open_image(path, ImageFormat.INDEX) as image:
        return np.array(to_upright(image))


def read_normals(path: Path, size: tuple[int, int], absent: NDArray[np.bool_] | None = None) -> np.ndarray:
    """Read unit vectors coded as colors ``2 * color / 255 - 1``: float32 ``h w 3`` of ``size``, NaN where missing.

    Vectors are normalized once, after cubic resizing. Pixels in ``absent`` (bool ``h w``) and zero vectors are missing.
    The zero vector has no exact code, so it includes vectors as short as the gray levels next to it.
    """
    with open_image(path, ImageFormat.NORMALS) as image:
        vectors: np.ndarray = cv2.LUT(np.asarray(to_upright(image)), NORMAL_LUT)
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


def write_png(path: Path, picture: np.ndarray) -> None:
    """Write a picture or map of integers atomically as PNG."""
    with atomic_path(path) as partial:
        Image.fromarray(picture).save(partial, format="PNG", compress_level=1)  # higher is slow


def _notice_frames_and_bands(image: Image.Image, name: str) -> None:
    frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)  # cameras add previews to a photograph
    if frames > 1:
        notify_once("frames", f"{name} has {frames} frames or pages, of which the first is taken.")
    tags = getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}
    unused = tuple(tags.get(_EXTRA_SAMPLES, ())).count(0)  # others are transparency
    if unused:
        bands = tags[_SAMPLES_PER_PIXEL]
        notify_once("bands", f"{name} has {bands} bands, of which the first {bands - unused} are taken.")
