"""Pixel classification and semantic segmentation."""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, ClassVar, Literal

import cv2
import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from htt_lightning.errors import ConfigError, did_you_mean
from htt_lightning.losses import cross_entropy, masked_mean, upcast
from htt_lightning.metrics import SegmentationScores
from htt_lightning.output import TaskOutput, upsample_to_image
from htt_lightning.tasks.base import IGNORE_INDEX, Task
from htt_lightning.tasks.colormap import apply_palette, class_palette
from htt_lightning.tasks.pseudo_label import PseudoLabel, argmax_with_confidence

MEDIAN_FREQUENCY = "median_frequency"


@dataclass(frozen=True, kw_only=True)
class PixelClassification(Task):
    """A class per pixel: cross entropy and mean IoU.

    Args:
        classes: Class names; the index of a class is its value in the map. In ``data.tasks``, by default the dataset's.
        absent_classes: Rule for classes in neither labels nor predictions. Mean IoU skips them by default (``skip``);
            with ``zero`` they count as 0, as in the release.
        class_balance_power: Exponent in [0, 1] that rebalances soft targets. Each class probability is divided by the
            class's share of the image to this power; 0 disables it.
        flip_pairs: Pairs of class names that a mirror image swaps, such as ``[[left arm, right arm]]``.
        class_weights: Weight of each class in the cross entropy: a list, or a mapping of names (others weigh 1).
            ``median_frequency`` takes the median class frequency over the class's own
            ([Eigen and Fergus](https://arxiv.org/abs/1411.4734), Sec. 6.3.2), counted in the labels of the training
            images. An image is divided by the weight of its pixels. Soft targets are not weighted.
        **kwargs: Fields of ``Task``.
    """

    classes: tuple[str, ...] = ()
    absent_classes: Literal["skip", "zero"] = "skip"
    class_balance_power: float = 0.5
    class_weights: tuple[float, ...] | dict[str, float] | Literal["median_frequency"] | None = None
    flip_pairs: tuple[tuple[str, str], ...] = ()

    training_fields: ClassVar[tuple[str, ...]] = (
        *Task.training_fields, "class_balance_power", "class_weights", "flip_pairs"
    )  # fmt: skip
    metric_fields: ClassVar[tuple[str, ...]] = (*Task.metric_fields, "absent_classes")
    logits_are_distribution: ClassVar[bool] = True
    primary_metric: ClassVar[str] = "miou"
    higher_is_better: ClassVar[bool] = True
    metric_unit: ClassVar[str] = "%"
    output_unit: ClassVar[str] = "class index"
    large_error: ClassVar[str] = "wrong class"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_flip_pairs()
        self._check_class_weights()

    def _check_flip_pairs(self) -> None:
        paired = [name for pair in self.flip_pairs for name in pair]
        known = self.class_names if paired else ()
        wrong = [name for name in paired if name not in known or paired.count(name) > 1]
        if wrong or any(len(pair) != 2 for pair in self.flip_pairs):
            hint = did_you_mean(wrong[0], known) if wrong and wrong[0] not in known else ""
            rule = f"be pairs of {', '.join(known)}, each class once"
            raise ConfigError(f"flip_pairs of {self.name} must {rule}, got {wrong[0] if wrong else paired!r}.{hint}")

    def _check_class_weights(self) -> None:
        weights: Any = self.class_weights
        if not self.classes or weights in (None, MEDIAN_FREQUENCY):
            return
        if isinstance(weights, dict):
            for name in set(weights).difference(self.classes):
                hint = did_you_mean(name, self.classes)
                raise ConfigError(f"class_weights of {self.name} must name classes, got {name!r}.{hint}")
            weights = tuple(weights.get(name, 1.0) for name in self.classes)
            object.__setattr__(self, "class_weights", weights)
        valid = isinstance(weights, tuple) and len(weights) == len(self.classes)
        if not valid or not all(math.isfinite(w) and w >= 0 for w in weights) or not any(weights):
            rule = f"{len(self.classes)} numbers of at least 0, one above 0, names of classes, or {MEDIAN_FREQUENCY}"
            raise ConfigError(f"class_weights of {self.name} must be {rule}, got {self.class_weights}.")

    @property
    def num_tokens(self) -> int:
        """Return the number of classes."""
        return len(self.class_names)

    @property
    def png_unit(self) -> str | None:
        """Return ``class index``; None if 8 bits do not hold every class."""
        return self.output_unit if self.num_tokens <= 256 else None

    def to_png(self, values: np.ndarray) -> np.ndarray | None:
        """Encode classes as uint8 ``h w``; None if ``png_unit`` is None."""
        return values.astype(np.uint8) if self.png_unit else None

    @property
    def class_names(self) -> tuple[str, ...]:
        """Return the names of the classes; raise a ``ConfigError`` if the task has none."""
        if not self.classes:
            raise ConfigError(f"classes of {self.name} must be a list of names, got none. Set it in its init_args.")
        return self.classes

    def loss(self, output: TaskOutput, target: Tensor) -> Tensor:
        """Compute the cross entropy, mean over valid pixels."""
        valid = self.valid_mask(target)
        return self._loss(output, target, valid, valid)

    def _loss(self, output: TaskOutput, label: Tensor, counted: Tensor, valid: Tensor) -> Tensor:
        """Compute the cross entropy of the counted pixels, mean over the valid ones."""
        logits = upsample_to_image(upcast(output.logits), (label.shape[-2], label.shape[-1]))
        losses = cross_entropy(logits, label, counted)
        if self.class_weights is None:
            return masked_mean(losses, valid)
        if not isinstance(self.class_weights, tuple):
            message = f"class_weights of {self.name} must be numbers outside of fit, got {self.class_weights!r}."
            raise ConfigError(f"{message} Train with a trainer, or give numbers.")
        weight = _weight_table(self.class_weights, logits.device)[label.masked_fill(~valid, 0)]
        return masked_mean(weight * losses, valid) / masked_mean(weight, valid).clamp(min=1e-12)

    def decode(self, output: TaskOutput, size: tuple[int, int]) -> Tensor:
        """Take the most likely class, int64 ``b h w``."""
        return upsample_to_image(upcast(output.logits), size).argmax(1)

    def pseudo_label(self, output: TaskOutput, size: tuple[int, int]) -> PseudoLabel:
        """Take the most likely class and its probability."""
        return argmax_with_confidence(output, size)

    def pseudo_label_loss(self, output: TaskOutput, found: PseudoLabel, valid: Tensor) -> Tensor:
        """Compute the cross entropy of confident pixels, mean over all valid ones."""
        return self._loss(output, found.label, valid & self.confidence_mask(found.confidence), valid)

    def finalize_soft_target(self, soft_target: Tensor, valid: Tensor) -> Tensor:
        """Rebalance class probabilities by the class shares of each image."""
        inside = valid[:, None].to(soft_target.dtype)
        share = (soft_target * inside).sum((2, 3), keepdim=True) / inside.sum((2, 3), keepdim=True).clamp(min=1)
        balanced = soft_target / share.clamp(min=1e-6) ** self.class_balance_power
        return balanced / balanced.sum(1, keepdim=True)

    @property
    def view_changes_values(self) -> bool:
        """Whether a zoom changes classes, which a subclass alone may say."""
        return type(self).rescale_values is not Task.rescale_values

    @property
    def mirror_changes_values(self) -> bool:
        """Whether classes have a side."""
        return bool(self.flip_pairs) or type(self).flip is not PixelClassification.flip

    @property
    def mirrored_classes(self) -> list[int]:
        """Return the class in a mirror image, by class."""
        partners = {one: other for pair in self.flip_pairs for one, other in (pair, pair[::-1])}
        return [self.class_names.index(partners.get(name, name)) for name in self.class_names]

    def flip(self, array: np.ndarray) -> np.ndarray:
        """Mirror a map left to right and swap the classes of ``flip_pairs``."""
        flipped = super().flip(array)
        if not self.flip_pairs:
            return flipped
        table = np.arange(256, dtype=np.uint8)
        table[: self.num_tokens] = self.mirrored_classes
        return np.asarray(cv2.LUT(flipped, table)).reshape(array.shape)

    def unflip(self, soft_target: Tensor) -> Tensor:
        """Mirror the map and swap the classes of ``flip_pairs``: channels, or the values of class indices ``b h w``."""
        flipped = super().unflip(soft_target)
        # Not by an index tensor, whose way to a GPU the host would wait for.
        if soft_target.is_floating_point():
            return torch.stack([flipped[:, k] for k in self.mirrored_classes], 1) if self.flip_pairs else flipped
        swapped = flipped
        for index, partner in enumerate(self.mirrored_classes if self.flip_pairs else ()):
            swapped = torch.where(flipped == index, partner, swapped)
        return swapped

    def metrics(self) -> Metric:
        """Make the metric: mean IoU and pixel accuracy in percent."""
        return SegmentationScores(self.num_tokens, absent_classes=self.absent_classes)

    def colorize(self, values: Tensor) -> Tensor:
        """Draw each class in a fixed color."""
        return apply_palette(class_palette(self.num_tokens).to(values.device), values)

    def error_map(self, values: Tensor, target: Tensor) -> Tensor:
        """Compute 1 where the class is wrong."""
        return (values != target).float()

    def legend(self) -> list[tuple[str, Tensor]]:
        """Return the classes."""
        return [(name, torch.full((1, 1, 1), index)) for index, name in enumerate(self.class_names)]


