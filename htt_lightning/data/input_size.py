"""What a network sees of an image of any size."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import cv2
import numpy as np

from htt_lightning.data.transforms import pad_and_finalize
from htt_lightning.errors import HTTError
from htt_lightning.io.arrays import resize
from htt_lightning.models.network import STRIDE
from htt_lightning.output import ImageView

InputSize = Literal["training", "original"] | tuple[int, int]
"""At what size the network sees images; see ``InputResizer.of``."""

MAX_PIXELS = 2**25
"""Pixels that the network is given at once; beyond, an image needs a sliding window."""


@dataclass(frozen=True)
class InputResizer:
    """What becomes of an image before the network sees it; widths and heights keep their proportion.

    Args:
        image_size: Images are resized to as many pixels as this size ``(h, w)`` has; None leaves them as they are.
        min_size: Smaller images are padded to this size, centred, as in evaluation; None pads none.
        tile_size: Width of the sliding window for images that are larger; None for none.

    Raises:
        HTTError: A number is out of its range.
    """

    image_size: tuple[int, int] | None = None
    min_size: tuple[int, int] | None = None
    tile_size: int | None = None

    def __post_init__(self) -> None:
        for name, size in (("size", self.image_size), ("min_size", self.min_size)):
            if size is not None and (len(size) != 2 or min(size) < 1):
                raise HTTError(f"{name} must be a height and a width in pixels, not {size}.")
        if self.tile_size is not None and (self.tile_size < 2 * STRIDE or self.tile_size % STRIDE):
            raise HTTError(f"tile_size must be a multiple of {STRIDE} and at least {2 * STRIDE}, not {self.tile_size}.")

    @classmethod
    def of(
        cls, stored: Mapping[str, Any] | None, input_size: InputSize = "training", tile_size: int | None = None
    ) -> Self:
        """A policy from what a checkpoint says and what a user wants.

        Args:
            stored: ``input`` of a checkpoint: ``image_size`` and ``min_size`` of its training. Older ones have none.
            input_size: ``training`` (as in the evaluation of the training run), ``original``, or ``(h, w)``.
            tile_size: Width of the sliding window.
        """
        if input_size == "original":
            return cls(tile_size=tile_size)
        if isinstance(input_size, str) and input_size != "training":
            raise HTTError(f"input_size is {input_size!r}; it must be training, original, or a height and a width.")
        if input_size != "training":
            return cls(input_size, tile_size=tile_size)
        image_size, min_size = (_stored_size(stored or {}, key) for key in ("image_size", "min_size"))
        return cls(image_size, min_size, tile_size)

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
        if self.tile_size is None and inner[0] * inner[1] > MAX_PIXELS:
            raise HTTError(
                f"{name} has {width}x{height} pixels, too many for the network at once; give a sliding window, such as "
                "tile 512, or a smaller size."
            )
        if 2 * inner[0] < height:  # bilinear interpolation would skip pixels
            image = cv2.resize(image, inner[::-1], interpolation=cv2.INTER_AREA)
        seen, valid = pad_and_finalize({"image": resize(image, inner)}, (), self.min_size)
        corner = int(valid.any(1).argmax()), int(valid.any(0).argmax())
        return seen["image"], ImageView(size, inner, corner)

    def needs_tiling(self, size: Sequence[int]) -> bool:
        """Whether a window slides over what the network sees of an image, ``(h, w)``."""
        return self.tile_size is not None and max(size) > self.tile_size


def _stored_size(stored: Mapping[str, Any], key: str) -> tuple[int, int] | None:
    """A size in what a checkpoint says of its input."""
    value = stored.get(key) if isinstance(stored, Mapping) else stored
    if value is None:
        return None
    if not isinstance(value, list | tuple) or len(value) != 2 or any(type(length) is not int for length in value):
        raise HTTError(f"The checkpoint's input.{key} is {value!r}; it must be a height and a width in pixels.")
    return value[0], value[1]
