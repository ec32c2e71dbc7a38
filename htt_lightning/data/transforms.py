"""Joint augmentation of an image and its maps, in the order and with the numbers of protocol.md 3.2.

The transforms are albumentations classes in one ``Compose``, with two differences from its stock ones. What a flip or a
zoom does to the *values* of a map is the task's affair, so maps are targets of their own under the task's name instead
of anonymous masks. And all draws come from the generator passed with the call, so that a draw can be a function of
(seed, epoch, image id) whichever worker makes it; no global random state is read or changed.
"""

import os
import random
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import cv2
import numpy as np

# Without this, importing albumentations asks the network for its latest version.
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"

import albumentations

from htt_lightning.data.batch import Arrays, MapTransform
from htt_lightning.errors import HTTError
from htt_lightning.io.arrays import resize_nearest
from htt_lightning.tasks.base import IGNORE_INDEX

MEAN_COLOR = (0.485, 0.456, 0.406)
"""RGB in [0, 1] of padding: what the network's normalisation turns into zero (protocol.md 3.2, steps 5 and 6)."""


@dataclass(frozen=True)
class AugmentConfig:
    """Numbers of the training augmentation: by default that of ATRC (protocol.md 3.2).

    That of MTAN is ``AugmentConfig(scale_values=(1, 1.2, 1.5), max_crop_attempts=1, hflip_prob=0,
    photometric_prob=0)``, here with nearest
    neighbours for normals: interpolated ones are shorter than 1 and bleed across holes.

    Args:
        scale_range: Range of the scaling factor, drawn uniformly; ``(1, 1)`` switches scaling off.
        scale_values: Factors of which each is as likely, instead of a range.
        crop: Size ``(h, w)`` in pixels of training images; None takes the run's image size.
        max_crop_attempts: Crops drawn at most until one has a balanced choice of classes; the last one is kept.
        cat_max_ratio: The largest class must cover less than this share of a crop's labelled pixels.
        hflip_prob: Probability of mirroring left to right.
        photometric_prob: Probability of each photometric operation; 0 switches them off.

    Raises:
        HTTError: If a value is out of its range.
    """

    scale_range: tuple[float, float] = (0.5, 2.0)
    scale_values: tuple[float, ...] = ()
    crop: tuple[int, int] | None = None
    max_crop_attempts: int = 10
    cat_max_ratio: float = 0.75
    hflip_prob: float = 0.5
    photometric_prob: float = 0.5

    def __post_init__(self) -> None:
        """Refuse what no image could be augmented with."""
        if unset := [key for key, value in vars(self).items() if value is None and key != "crop"]:
            raise HTTError(f"augment.{unset[0]} cannot be null: leave it out for its default")
        rules = {
            "scale_range": (
                0 < self.scale_range[0] <= self.scale_range[1] < float("inf"),
                "two positive factors, the smaller first",
            ),
            "scale_values": (all(0 < factor < float("inf") for factor in self.scale_values), "positive factors"),
            "crop": (self.crop is None or min(self.crop) >= 1, "a height and a width of at least 1 pixel"),
            "max_crop_attempts": (self.max_crop_attempts >= 1, "at least 1"),
            "cat_max_ratio": (0 < self.cat_max_ratio <= 1, "above 0 and at most 1"),
            "hflip_prob": (0 <= self.hflip_prob <= 1, "a probability from 0 to 1"),
            "photometric_prob": (0 <= self.photometric_prob <= 1, "a probability from 0 to 1"),
        }
        for key, (holds, rule) in rules.items():
            if not holds:
                raise HTTError(f"augment.{key} is {getattr(self, key)}; it must be {rule}")


