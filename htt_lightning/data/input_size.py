"""What a network sees of an image of any size."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import cv2
import numpy as np

from htt_lightning.data.transforms import finish
from htt_lightning.errors import HTTError
from htt_lightning.io.arrays import resized
from htt_lightning.models.network import STRIDE
from htt_lightning.output import ImageView

Size = Literal["trained", "own"] | tuple[int, int]
"""At what size the network sees images; see ``InputResizer.of``."""

LIMIT = 2**25
"""Pixels that the network is given at once; beyond, an image needs a sliding window."""


@dataclass(frozen=True)
class InputResizer:
    """What becomes of an image before the network sees it; widths and heights keep their proportion.

    Args:
        image_size: Images are resized to as many pixels as this size ``(h, w)`` has; None leaves them as they are.
        least: Smaller images are padded to this size, centred, as in evaluation; None pads none.
        tile: Width of the sliding window for images that are larger; None for none.

    Raises:
        HTTError: A number is out of its range.
    """

    image_size: tuple[int, int] | None = None
    least: tuple[int, int] | None = None
    tile: int | None = None

    def __post_init__(self) -> None:
        for name, size in (("size", self.image_size), ("least", self.least)):
            if size is not None and (len(size) != 2 or min(size) < 1):
                raise HTTError(f"{name} must be a height and a width in pixels, not {size}.")
        if self.tile is not None and (self.tile < 2 * STRIDE or self.tile % STRIDE):
            raise HTTError(f"tile must be a multiple of {STRIDE} and at least {2 * STRIDE}, not {self.tile}.")

    @classmethod
    def of(cls, stored: Mapping[str, Any] | None, size: Size = "trained", tile: int | None = None) -> Self:
        """A policy from what a checkpoint says and what a user wants.

        Args:
            stored: ``input`` of a checkpoint: ``image_size`` and ``least`` of its training. Older ones have none.
            size: ``trained``: as in the evaluation of the training run; ``own``: as the images are; ``(h, w)``: with
                as many pixels as that.
            tile: See the class.
        """
        if size == "own":
            return cls(tile=tile)
        if isinstance(size, str) and size != "trained":
            raise HTTError(f"size is {size!r}; it must be trained, own, or a height and a width.")
        if size != "trained":
            return cls(size, tile=tile)
        image_size, least = (_stored_size(stored or {}, key) for key in ("image_size", "least"))
        return cls(image_size, least, tile)

    def __call__(self, image: np.ndarray, name: str) -> tuple[np.ndarray, ImageView]:
        """Resize and pad one image.

        Args:
            image: RGB ``h w 3``, uint8 or float32 in [0, 1].
            name: What to call it in messages.

        Returns:
            What the network sees, of the same type, and where the image lies in it.

        Raises:
            HTTError: It is too large to be seen at once.
        """
        size = height, width = image.shape[0], image.shape[1]
        inner = size
        if self.image_size:
            zoom = (self.image_size[0] * self.image_size[1] / (height * width)) ** 0.5
            inner = max(round(height * zoom), 1), max(round(width * zoom), 1)
        if self.tile is None and inner[0] * inner[1] > LIMIT:
            raise HTTError(
                f"{name} has {width}x{height} pixels, too many for the network at once; give a sliding window, such as "
                "tile 512, or a smaller size."
            )
        if 2 * inner[0] < height:  # bilinear interpolation would skip pixels
            image = cv2.resize(image, inner[::-1], interpolation=cv2.INTER_AREA)
        seen, valid = finish({"image": resized(image, inner, smooth=True)}, (), self.least)
        corner = int(valid.any(1).argmax()), int(valid.any(0).argmax())
        return seen["image"], ImageView(size, inner, corner)

    def slides(self, size: Sequence[int]) -> bool:
        """Whether a window slides over what the network sees of an image, ``(h, w)``."""
        return self.tile is not None and max(size) > self.tile


def _stored_size(stored: Mapping[str, Any], key: str) -> tuple[int, int] | None:
    """A size in what a checkpoint says of its input."""
    value = stored.get(key) if isinstance(stored, Mapping) else stored
    if value is None:
        return None
    if not isinstance(value, list | tuple) or len(value) != 2 or any(type(length) is not int for length in value):
        raise HTTError(f"The checkpoint's input.{key} is {value!r}; it must be a height and a width in pixels.")
    return value[0], value[1]
