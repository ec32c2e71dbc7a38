"""How a task's maps lie in files, and what their numbers are."""

from typing import ClassVar

import numpy as np

LEVELS = 256
"""Values that a pixel of 8 bits can have."""


class MapEncoding:
    """What a map of a task looks like in few bytes, and as the picture of its numbers."""

    field_channels: ClassVar[int | None] = None
    output_unit: ClassVar[str] = ""
    """Unit of the values of ``decode``."""

    @property
    def output_range(self) -> tuple[float, float] | None:
        """Smallest and largest value of a decoded field or probability; None for classes, or where nothing is known."""
        return None

    def compress(self, array: np.ndarray) -> np.ndarray:
        """A map in few bytes, as discovered labels are stored.

        Args:
            array: A numpy map.
        """
        return array.astype(np.uint8 if self.field_channels is None else np.float16)

    def decompress(self, array: np.ndarray) -> np.ndarray:
        """What ``pack`` has packed, in the form of a dataset's maps.

        Args:
            array: The packed map.
        """
        return array if self.field_channels is None else array.astype(np.float32)

    def to_png(self, values: np.ndarray) -> np.ndarray | None:
        """The numbers of a decoded map as a picture that other programs read, by default of indices below 256.

        Args:
            values: ``h w`` or ``c h w``, as ``decode`` returns it for one image.

        Returns:
            uint8 or uint16 ``h w``, or uint8 ``h w 3``; None where no picture holds the numbers.
        """
        if values.dtype.kind not in "iu" or (values.size and not 0 <= values.min() <= values.max() < LEVELS):
            return None
        return values.astype(np.uint8)

    @property
    def png_unit(self) -> str:
        """What a pixel of that picture counts."""
        return "class index"
