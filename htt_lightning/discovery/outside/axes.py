"""Axes of another program's surface normals."""

from itertools import permutations, product
from typing import NamedTuple

import numpy as np

from htt_lightning.errors import ConfigError, DataError

CONVENTIONS = {"opengl": ("x", "y", "z"), "opencv": ("x", "-y", "-z")}
"""Axes by name: y up and z to the camera, as in this package, or y down and z away from the camera."""

MIN_PIXELS = 100
"""Smallest number of pixels with given normals that can tell axes apart."""
MAX_ANGLE = 15.0
"""Largest median angle in degrees to given normals at which no other axes are tried."""


class Axes(NamedTuple):
    """Axes of another program: its component for each of ours (x right, y up, z to the camera), and the sign."""

    order: tuple[int, ...]
    signs: tuple[int, ...]

    def __str__(self) -> str:
        names = ("-" * (sign < 0) + "xyz"[index] for index, sign in zip(*self, strict=True))
        return f"[{', '.join(names)}]"

    def turn(self, vectors: np.ndarray) -> np.ndarray:
        """Turn vectors ``... 3`` of the other program into ours.

        >>> Axes((0, 1, 2), (1, -1, -1)).turn(np.array([1.0, 2.0, 3.0]))
        array([ 1., -2., -3.])
        """
        return np.asarray(vectors @ self._matrix(vectors).T)

    def undo(self, vectors: np.ndarray) -> np.ndarray:
        """Turn our vectors ``... 3`` into those of the other program."""
        return np.asarray(vectors @ self._matrix(vectors))

    def _matrix(self, like: np.ndarray) -> np.ndarray:
        """Return the turn as a matrix; indexing along the short last axis is several times slower."""
        return np.asarray(np.eye(3)[list(self.order)] * np.array(self.signs)[:, None], like.dtype)


def parse_axes(axes: str | tuple[str, ...] | None, option: str) -> Axes:
    """Read axes: the name of a convention, or what our x, y and z are in the other program, such as ``[x, -y, -z]``."""
    names = CONVENTIONS.get(axes.lower(), ()) if isinstance(axes, str) else axes or ()
    letters = [name.removeprefix("-") for name in names]
    if sorted(letters) != ["x", "y", "z"]:
        raise ConfigError(
            f"{option}.axes must be {' or '.join(CONVENTIONS)}, or what x (right), y (up) and z (to the camera) are in "
            f"the teacher's normals, such as [x, -y, -z], got {'none' if axes is None else axes}."
        )
    return Axes(tuple("xyz".index(letter) for letter in letters), tuple(-1 if "-" in name else 1 for name in names))


def check_axes(axes: Axes, vectors: np.ndarray, given: np.ndarray, option: str) -> float:
    """Compare normals with given ones; raise a ``DataError`` if other axes fit, and return the median angle.

    Args:
        axes: Declared axes.
        vectors: Unit vectors of the teacher, turned into our axes as declared, ``n 3``.
        given: Given normals of the same pixels, ``n 3``.
        option: Option of the teacher, for messages.

    Returns:
        Median angle in degrees; NaN if pixels with given normals are too few.
    """
    if len(vectors) < MIN_PIXELS:
        return float("nan")

    original = axes.undo(vectors)

    def median_angle(other: Axes) -> float:
        cosine = (other.turn(original) * given).sum(-1)
        return float(np.degrees(np.median(np.arccos(cosine.clip(-1, 1)))))

    declared = median_angle(axes)
    if declared > MAX_ANGLE:
        every = [Axes(order, signs) for order in permutations(range(3)) for signs in product((1, -1), repeat=3)]
        best = min(every, key=median_angle)
        if (angle := median_angle(best)) < declared / 2:
            raise DataError(
                f"{option}.axes must fit the given normals, got {axes}, off by {declared:.0f} degrees in the median; "
                f"{best} is off by {angle:.0f}."
            )
    return declared
