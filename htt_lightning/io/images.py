"""Reading pictures: photographs, index maps, grey levels, and directions that are coded as colours.

Pillow reads them, because it keeps the indices of a palette and refuses a truncated file; OpenCV does neither.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from io import BytesIO
from pathlib import Path
from typing import IO, cast
from zlib import crc32

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from htt_lightning.errors import HTTError
from htt_lightning.io.arrays import normalize_, resize, vector_norm

SIGNATURE = b"\x89PNG\r\n\x1a\n"
PALETTE = 3
"""Colour type of PNG files."""

END_OF_PNG, END_OF_JPEG = b"IEND\xaeB`\x82", b"\xff\xd9"
TAIL = 1024
"""The mark that ends a picture lies within this many last bytes."""

HIGH_BIT_DEPTH_MODES = ("I;16", "I;16L", "I;16B", "I;16N", "I")
"""Pillow's modes of grey pictures with more than 8 bits."""

ZERO_VECTOR_NORM = 2 / 255
"""Vectors shorter than this are coded by the greys 127 and 128."""


NORMAL_LUT = np.arange(256, dtype=np.float32) / np.float32(127.5) - 1
"""Of a vector, by the colour that codes it."""


class ImageFormat(Enum):
    """What a picture must be, as container and mode. PNG files have 8 bits per channel, or a palette.

    Greys of fewer bits are no indices: Pillow scales them. Of 16 bits Pillow silently drops half. ``ANY`` is whatever
    Pillow opens.
    """

    RGB = ("PNG RGB", "PNG L", "PNG P", "JPEG RGB", "JPEG L")
    INDEX = ("PNG L", "PNG P")
    NORMALS = ("PNG RGB",)
    ANY = ()


def size_of(path: Path, form: ImageFormat = ImageFormat.RGB) -> tuple[int, int]:
    """Size ``(h, w)`` of a picture, of which only both ends are read.

    Raises:
        HTTError: The file is missing, truncated, of another form, or no single picture.
    """
    with open_image(path, form, whole=False) as image:
        return image.height, image.width


def read_rgb(path: Path, form: ImageFormat = ImageFormat.RGB) -> np.ndarray:
    """Colours of a picture, uint8 RGB ``h w 3``: grey ones and palettes are converted, transparency is dropped.

    Raises:
        HTTError: As ``size_of``, or the picture has more than 8 bits per colour.
    """
    with open_image(path, form) as image:
        if image.mode in (*HIGH_BIT_DEPTH_MODES, "F"):
            raise HTTError(f"{path} has more than 8 bits per pixel; save it with 8 bits per colour")
        if image.mode == "P":
            image = image.convert("RGBA")  # Pillow warns unless transparency is made explicit first
        return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def read_photograph(path: Path) -> np.ndarray:
    """A photograph as a viewer shows it, uint8 RGB ``h w 3``; see ``to_rgb``.

    Raises:
        HTTError: As ``size_of``, or as ``to_rgb``.
    """
    with open_image(path, ImageFormat.ANY) as image:
        return to_rgb(image, str(path))


def to_rgb(image: Image.Image, name: str) -> np.ndarray:
    """Colours of a picture that Pillow has opened, upright where a camera has noted how it was held.

    Grey pictures, palettes and CMYK are converted; of 16-bit colours the upper half is kept.

    Args:
        image: The picture.
        name: What to call it in messages.

    Returns:
        uint8 RGB ``h w 3``.

    Raises:
        HTTError: It is several pictures, or has greys of more than 8 bits, whose white nobody knows, or transparent
            pixels, whose colour nobody sees.
    """
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # cameras add previews to a photograph
        raise HTTError(f"{name} holds {frames} pictures (an animation, or pages); keep one")
    if image.mode in (*HIGH_BIT_DEPTH_MODES, "F"):
        raise HTTError(f"{name} has more than 8 bits per pixel; save it with 8 bits per colour")
    if image.has_transparency_data and image.convert("RGBA").getchannel("A").getextrema() != (255, 255):
        raise HTTError(f"{name} has transparent pixels; save it on a background, without transparency")
    upright = ImageOps.exif_transpose(image)
    # Pillow warns of a palette unless transparency is made explicit first.
    return np.array((upright.convert("RGBA") if upright.mode == "P" else upright).convert("RGB"))


