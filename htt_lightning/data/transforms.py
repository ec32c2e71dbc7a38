"""Augment an image and its maps together.

The transforms are albumentations classes in one ``Compose``. A flip or a zoom also changes the *values* of a map, so
each task transforms its own map. All draws come from the generator passed with the call.
"""

import random
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import albumentations
import cv2
import numpy as np

from htt_lightning.data.batch import Arrays, MapTransform
from htt_lightning.data.extra_transforms import INSIDE, ExtraTransform, ExtraTransforms, check_transforms
from htt_lightning.errors import ConfigError
from htt_lightning.io.arrays import resize
from htt_lightning.tasks.base import IGNORE_INDEX

MEAN_COLOR = (0.485, 0.456, 0.406)
"""RGB in [0, 1] of padding; the network's normalization turns it into zero."""


@dataclass(frozen=True)
class AugmentConfig:
    """Settings of the training augmentation; the defaults are those of ATRC (https://arxiv.org/abs/2104.13874).

    Those of MTAN (https://arxiv.org/abs/1803.10704) are ``AugmentConfig(scale_values=(1, 1.2, 1.5),
    max_crop_attempts=1, hflip_prob=0, photometric_prob=0)``, except that normals are resized by nearest neighbor.

    Args:
        scale_range: Lowest and highest scaling factor, drawn uniformly; ``(1, 1)`` disables scaling.
        scale_values: Scaling factors with equal probability, instead of a range.
        crop: Height and width of training images in pixels; None takes the image size of the run.
        max_crop_attempts: Maximum number of crops drawn until one has balanced classes; the last one is kept.
        cat_max_ratio: Upper bound of the share of the largest class among the labeled pixels of a crop, in (0, 1].
        hflip_prob: Probability of a horizontal flip.
        photometric_prob: Probability of each photometric operation; 0 disables them.
        extra: Further albumentations transforms, by ``class_path`` and ``init_args``, which run before the photometric
            operations. Those of image and mask transform the maps, too. If they move pixels, they are refused for tasks
            whose values depend on the view, such as normals and depth.

    Raises:
        ConfigError: A value is out of its range.
    """

    scale_range: tuple[float, float] = (0.5, 2.0)
    scale_values: tuple[float, ...] = ()
    crop: tuple[int, int] | None = None
    max_crop_attempts: int = 10
    cat_max_ratio: float = 0.75
    hflip_prob: float = 0.5
    photometric_prob: float = 0.5
    extra: tuple[ExtraTransform, ...] = ()

    def __post_init__(self) -> None:
        """Validate the settings."""
        if unset := [key for key, value in vars(self).items() if value is None and key != "crop"]:
            raise ConfigError(f"data.augment.{unset[0]} must not be null. Leave it out for its default.")
        low, high = self.scale_range
        rules = {
            "scale_range": (0 < low <= high < float("inf"), "two positive factors, the smaller one first"),
            "scale_values": (all(0 < factor < float("inf") for factor in self.scale_values), "positive factors"),
            "crop": (self.crop is None or min(self.crop) >= 1, "a height and a width of at least 1 pixel"),
            "max_crop_attempts": (self.max_crop_attempts >= 1, "at least 1"),
            "cat_max_ratio": (0 < self.cat_max_ratio <= 1, "in (0, 1]"),
            "hflip_prob": (0 <= self.hflip_prob <= 1, "a probability in [0, 1]"),
            "photometric_prob": (0 <= self.photometric_prob <= 1, "a probability in [0, 1]"),
        }
        for key, (holds, rule) in rules.items():
            if not holds:
                raise ConfigError(f"data.augment.{key} must be {rule}, got {getattr(self, key)}.")
        check_transforms(self.extra)