class TrainTransform:
    """Random scaling, crop, flip and colours, then centred padding (protocol.md 3.2, steps 1 to 7).

    Every result has the size ``augment.crop``, else ``size``, else that of the image itself; without augmentation,
    images larger than ``size`` keep theirs. One object serves one thread at a time; it can be pickled.

    Args:
        tasks: The run's tasks; other maps are dropped. The first one with ``guides_crop`` that an image is labelled
            for steers the choice of its crop: a hidden label has no influence (protocol.md 6.16).
        augment: What to draw; None augments nothing.
        size: Image size ``(h, w)`` of the run; None for the images' own.
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
                PhotoMetricDistortion(augment.photometric_prob),
            ]
        self.compose = albumentations.Compose(steps)

    def __call__(self, arrays: Arrays, rng: np.random.Generator) -> tuple[Arrays, np.ndarray]:
        """Augment one image.

        Args:
            arrays: The image and the maps it is labelled for; they stay unchanged.
            rng: The only source of randomness, advanced by the call.

        Returns:
            The uint8 image ``h w 3`` and the maps, and ``valid``: bool ``h w``, False on padding.
        """
        image = arrays["image"]
        size = self.size or (image.shape[:2] if self.augments else None)
        if image.dtype != np.uint8:
            image = np.asarray(cv2.convertScaleAbs(image, alpha=255))  # rounded, in one pass
        # albumentations draws from both kinds of generators. Seeding them from one number would make its transforms
        # draw the same numbers as each other, so they share the two.
        self.compose.set_random_state(rng, random.Random(int(rng.integers(2**63))))
        return finish(self.compose(**{**arrays, "image": image}), self.tasks, size)


class EvalTransform:
    """Centred padding of images smaller than ``size``; larger ones stay as they are (protocol.md 3.2, column Eval).

    Args:
        tasks: The run's tasks; other maps are dropped.
        size: Image size ``(h, w)`` of the run; None pads nothing.
    """

    def __init__(self, tasks: Sequence[MapTransform], size: tuple[int, int] | None) -> None:
        self.tasks = tuple(tasks)
        self.size = size

    def __call__(self, arrays: Arrays, rng: np.random.Generator | None = None) -> tuple[Arrays, np.ndarray]:
        """Pad one image; its type stays uint8 or float32.

        Args:
            arrays: The image and the maps it is labelled for; they stay unchanged.
            rng: Unused, so that both transforms are called alike.

        Returns:
            The image and the maps, and ``valid``: bool ``h w``, False on padding.
        """
        return finish(arrays, self.tasks, self.size)


def finish(arrays: Arrays, tasks: Sequence[MapTransform], size: tuple[int, int] | None) -> tuple[Arrays, np.ndarray]:
    """Pad to ``size``, centred, then settle every labelled map (protocol.md 3.2, steps 6 and 7).

    Args:
        arrays: Image and maps of one size.
        tasks: The run's tasks.
        size: Least size ``(h, w)`` of the result; None pads nothing.

    Returns:
        The image, mean-coloured on padding, and the tasks' maps, missing there; ``valid``: bool ``h w``, False there.
    """
    image = arrays["image"]
    inner = image.shape[:2]
    height, width = np.maximum(inner, size or inner)
    top, left = (height - inner[0]) // 2, (width - inner[1]) // 2
    window = slice(top, top + inner[0]), slice(left, left + inner[1])

    if inner == (height, width):
        settled = {task.name: task.postprocess_target(arrays[task.name]) for task in tasks if task.name in arrays}
        return {"image": image, **settled}, np.ones(inner, bool)

    def pad(array: np.ndarray, blank: np.ndarray) -> np.ndarray:
        """Write every pixel once: what a pixel of ``blank`` has around the array."""
        padded, line = np.empty((height, width, *array.shape[2:]), blank.dtype), np.tile(blank.ravel(), width)
        flat, before, after = padded.reshape(height, -1), left * blank.size, (left + inner[1]) * blank.size
        # Lines are copied whole: numpy repeats the few channels of one pixel slowly.
        flat[:top] = flat[top + inner[0] :] = line
        flat[:, :before], flat[:, after:] = line[:before], line[after:]
        padded[window] = array
        return padded

    colour = np.rint(np.multiply(MEAN_COLOR, 255)) if image.dtype == np.uint8 else np.array(MEAN_COLOR)
    padded = {"image": pad(image, colour.astype(image.dtype))}
    for task in tasks:
        if task.name in arrays:
            padded[task.name] = task.postprocess_target(pad(arrays[task.name], task.empty_target(1, 1)[0, 0]))
    return padded, pad(np.ones(inner, bool), np.zeros((), bool))


class JointTransform(albumentations.DualTransform):  # type: ignore[misc]  # albumentations is not typed
    """An albumentations transform whose targets are the image and one map per task.

    Args:
        tasks: Tasks whose maps are transformed, each under its name.
        p: Probability of applying the transform.
    """

    def __init__(self, tasks: Sequence[MapTransform], p: float = 1.0) -> None:
        self.tasks = tuple(tasks)
        super().__init__(p)

    @property
    def targets(self) -> dict[str, Callable[..., np.ndarray]]:
        """The function for each key of the data."""
        return {"image": self.apply} | {task.name: partial(self.apply_to_map, task=task) for task in self.tasks}

    @abstractmethod
    def apply_to_map(self, array: np.ndarray, task: MapTransform, **params: Any) -> np.ndarray:
        """Transform one task's map as ``apply`` does the image."""