def read_gray(path: Path) -> np.ndarray:
    """Values of a picture with one channel, uint8 or uint16 ``h w``: greys, or palette indices as they are stored.

    A picture of one bit holds 0 and 1.

    Raises:
        HTTError: The file is missing or damaged, no picture, or has colours or values that 16 bits do not hold.
    """
    with open_image(path, ImageFormat.ANY) as image:
        if image.mode not in ("1", "L", "P", *HIGH_BIT_DEPTH_MODES):
            raise HTTError(f"{path} is {image.mode}; it must be grey, of at most 16 bits, or have a palette")
        values = np.array(image)
    if image.mode not in HIGH_BIT_DEPTH_MODES:
        return values.astype(np.uint8)
    if values.min() < 0 or values.max() > np.iinfo(np.uint16).max:
        raise HTTError(f"{path} holds {values.min()} to {values.max()}; 16 bits hold 0 to 65535")
    return values.astype(np.uint16)


def read_index(path: Path) -> np.ndarray:
    """A map of indices or grey levels, uint8 ``h w``: numbers as they are stored, whatever the colours of a palette.

    Raises:
        HTTError: As ``size_of``.
    """
    with open_image(path, ImageFormat.INDEX) as image:
        return np.array(image)


def read_normals(path: Path, size: tuple[int, int], absent: NDArray[np.bool_] | None = None) -> np.ndarray:
    """Unit vectors from a picture that codes them as ``2 * colour / 255 - 1`` (protocol.md 1.3, 1.5).

    They are normalised once, here (protocol.md 6.33). The zero vector has no exact code; what is as short as the greys
    next to it has no direction.

    Args:
        path: The picture.
        size: ``(h, w)`` of the result; other sizes are brought to it by cubic interpolation before normalising.
        absent: Where there are no directions, bool ``h w`` of that size.

    Returns:
        float32 ``h w 3``, NaN where missing.

    Raises:
        HTTError: As ``size_of``.
    """
    with open_image(path, ImageFormat.NORMALS) as image:
        vectors: np.ndarray = cv2.LUT(np.asarray(image), NORMAL_LUT)
    length = vector_norm(vectors)
    missing = length < ZERO_VECTOR_NORM
    if vectors.shape[:2] != size:
        missing = resize(missing, size, "nearest")
        vectors = cv2.resize(vectors, size[::-1], interpolation=cv2.INTER_CUBIC)
        length = vector_norm(vectors)
        missing |= length < ZERO_VECTOR_NORM
    if absent is not None:
        missing |= absent
    np.copyto(length, np.nan, where=missing)
    return normalize_(vectors, length)


def refuse_changed_png(parts: memoryview) -> None:
    """Compare the checksums in a PNG file, as Pillow does for few of its parts.

    Args:
        parts: The file's content behind the signature.

    Raises:
        OSError: A byte of it has changed.
    """
    place, kind = 0, b""
    while kind != b"IEND":
        end = place + 8 + int.from_bytes(parts[place : place + 4], "big")
        kind = bytes(parts[place + 4 : place + 8])
        if end >= len(parts) or crc32(parts[place + 4 : end]) != int.from_bytes(parts[end : end + 4], "big"):
            raise OSError("a part of it has changed or is missing")
        place = end + 4


@contextmanager
def open_image(path: Path, form: ImageFormat, whole: bool = True) -> Iterator[Image.Image]:
    """A picture whose header and end have been looked at; what fails inside the block is blamed on the file.

    Args:
        path: The file.
        form: What it must be.
        whole: Whether checksums of all parts are compared, if it has any.

    Raises:
        HTTError: As ``size_of``.
    """
    try:
        with path.open("rb") as stored:
            head = stored.read(26)
            png, file = head.startswith(SIGNATURE), cast(IO[bytes], stored)
            if png and whole:
                content = head + stored.read()  # read once, for the checksums and for Pillow
                refuse_changed_png(memoryview(content)[len(SIGNATURE) :])
                file = BytesIO(content)
            if form is ImageFormat.ANY:
                file.seek(0)
                with Image.open(file) as image:
                    yield image
                return
            file.seek(max(path.stat().st_size - TAIL, 0))
            if (END_OF_PNG if png else END_OF_JPEG) not in file.read():
                raise OSError("its end is missing")
            with Image.open(file, formats=("PNG", "JPEG")) as image:
                found = f"{'PNG' if png else 'JPEG'} {image.mode}"
                if png and head[25] != PALETTE and head[24] != 8:
                    found = f"{head[24]}-bit {found}"
                if found not in form.value:
                    raise HTTError(f"{path} is {found}; store it as {' or '.join(form.value)} with 8 bits per channel")
                if getattr(image, "n_frames", 1) > 1:
                    raise HTTError(f"{path} holds several pictures; keep one")
                yield image
    except HTTError:
        raise
    except FileNotFoundError:
        raise HTTError(f"{path} is missing; copy or unpack it again", missing_path=path) from None
    except Exception as error:  # damaged pictures fail in many ways
        kind = "picture" if form is ImageFormat.ANY else "JPEG or PNG picture"
        raise HTTError(f"{path} is truncated or no {kind} ({error}); copy or unpack it again") from error
