"""Size at which the network sees images of any size."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby, islice
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor

from htt_lightning.data.transforms import pad_and_finalize
from htt_lightning.errors import CheckpointError, ConfigError, DataError
from htt_lightning.io.arrays import resize_image
from htt_lightning.models.backbone_sizes import STRIDE
from htt_lightning.output import ImageView

InputSize = Literal["training", "original"] | tuple[int, int]
"""As in the evaluation of the training run, as stored, or ``(h, w)`` with that number of pixels."""

MAX_PIXELS = 2**25
"""Maximum number of pixels that the network sees at once; larger images need a sliding window."""


@dataclass(frozen=True)
class InputResizer:
    """Resize images to the number of pixels of ``image_size``, then pad them to ``min_size``.

    Larger images than ``tile_size`` are seen through a sliding window of that width. None disables a step.
    """

    image_size: tuple[int, int] | None = None
    min_size: tuple[int, int] | None = None
    tile_size: int | None = None

    def __post_init__(self) -> None:
        """Validate the sizes."""
        for name, size in (("input_size", self.image_size), ("min_size", self.min_size)):
            if size is not None and (len(size) != 2 or min(size) < 1):
                raise ConfigError(f"{name} must be a height and a width in pixels, got {size}.")
        if self.tile_size is not None and (self.tile_size < 2 * STRIDE or self.tile_size % STRIDE):
            raise ConfigError(f"tile_size must be a multiple of {STRIDE} above {STRIDE}, got {self.tile_size}.")

    @classmethod
    def of(
        cls, stored: Mapping[str, Any] | None, input_size: InputSize = "training", tile_size: int | None = None
    ) -> Self:
        """Build a resizer from ``input_size`` of a checkpoint (``stored``) and the options of a user."""
        if input_size == "original":
            return cls(tile_size=tile_size)
        if isinstance(input_size, str) and input_size != "training":
            raise ConfigError(f"input_size must be training, original, or a height and a width, got {input_size!r}.")
        if input_size != "training":
            return cls(input_size, tile_size=tile_size)
        image_size, min_size = (_stored_size(stored or {}, key) for key in ("image_size", "min_size"))
        return cls(image_size, min_size, tile_size)

    def __call__(self, image: np.ndarray, name: str) -> tuple[np.ndarray, ImageView]:
        """Return the network's input for an image ``h w 3``, of its type, and the place of the image in it."""
        size = height, width = image.shape[0], image.shape[1]
        resized = size
        if self.image_size:
            zoom = (self.image_size[0] * self.image_size[1] / (height * width)) ** 0.5
            resized = max(round(height * zoom), 1), max(round(width * zoom), 1)
        if self.tile_size is None and resized[0] * resized[1] > MAX_PIXELS:
            next_step = "Set tile_size, such as 512, or a smaller input_size."
            raise DataError(f"{name} must have at most {MAX_PIXELS} pixels, got {width}x{height}. {next_step}")
        padded, valid = pad_and_finalize({"image": resize_image(image, resized)}, (), self.min_size)
        offset = int(valid.any(1).argmax()), int(valid.any(0).argmax())
        return padded["image"], ImageView(size, resized, offset)

    def batches(
        self, images: Iterable[tuple[str, Tensor, ImageView]], batch_size: int
    ) -> Iterator[tuple[list[str], Tensor, ImageView]]:
        """Stack consecutive named inputs ``3 h w`` of one size and type; one that needs tiling goes alone."""
        for (view, shape, _), group in groupby(images, lambda item: (item[2], item[1].shape, item[1].dtype)):
            limit = 1 if self.tile_size is not None and max(shape[1:]) > self.tile_size else batch_size
            while items := list(islice(group, limit)):
                yield [name for name, _, _ in items], torch.stack([image for _, image, _ in items]), view


def _stored_size(stored: Mapping[str, Any], key: str) -> tuple[int, int] | None:
    value = stored.get(key) if isinstance(stored, Mapping) else stored
    if value is None:
        return None
    if not isinstance(value, list | tuple) or len(value) != 2 or any(type(length) is not int for length in value):
        raise CheckpointError(f"The checkpoint's input_size.{key} must be a height and a width, got {value!r}.")
    return value[0], value[1]
