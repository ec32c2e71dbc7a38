"""Transforms of albumentations that a config names: of the image alone, or of image and maps."""

import random
from collections.abc import Iterable, Iterator, Sequence
from copy import deepcopy
from typing import Any, TypeAlias

import albumentations as A
import cv2
import numpy as np

from htt_lightning.data.batch import Arrays, MapTransform
from htt_lightning.errors import ConfigError
from htt_lightning.tasks import Task

ExtraTransform: TypeAlias = A.BasicTransform | A.BaseCompose
"""Transform, or a choice of several such as ``OneOf``."""

KEEPS_VALUES = {
    *("NoOp", "CoarseDropout", "Erasing", "GridDropout", "PixelDropout", "XYMasking", "TimeMasking"),
    *("FrequencyMasking", "CenterCrop", "Crop", "RandomCrop", "RandomCropFromBorders", "Pad", "PadIfNeeded"),
}
"""Transforms of image and maps that move no pixel, or all of them alike. Older releases lack some."""
MIRRORS = (A.HorizontalFlip, A.VerticalFlip, A.Transpose, A.D4)
MIRROR_BORDERS = (cv2.BORDER_REFLECT, cv2.BORDER_REFLECT_101)
REFUSED = {
    "Transform3D": "works on volumes alone",
    "Morphological": "changes the values of maps",
    **dict.fromkeys(("BBoxSafeRandomCrop", "AtLeastOneBBoxRandomCrop"), "needs boxes beside each image"),
    "ConstrainedCoarseDropout": "needs boxes or a mask beside each image",
}
"""Reasons by the name of a class, which hold for its subclasses, too."""
INSIDE = "inside the image"
"""Key of the map of pixels that come from the image, bool ``h w``; no name of a task."""
MARK = 137
"""Mark of such pixels while they are moved; a number that is no usual value for filling."""


def single_transforms(steps: Iterable[ExtraTransform]) -> Iterator[A.BasicTransform]:
    """Yield transforms, and the members of choices among them."""
    for step in steps:
        yield from single_transforms(step.transforms) if isinstance(step, A.BaseCompose) else (step,)


def check_transforms(steps: Sequence[ExtraTransform]) -> None:
    """Raise a ``ConfigError`` for transforms that images and maps of this library cannot take."""
    for step in single_transforms(steps):
        needs = step.targets_as_params
        nearest = getattr(step, "mask_interpolation", None) in (None, cv2.INTER_NEAREST, cv2.INTER_NEAREST_EXACT)
        rules = {
            "works on neither images nor maps": not isinstance(step, A.ImageOnlyTransform | A.DualTransform),
            f"needs {', '.join(needs)} beside each image": bool(needs),
            "blends the values of maps; set its mask_interpolation to 0": not nearest,
        } | {text: True for kind in type(step).__mro__ if (text := REFUSED.get(kind.__name__))}
        for text, broken in rules.items():
            if broken:
                name = type(step).__name__
                raise ConfigError(f"data.augment.extra must transform images, or images and maps; {name} {text}.")


def check_values_stay_right(steps: Sequence[ExtraTransform], tasks: Iterable[Task]) -> None:
    """Raise a ``ConfigError`` for transforms that would leave a map with wrong values, such as turned normals."""
    for step in single_transforms(steps):
        keeps = type(step).__module__.startswith("albumentations.") and type(step).__name__ in KEEPS_VALUES
        moves = not (keeps or isinstance(step, A.ImageOnlyTransform))
        mirrors = isinstance(step, MIRRORS) or getattr(step, "border_mode", None) in MIRROR_BORDERS
        for task in tasks:
            if (moves and task.view_changes_values) or (mirrors and task.mirror_changes_values):
                raise ConfigError(
                    f"data.augment.extra must leave the values of {task.name} right, got {type(step).__name__}, which "
                    f"{'mirrors' if mirrors else 'moves'} pixels. Leave out the transform, or the task in data.tasks."
                )


class ExtraTransforms(A.BasicTransform):  # type: ignore[misc]  # albumentations is not typed
    """Run transforms on the image, and on the maps where they are not of the image alone.

    The result then also has the map ``INSIDE``; other pixels are missing in the maps, which move by nearest neighbor.
    """

    def __init__(self, steps: Sequence[ExtraTransform], tasks: Sequence[MapTransform]) -> None:
        check_transforms(steps)
        check_values_stay_right(steps, [task for task in tasks if isinstance(task, Task)])
        dual = any(isinstance(step, A.DualTransform) for step in single_transforms(steps))
        self.tasks = {f"map {task.name}": task for task in tasks} if dual else {}
        self.names = ", ".join(type(step).__name__ for step in single_transforms(steps))
        targets = dict.fromkeys([INSIDE, *self.tasks], "mask") if dual else {}
        # A transform keeps the random state of its ``Compose``.
        self.compose = A.Compose([deepcopy(step) for step in steps], additional_targets=targets)
        super().__init__(p=1.0)

    @property
    def targets(self) -> dict[str, Any]:
        """Return nothing, as the transforms have their own."""
        return {}

    def set_random_state(self, random_generator: np.random.Generator, py_random: random.Random) -> None:
        """Let the transforms draw from two generators."""
        super().set_random_state(random_generator, py_random)
        self.compose.set_random_state(random_generator, py_random)

    def __call__(self, *args: Any, force_apply: bool = False, **arrays: np.ndarray) -> Arrays:
        """Transform an image, uint8 ``h w 3``, and its maps."""
        maps = {key: arrays[task.name] for key, task in self.tasks.items() if task.name in arrays}
        marks = {INSIDE: np.full(arrays["image"].shape[:2], MARK, np.uint8)} if self.tasks else {}
        try:
            found: dict[str, Any] = self.compose(image=arrays["image"], **maps, **marks)
        except Exception as error:  # a transform raises errors of any type
            raise ConfigError(f"data.augment.extra ({self.names}) failed: {error}") from error
        image = found["image"]
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            rule = f"must return images uint8 h w 3, got {image.dtype} {image.shape}"
            raise ConfigError(f"data.augment.extra ({self.names}) {rule}. Leave out such a transform.")
        if not self.tasks:
            return arrays | {"image": image}
        inside = found[INSIDE] == MARK
        moved = {self.tasks[key].name: _mask_outside(found[key], inside, self.tasks[key]) for key in maps}
        return arrays | {"image": image, INSIDE: inside} | moved


def _mask_outside(array: np.ndarray, inside: np.ndarray, task: MapTransform) -> np.ndarray:
    """Mark the pixels of a map that do not come from the image as missing."""
    if inside.all():
        return array
    keep = inside if array.ndim == 2 else inside[..., None]
    return np.where(keep, array, task.empty_target(*inside.shape))
