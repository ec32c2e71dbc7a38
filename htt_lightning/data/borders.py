"""Borders between the segments of a map, as labels of edges have them."""

import cv2
import numpy as np
from skimage.morphology import thin


def segment_boundaries(segments: np.ndarray) -> np.ndarray:
    """Return pixels whose right or lower neighbor lies in another segment, bool ``h w``.

    Examples:
        >>> segment_boundaries(np.array([[1, 1, 2]]))
        array([[False,  True, False]])
    """
    edges = np.zeros(segments.shape, np.bool_)
    edges[:, :-1] |= segments[:, :-1] != segments[:, 1:]
    edges[:-1] |= segments[:-1] != segments[1:]
    return edges


def thin_boundaries(segments: np.ndarray) -> np.ndarray:
    """Return pixels where the Laplacian of the ids is not zero, thinned to one pixel, bool ``h w``."""
    laplacian = cv2.Laplacian(segments.astype(np.float32), cv2.CV_32F)  # OpenCV is slow with integers
    return np.asarray(thin(laplacian != 0))