class TrainTransform:
    """Scale, crop, flip and distort colors at random, then pad around the center.

    The result has the size ``augment.crop``, else ``size``, else that of the image. Without augmentation, images
    larger than ``size`` keep their size. Of the tasks with ``guides_crop``, the first one labeled on an image guides
    the choice of its crop. One object serves one thread at a time.
    """

    def __init__(
        self, tasks: Sequence[MapTransform], augment: AugmentConfig | None, size: tuple[int, int] | None
    ) -> None:
        self.tasks = tuple(tasks)
        self.size = (augment.crop if augment else None) or size
        self.augments = augment is not None
        steps: list[Any] = []
        if augment:
            steps = [
                RandomScaleCrop(self.tasks, augment, self.size),
                HorizontalFlip(self.tasks, augment.hflip_prob),
                *([ExtraTransforms(augment.extra, self.tasks)] if augment.extra else []),
                PhotoMetricDistortion(augment.photometric_prob),
            ]
        self.compose = albumentations.Compose(steps)

    def __call__(self, arrays: Arrays, rng: np.random.Generator) -> tuple[Arrays, np.ndarray]:
        """Return the augmented uint8 image and maps, and ``valid``: bool ``h w``, False on padding."""
        image = arrays["image"]
        size = self.size or (image.shape[:2] if self.augments else None)
        if image.dtype != np.uint8:
            image = np.asarray(cv2.convertScaleAbs(image, alpha=255))  # rounds
        # albumentations draws from both generators. Seeded with one number, its transforms would repeat each other's
        # draws, so they share the two.
        self.compose.set_random_state(rng, random.Random(int(rng.integers(2**63))))
        arrays = self.compose(**{**arrays, "image": image})
        if self.augments and size and np.greater(arrays["image"].shape[:2], size).any():
            got, limit = ("x".join(map(str, shape[:2])) for shape in (arrays["image"].shape, size))
            rule = f"must return at most {limit} pixels, got {got}"
            raise ConfigError(f"data.augment.extra {rule}. Crop them, or set data.augment.crop.")
        return pad_and_finalize(arrays, self.tasks, size, arrays.get(INSIDE))


class EvalTransform:
    """Pad images smaller than ``size`` around the center; keep larger ones."""

    def __init__(self, tasks: Sequence[MapTransform], size: tuple[int, int] | None) -> None:
        self.tasks, self.size = tuple(tasks), size

    def __call__(self, arrays: Arrays, rng: np.random.Generator | None = None) -> tuple[Arrays, np.ndarray]:
        """Return the padded image and maps, and ``valid`` as ``TrainTransform`` does; nothing is random."""
        return pad_and_finalize(arrays, self.tasks, self.size)


def pad_and_finalize(
    arrays: Arrays,
    tasks: Sequence[MapTransform],
    size: tuple[int, int] | None,
    inside: np.ndarray | None = None,
) -> tuple[Arrays, np.ndarray]:
    """Pad to ``size`` around the center, then postprocess the maps of ``tasks``; other maps are dropped.

    Padding is mean-colored in the image, missing in the maps, and False in ``valid``, bool ``h w``. So are the pixels
    that are False in ``inside``, bool ``h w`` before padding.
    """
    image = arrays["image"]
    inner = image.shape[:2]
    height, width = (max(pair) for pair in zip(inner, size or inner, strict=True))
    top, left = (height - inner[0]) // 2, (width - inner[1]) // 2
    window = slice(top, top + inner[0]), slice(left, left + inner[1])
    padded, is_padded = {"image": image}, inner != (height, width)
    if is_padded:
        color = [round(255 * value) if image.dtype == np.uint8 else value for value in MEAN_COLOR]
        bottom, right = height - window[0].stop, width - window[1].stop
        padded["image"] = cv2.copyMakeBorder(image, top, bottom, left, right, cv2.BORDER_CONSTANT, value=color)
    for task in tasks:
        if (target := arrays.get(task.name)) is not None:
            if is_padded:
                target = task.empty_target(height, width)
                target[window] = arrays[task.name]
            padded[task.name] = task.postprocess_target(target)
    valid = np.zeros((height, width), bool)
    valid[window] = True if inside is None else inside
    return padded, valid


class JointTransform(albumentations.DualTransform):  # type: ignore[misc]  # albumentations is not typed
    """An albumentations transform of the image and one map per task."""

    def __init__(self, tasks: Sequence[MapTransform], p: float = 1.0) -> None:
        self.tasks = tuple(tasks)
        super().__init__(p)

    @property
    def targets(self) -> dict[str, Callable[..., np.ndarray]]:
        """Function for each key of the data."""
        return {"image": self.apply} | {task.name: partial(self.apply_to_map, task=task) for task in self.tasks}

    @abstractmethod
    def apply_to_map(self, array: np.ndarray, task: MapTransform, **params: Any) -> np.ndarray:
        """Transform one task's map as ``apply`` does the image."""