def unpaired_sides(tasks: Sequence[Task]) -> list[str]:
    """Return a warning for each task with classes of a left and a right side that ``flip_pairs`` does not name.

    >>> unpaired_sides([SemSeg(classes=("left arm", "right arm"), flip_pairs=(("left arm", "right arm"),))])
    []
    """
    warnings = []
    for task in tasks:
        if not isinstance(task, PixelClassification):
            continue
        paired = {name for pair in task.flip_pairs for name in pair}
        by_name = {name.lower(): name for name in task.classes}
        sides = [(name, by_name.get(name.lower().replace("left", "right"), name)) for name in task.classes]
        if pairs := [[left, right] for left, right in sides if left != right and not {left, right} <= paired]:
            option = f"data.task_overrides.{task.name}.flip_pairs"
            text = json.dumps(pairs, ensure_ascii=False)
            warnings.append(
                f"Mirror images keep the left and right classes of {task.name} as they are. Set {option} to {text}."
            )
    return warnings


def resolve_class_weights(tasks: Sequence[Task], trainer: Any) -> list[Task]:
    """Replace the name of a rule in ``class_weights`` by weights from the labels that training images keep.

    The first rank counts, so that all have the same weights.
    """
    resolved = list(tasks)
    for index, task in enumerate(tasks):
        if isinstance(task, PixelClassification) and task.class_weights == MEDIAN_FREQUENCY:
            data = trainer.datamodule
            if not hasattr(data, "training_targets"):
                rule = f"numbers, as {MEDIAN_FREQUENCY} needs a datamodule of this library"
                raise ConfigError(f"class_weights of {task.name} must be {rule}, got {type(data).__name__}.")
            counted = median_frequency(data.training_targets(task), task.num_tokens) if trainer.is_global_zero else None
            resolved[index] = replace(task, class_weights=trainer.strategy.broadcast(counted))
    return resolved


