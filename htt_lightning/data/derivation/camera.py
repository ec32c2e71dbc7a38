"""Pinhole cameras, and the rays through the pixels of their images."""

import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class PinholeCamera:
    """A pinhole camera in pixels of images of one size; images of other sizes are taken as resized.

    Args:
        focal_length: Focal length along x and y.
        center: Column and row of the optical axis, from the corner of the image.
        size: Height and width of these images.
    """

    focal_length: tuple[float, float]
    center: tuple[float, float]
    size: tuple[int, int]

    @classmethod
    def from_field_of_view(cls, degrees: float, size: tuple[int, int]) -> "PinholeCamera":
        """Build a camera with square pixels from the horizontal field of view.

        Examples:
            >>> camera = PinholeCamera.from_field_of_view(90, (4, 6))
            >>> round(camera.focal_length[0], 6), camera.center
            (3.0, (3.0, 2.0))
        """
        height, width = size
        focal_length = width / 2 / math.tan(math.radians(degrees) / 2)
        return cls((focal_length, focal_length), (width / 2, height / 2), size)

    def rays(self, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Return x of each column, ``w``, and y (up) of each row, ``h``, of pixel centers at a distance of 1."""
        (height, width), (fx, fy), (cx, cy) = size, self.focal_length, self.center
        columns, rows = (np.arange(length) + 0.5 for length in (width, height))
        return (columns * self.size[1] / width - cx) / fx, (cy - rows * self.size[0] / height) / fy
