"""Maps as another program would write them: the truth of rendered scenes with unknown scale and shift, and with errors.

They stand in for the foundation models that people use as teachers, of whose weights none is at hand.
"""

from pathlib import Path

import cv2
import numpy as np

from htt_lightning.data import SyntheticScenes
from htt_lightning.io.files import atomic_path

SCALE, SHIFT = 3.7, -0.6
"""Depth is ``SCALE * value + SHIFT``, in meters; nothing but these maps knows it."""
TASKS = ("depth", "normals")


def smooth_noise(rng: np.random.Generator, size: tuple[int, int], channels: int = 1) -> np.ndarray:
    """Draw noise of unit deviation that is smooth over a tenth of the image, float32 ``h w c``."""
    noise = rng.standard_normal((*size, channels)).astype(np.float32)
    noise = cv2.GaussianBlur(noise, (0, 0), max(size) / 40).reshape(*size, channels)
    return np.asarray(noise / noise.std(), np.float32)


def write_noisy_maps(folder: Path, scenes: SyntheticScenes, level: float) -> None:
    """Write a map of depth and of normals for every scene, unless there are some.

    Args:
        folder: Gets a folder for each task.
        scenes: The scenes.
        level: Relative error of depth. Normals get one and a half times of it on every axis: 0.1 is some 12 degrees.
    """
    for index, name in enumerate(scenes.ids):
        paths = [folder / task / f"{name}.npy" for task in TASKS]
        if all(path.exists() for path in paths):
            continue
        rng, size = np.random.default_rng([7, index]), scenes.size(index)
        depth = scenes.label(index, "depth") * (1 + level * smooth_noise(rng, size)[..., 0])
        normals = scenes.label(index, "normals") + 1.5 * level * smooth_noise(rng, size, 3)
        normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
        for path, array in zip(paths, ((depth - SHIFT) / SCALE, normals), strict=True):
            with atomic_path(path) as partial, partial.open("wb") as file:
                np.save(file, array.astype(np.float32))
