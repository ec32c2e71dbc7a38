"""Presentation of a task's maps: colors, PNG files, compressed arrays."""

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor


class PresentationMixin(ABC):
    """Presentation side of a task."""

    field_channels: ClassVar[int | None] = None
    output_unit: ClassVar[str] = ""
    """Unit of the values of ``decode``; empty if they have none."""
    large_error: ClassVar[str] = "1"
    """Error that ``error_map`` maps to 1, in words."""

    @abstractmethod
    def colorize(self, values: Tensor) -> Tensor:
        """Draw decoded maps or targets, ``b h w`` or ``b c h w``, as uint8 ``b 3 h w``: mid-gray where missing."""

    @property
    def output_range(self) -> tuple[float, float] | None:
        """Return the smallest and largest decoded value; None for classes and unknown ranges."""
        return None

    def error_map(self, values: Tensor, target: Tensor) -> Tensor:
        """Compute errors to draw, float ``b h w``: 0 where right, from 1 on large, any value where missing.

        The default is the largest absolute difference of a component.

        Args:
            values: Decoded maps, ``b h w`` or ``b c h w``.
            target: Targets of the same shape.
        """
        error = (values.float() - target.float()).abs()
        return error if error.ndim == 3 else error.amax(1)

    def legend(self) -> list[tuple[str, Tensor]]:
        """Return texts, each with a map ``1 1 w`` or ``1 c 1 w`` of the values whose colors it explains.

        The default is one map from the smallest to the largest value, or nothing if the range is unknown.
        """
        if self.output_range is None or self.field_channels not in (None, 1):
            return []
        low, high = self.output_range
        ramp = torch.linspace(low, high, 64).view(1, 1, -1)
        return [(f"{low:.3g} to {high:.3g} {self.output_unit}", ramp if self.field_channels is None else ramp[None])]

    def to_png(self, values: np.ndarray) -> np.ndarray | None:
        """Encode a decoded map as an image of its numbers, by default one of integers below 256.

        Args:
            values: Decoded map of one image, ``h w`` or ``c h w``.

        Returns:
            uint8 or uint16 ``h w``, or uint8 ``h w 3``; None if PNG files cannot hold the numbers.
        """
        if values.dtype.kind not in "iu" or (values.size and not 0 <= values.min() <= values.max() < 256):
            return None
        return values.astype(np.uint8)

    @property
    def png_unit(self) -> str | None:
        """Return the unit of the pixels of ``to_png``; None, the default, without unit or PNG files."""
        return None

    def compress(self, array: np.ndarray) -> np.ndarray:
        """Encode a numpy map without missing pixels in few bytes, as pseudo-labels are stored."""
        return array.astype(np.uint8 if self.field_channels is None else np.float16)

    def decompress(self, array: np.ndarray) -> np.ndarray:
        """Decode a numpy map that ``compress`` encoded."""
        return array if self.field_channels is None else array.astype(np.float32)