class RandomScaleCrop(JointTransform):
    """Scale and crop at random, to at most ``size`` or else the size of the image before scaling."""

    def __init__(self, tasks: Sequence[MapTransform], augment: AugmentConfig, size: tuple[int, int] | None) -> None:
        super().__init__(tasks)
        self.augment, self.size = augment, size
        self.crop_guides = [task.name for task in self.tasks if task.guides_crop]

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        """Draw the scaling ``factor`` and the ``window`` to keep of the ``scaled`` size."""
        old = params["shape"][:2]
        rng, values = self.random_generator, self.augment.scale_values
        factor = values[rng.integers(len(values))] if values else rng.uniform(*self.augment.scale_range)
        scaled = max(int(old[0] * factor), 1), max(int(old[1] * factor), 1)
        kept = np.minimum(scaled, self.size or old)
        guide = next((name for name in self.crop_guides if name in data), None)
        scaled_maps = {} if guide is None else {guide: resize(data[guide], scaled, "nearest")}
        for _ in range(self.augment.max_crop_attempts):
            offset = rng.integers(np.subtract(scaled, kept), endpoint=True)
            window = tuple(slice(start, start + length) for start, length in zip(offset, kept, strict=True))
            if guide is None or self.is_class_balanced(scaled_maps[guide][window]):
                break
        return {"factor": factor, "scaled": scaled, "window": window, "scaled_maps": scaled_maps}

    def is_class_balanced(self, labels: np.ndarray) -> bool:
        """Return whether a crop ``h w`` of class indices has two classes or more, none above ``cat_max_ratio``."""
        labels = np.ascontiguousarray(labels)
        counts = cv2.calcHist([labels], [0], None, [IGNORE_INDEX + 1], [0, IGNORE_INDEX + 1])[:IGNORE_INDEX]
        return bool((counts > 0).sum() > 1 and counts.max() < self.augment.cat_max_ratio * counts.sum())

    def apply(self, img: np.ndarray, scaled: tuple[int, int], window: tuple[slice, slice], **params: Any) -> np.ndarray:
        """Resize the image bilinearly and crop it."""
        return resize(img, scaled)[window]

    def apply_to_map(self, array: np.ndarray, task: MapTransform, **params: Any) -> np.ndarray:
        """Resize a map by nearest neighbor and crop it: labels are not mixed, missing pixels do not spread."""
        scaled = params["scaled_maps"].get(task.name)
        cropped = (resize(array, params["scaled"], "nearest") if scaled is None else scaled)[params["window"]]
        return cropped if params["factor"] == 1 else task.rescale_values(cropped, params["factor"])


class HorizontalFlip(JointTransform):
    """Flip left to right."""

    def apply(self, img: np.ndarray, **params: Any) -> np.ndarray:
        """Flip the image."""
        return np.asarray(cv2.flip(img, 1))

    def apply_to_map(self, array: np.ndarray, task: MapTransform, **params: Any) -> np.ndarray:
        """Flip a map and its values."""
        return task.flip(array)


class PhotoMetricDistortion(albumentations.ImageOnlyTransform):  # type: ignore[misc]  # albumentations is not typed
    """Distort brightness, contrast, saturation and hue of a uint8 RGB image, as mmsegmentation does."""

    def __init__(self, probability: float) -> None:
        super().__init__(p=float(probability > 0))
        self.probability = probability

    def get_params(self) -> dict[str, Any]:
        """Draw the operations; an operation that is left out gets its neutral value."""
        rng = self.random_generator
        return {
            "brightness": rng.uniform(-32, 32) if rng.random() < self.probability else 0.0,
            "contrast": rng.uniform(0.5, 1.5) if rng.random() < self.probability else 1.0,
            "saturation": rng.uniform(0.5, 1.5) if rng.random() < self.probability else 1.0,
            "hue": int(rng.integers(-18, 18)) if rng.random() < self.probability else 0,
            "contrast_first": rng.random() < 0.5,
        }

    def apply(
        self,
        img: np.ndarray,
        brightness: float = 0.0,
        contrast: float = 1.0,
        saturation: float = 1.0,
        hue: int = 0,
        contrast_first: bool = True,
        **params: Any,
    ) -> np.ndarray:
        """Distort the colors; every operation is clipped to 0..255 and truncated.

        ``brightness`` is added to all channels, ``contrast`` multiplies them, right after brightness or else last.
        ``saturation`` multiplies S of HSV, ``hue`` is added to OpenCV's H modulo 180, in steps of 2 degrees.
        """
        levels = np.arange(256)
        before, after = to_uint8(levels + brightness), to_uint8(levels * contrast)
        if contrast_first:
            before, after = after[before], levels.astype(np.uint8)
        if saturation == 1 and hue == 0:
            return apply_lut(img, after[before])
        hsv = cv2.cvtColor(apply_lut(img, before), cv2.COLOR_RGB2HSV)
        tables = np.stack([(levels + hue) % 180, to_uint8(levels * saturation), levels], axis=-1)
        return apply_lut(cv2.cvtColor(cv2.LUT(hsv, tables[None].astype(np.uint8)), cv2.COLOR_HSV2RGB), after)


def apply_lut(img: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Look up the gray levels of a uint8 image in a table of 256; an identity returns the image itself."""
    return img if (table == np.arange(256)).all() else np.asarray(cv2.LUT(img, table))


def to_uint8(levels: np.ndarray) -> np.ndarray:
    """Clip gray levels to 0..255 and round them towards zero."""
    return levels.clip(0, 255).astype(np.uint8)