def median_frequency(targets: Iterable[Tensor], num_classes: int) -> tuple[float, ...]:
    """Compute class weights from labels ``h w``: the median frequency over that of the class.

    The frequency of a class is its share of the pixels of the images that have it. A class without pixels weighs 1.

    Examples:
        >>> median_frequency([torch.tensor([[0, 0, 0, 1]]), torch.tensor([[0, 255]])], 3)
        (0.7..., 2.1..., 1.0)
    """
    pixels, images = torch.zeros(num_classes, dtype=torch.float64), torch.zeros(num_classes, dtype=torch.float64)
    for target in targets:
        counts = torch.bincount(target[target != IGNORE_INDEX].flatten(), minlength=num_classes).double()
        pixels += counts
        images += counts.sum() * (counts > 0)
    frequency = pixels / images
    median = frequency[images > 0].quantile(0.5) if images.any() else 1.0
    return tuple(torch.where(images > 0, median / frequency, 1.0).tolist())


@lru_cache(maxsize=32)
def _weight_table(weights: tuple[float, ...], device: torch.device) -> Tensor:
    """Return class weights as a tensor that is made once, as a copy to a device waits for it."""
    with torch.inference_mode(False):
        return torch.tensor(weights, device=device)


@dataclass(frozen=True, kw_only=True)
class SemSeg(PixelClassification):
    """Semantic segmentation."""

    name: str = "semseg"

    guides_crop: ClassVar[bool] = True
