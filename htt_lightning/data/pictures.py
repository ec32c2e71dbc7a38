"""Pictures on disk as arrays, by Pillow: values as they are stored, and one message for whatever is broken."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from htt_lightning.errors import HTTError

DEEP = ("I;16", "I;16L", "I;16B", "I;16N", "I")
"""Pillow's modes of grey pictures with more than 8 bits."""


def read_rgb(path: Path) -> np.ndarray:
    """Colours of a picture, uint8 ``h w 3``; transparency is dropped.

    Raises:
        HTTError: The file is missing or damaged, no picture, or has more than 8 bits per colour.
    """
    with _opened(path) as picture:
        if picture.mode in (*DEEP, "F"):
            raise HTTError(f"{path} has more than 8 bits per pixel; save it with 8 bits per colour")
        # Pillow warns unless the transparency of a palette is made explicit first.
        return np.array((picture.convert("RGBA") if picture.mode == "P" else picture).convert("RGB"))


def read_grey(path: Path) -> np.ndarray:
    """Values of a picture with one channel, uint8 or uint16 ``h w``: greys, or palette indices as they are stored.

    A picture of one bit holds 0 and 1.

    Raises:
        HTTError: The file is missing or damaged, no picture, or has colours or values that 16 bits do not hold.
    """
    with _opened(path) as picture:
        if picture.mode not in ("1", "L", "P", *DEEP):
            raise HTTError(f"{path} is {picture.mode}; it must be grey, of at most 16 bits, or have a palette")
        values = np.array(picture)
    if picture.mode not in DEEP:
        return values.astype(np.uint8)
    if values.min() < 0 or values.max() > np.iinfo(np.uint16).max:
        raise HTTError(f"{path} holds {values.min()} to {values.max()}; 16 bits hold 0 to 65535")
    return values.astype(np.uint16)


def picture_size(path: Path) -> tuple[int, int]:
    """Size ``(h, w)`` of a picture; its pixels are not read.

    Raises:
        HTTError: The file is missing or no picture.
    """
    with _opened(path) as picture:
        return picture.height, picture.width


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    try:
        with Image.open(path) as picture:
            yield picture
    except FileNotFoundError:
        raise HTTError(f"{path} is missing") from None
    except HTTError:
        raise
    except Exception as error:  # a damaged picture fails in many ways
        raise HTTError(f"{path} is damaged or no picture ({error}); copy it again") from error
