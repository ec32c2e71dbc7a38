"""Surface normals from depth."""

import cv2
import numpy as np

from htt_lightning.data.derivation.camera import PinholeCamera
from htt_lightning.errors import ConfigError
from htt_lightning.io.arrays import normalize_, vector_norm
from htt_lightning.tasks import InverseDepth, Task

MAX_RESIDUAL = 0.01
"""Largest root mean square distance of inverse depth from a plane, relative to inverse depth, without a jump."""
RESIDUAL_NOISE, CENTER_PREFERENCE = 1e-3, 3.0
"""A window beside a pixel counts if its residual plus the first is smaller than that of its own over the second."""
RADIUS_SHARE = 0.005
"""Radius of the windows relative to the width of the image."""


def normals_from_depth(
    label: np.ndarray, source: Task, target: Task, camera: PinholeCamera | None, radius: int | None = None
) -> np.ndarray:
    """Compute the normals of the planes that fit depth best around each pixel.

    Inverse depth is linear in the pixels of a plane, at any slope. It is fitted by least squares in square windows.
    Of the windows that contain a pixel, its own one and eight beside it, the one with the smallest residual counts, so
    that windows do not cross jumps and folds of depth.

    The windows have ``2 radius + 1`` pixels a side, where ``radius`` is 0.5 % of the image's width by default, at least
    1. Depth of sensors needs more. Depth is in any unit, and may be inverse depth.

    Returns:
        Unit vectors ``h w 3``: x right, y up, z to the camera. NaN where depth is missing, and where no window is
        without a jump or a missing pixel.
    """
    assert camera is not None
    if radius is not None and radius < 1:
        raise ConfigError(f"data.derive.{target.name}.radius must be at least 1, got {radius}.")
    radius = radius or max(1, round(RADIUS_SHARE * label.shape[1]))
    with np.errstate(divide="ignore"):
        inverse = (label if isinstance(source, InverseDepth) else 1 / label).astype(np.float64)
    known = np.isfinite(inverse) & (inverse > 0)
    plane, residual = _fit_planes(np.where(known, inverse, 0), known, camera, radius)
    chosen, smallest = _best_window(residual, radius)
    normals = plane.reshape(-1, 3)[chosen]
    normals = normalize_(normals, np.maximum(vector_norm(normals), 1e-12)).astype(np.float32)
    normals[~known | (smallest > MAX_RESIDUAL**2)] = np.nan
    return normals


def _fit_planes(
    inverse: np.ndarray, known: np.ndarray, camera: PinholeCamera, radius: int
) -> tuple[np.ndarray, np.ndarray]:
    """Fit inverse depth in a window around each pixel.

    Returns:
        The plane's normal, not of unit length, ``h w 3``, and the mean square residual relative to the square of
        inverse depth, ``h w``: infinite for windows with a missing pixel or beyond the border.
    """
    x, y = camera.rays((inverse.shape[0], inverse.shape[1]))
    steps, ones = np.arange(-radius, radius + 1.0), np.ones(2 * radius + 1)
    squares, count = float(len(ones) * (steps @ steps)), len(ones) ** 2
    kernels = (ones, ones, count), (steps, ones, squares), (ones, steps, squares)
    mean, across, down = (cv2.sepFilter2D(inverse, -1, *pair) / total for *pair, total in kernels)
    variance = cv2.sepFilter2D(inverse * inverse, -1, ones, ones) / count - mean * mean
    variance -= (across * across + down * down) * squares / count
    whole = cv2.erode(known.astype(np.uint8), np.ones((len(ones),) * 2), borderType=cv2.BORDER_CONSTANT, borderValue=0)
    residual = np.where(whole > 0, variance.clip(0) / np.maximum(mean * mean, 1e-24), np.inf)
    pitch_x, pitch_y = (abs(float(axis[-1] - axis[0])) / max(len(axis) - 1, 1) or 1.0 for axis in (x, y))
    slope_x, slope_y = across / pitch_x, -down / pitch_y
    return np.dstack([-slope_x, -slope_y, mean - slope_x * x - slope_y * y[:, None]]), residual


def _best_window(residual: np.ndarray, radius: int) -> tuple[np.ndarray, np.ndarray]:
    """Return, for each pixel, the flat index of the center of its best window, and that window's residual, ``h w``."""
    height, width = residual.shape
    padded = np.pad(residual, radius, constant_values=np.inf)
    smallest, lowest, offset = residual.copy(), residual.copy(), np.zeros(residual.shape, np.int64)
    for down in (-radius, 0, radius):
        for across in (-radius, 0, radius):
            top, left = radius + down, radius + across
            other = padded[top : top + height, left : left + width]
            score = CENTER_PREFERENCE**2 * (other + RESIDUAL_NOISE**2)
            better = score < lowest
            for values, new in ((smallest, other), (lowest, score), (offset, down * width + across)):
                np.copyto(values, new, where=better)
    return np.arange(height * width).reshape(height, width) + offset, smallest