class RandomScaleCrop(JointTransform):
    """Random scaling and random crop (protocol.md 3.2, steps 1 and 2), in one so that maps are read only where needed.

    Args:
        tasks: Tasks whose maps are transformed.
        augment: Range of the factor and rule of the crop.
        size: Largest size ``(h, w)`` of the result; None for the image's size before scaling.
    """

    def __init__(self, tasks: Sequence[MapTransform], augment: AugmentConfig, size: tuple[int, int] | None) -> None:
        super().__init__(tasks)
        self.augment = augment
        self.size = size
        self.crop_guides = [task.name for task in self.tasks if task.guides_crop]

    def get_params_dependent_on_data(self, params: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
        """Draw the factor and the crop: the ``scaled`` size, ``rows`` and ``columns`` of it to keep, ``known`` maps."""
        old = params["shape"][:2]
        rng, choices = self.random_generator, self.augment.scale_values
        factor = choices[rng.integers(len(choices))] if choices else rng.uniform(*self.augment.scale_range)
        scaled = [max(int(length * factor), 1) for length in old]
        kept = np.minimum(scaled, self.size or old)
        judge = next((name for name in self.crop_guides if name in data), None)
        for _ in range(self.augment.max_crop_attempts):
            offset = rng.integers(scaled - kept, endpoint=True)
            rows, columns = (slice(start, start + length) for start, length in zip(offset, kept, strict=True))
            crop = {"factor": factor, "scaled": scaled, "rows": rows, "columns": columns}
            if judge is None:
                return {**crop, "known": {}}
            judged = resize_nearest(data[judge], **crop)
            if self.balanced(judged):
                break
        return {**crop, "known": {judge: judged}}

    def balanced(self, labels: np.ndarray) -> bool:
        """Whether a crop ``h w`` of class indices has two classes or more and none of them dominates."""
        counts = cv2.calcHist([labels], [0], None, [IGNORE_INDEX + 1], [0, IGNORE_INDEX + 1])[:IGNORE_INDEX]
        return bool((counts > 0).sum() > 1 and counts.max() < self.augment.cat_max_ratio * counts.sum())

    def apply(self, img: np.ndarray, scaled: list[int], rows: slice, columns: slice, **params: Any) -> np.ndarray:
        """Bilinear interpolation."""
        if scaled != [*img.shape[:2]]:
            img = cv2.resize(img, (scaled[1], scaled[0]), interpolation=cv2.INTER_LINEAR)
        return img[rows, columns]

    def apply_to_map(
        self, array: np.ndarray, task: MapTransform, factor: float = 1.0, known: Arrays | None = None, **params: Any
    ) -> np.ndarray:
        """Nearest neighbour: no new labels, and missing pixels neither vanish nor spread."""
        array = known[task.name] if known and task.name in known else resize_nearest(array, **params)
        return array if factor == 1 else task.rescale_values(array, factor)


class HorizontalFlip(JointTransform):
    """Mirror left to right (protocol.md 3.2, step 3)."""

    def apply(self, img: np.ndarray, **params: Any) -> np.ndarray:
        """Mirror the image."""
        return np.asarray(cv2.flip(img, 1))

    def apply_to_map(self, array: np.ndarray, task: MapTransform, **params: Any) -> np.ndarray:
        """Mirror a map, its values included."""
        return task.flip(array)


class PhotoMetricDistortion(albumentations.ImageOnlyTransform):  # type: ignore[misc]  # albumentations is not typed
    """Brightness, contrast, saturation and hue of a uint8 RGB image (protocol.md 3.2, step 4).

    Saturation and hue share one conversion to HSV and back.

    Args:
        probability: Probability of each of the four operations.
    """

    def __init__(self, probability: float) -> None:
        super().__init__(p=float(probability > 0))
        self.probability = probability

    def get_params(self) -> dict[str, Any]:
        """Draw the operations; the neutral number for those left out."""
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
        """Change the colours; every operation is clipped to 0..255 and truncated.

        Args:
            img: uint8 RGB ``h w 3``.
            brightness: Added to all channels, in grey levels.
            contrast: Factor on all channels.
            saturation: Factor on S of HSV.
            hue: Added to OpenCV's H of HSV, modulo 180; in steps of 2 degrees.
            contrast_first: Whether contrast comes right after brightness, or else last.
            **params: Ignored.

        Returns:
            A new uint8 image ``h w 3``.
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
    """A uint8 image, the image itself where nothing changes, with its grey levels looked up in a table of 256."""
    return img if (table == np.arange(256)).all() else np.asarray(cv2.LUT(img, table))


def to_uint8(levels: np.ndarray) -> np.ndarray:
    """Grey levels as uint8: clipped to 0..255 and rounded towards zero."""
    return levels.clip(0, 255).astype(np.uint8)
