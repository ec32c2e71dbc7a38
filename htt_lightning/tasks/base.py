"""The one abstraction behind every dense prediction task."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from importlib import import_module
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from htt_lightning.errors import HTTError
from htt_lightning.losses import upcast
from htt_lightning.output import Output, to_pixels
from htt_lightning.tasks.given import Given
from htt_lightning.tasks.stored import Stored
from htt_lightning.tasks.tally import Spread, Tally

IGNORE = 255  # the missing value of index maps (contracts.md, Batch)

RELEASED_NAMES: Mapping[str, str] = MappingProxyType({"sal": "saliency", "edge": "edges"})
"""Tasks that published masks and checkpoints call otherwise."""


class Discovered(NamedTuple):
    """A task's labels as a teacher sees them (method.md 4).

    Attributes:
        label: In the form of a target, without missing pixels.
        confidence: ``b h w`` in [0, 1].
    """

    label: Tensor
    confidence: Tensor


class Figure(NamedTuple):
    """What kind of number a figure is.

    Attributes:
        unit: ``%``, ``m``, ``deg``, or empty.
        higher_is_better: Its direction.
    """

    unit: str = "%"
    higher_is_better: bool = True


def likeliest(output: Output, size: tuple[int, int]) -> Discovered:
    """The likeliest channel of each pixel at ``size = (h, w)``, and its probability."""
    confidence, label = to_pixels(upcast(output.logits), size).softmax(1).max(1)
    return Discovered(label, confidence)


@dataclass(frozen=True, kw_only=True)
class Task(Given, Stored, ABC):
    """Everything that differs between two tasks: loss, decoding, metrics, colours, geometry, discovery, label checks.

    A task has plain fields and no parameters, so it is written in a config, kept in a checkpoint and shared between
    processes. The rest of the library never asks for a task's name.

    Targets come in two kinds. An *index map* (``channels is None``) is uint8 ``h w`` in numpy and int64 ``b h w`` in a
    batch, 255 where missing. A *field* (``channels = c``) is float32 ``h w c`` (``h w`` for one channel) in numpy and
    float32 ``b c h w`` in a batch, NaN where missing.

    Args:
        name: Key of the task in batches, outputs, masks and logs.
        weight: Loss weight lambda (method.md 3).
        threshold: Confidence tau in [0, 1] above which a discovered label is kept (method.md 4).
        beta: Weight of discovered labels beside given ones.
        val_images: So many validation images at most are scored during ``fit``, the same ones every time; None for all.
            ``validate`` and ``test`` score all.
    """

    name: str
    weight: float = 1.0
    threshold: float = 0.9
    beta: float = 1.0
    val_images: int | None = None

    training_only: ClassVar[tuple[str, ...]] = ("weight", "threshold", "beta")
    """Fields that say how it is trained; they may differ between a checkpoint and a run that goes on with it."""
    measuring: ClassVar[tuple[str, ...]] = ("val_images",)
    """Fields that say how it is measured; so may these."""
    channels: ClassVar[int | None] = None
    distribution: ClassVar[bool] = False
    """Whether ``decode`` needs no more of the logits than their softmax: then probabilities are what is averaged."""
    headline: ClassVar[str]
    """The figure of ``metrics()`` that papers report and that enters Delta_m."""
    higher_is_better: ClassVar[bool]
    """Direction of the headline metric."""
    unit: ClassVar[str]
    """Unit of the headline metric."""
    other_figures: ClassVar[Mapping[str, Figure]] = {}
    """Those that differ from the headline in unit or direction, by name."""
    balances_crops: ClassVar[bool] = False
    """Whether a training crop is drawn again when one class of this map fills most of it (protocol.md 3.2, step 2)."""

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise HTTError(f"The threshold of {self.name} must be in [0, 1], not {self.threshold}.")
        if self.val_images is not None and self.val_images < 1:
            raise HTTError(f"val_images of {self.name} must be at least 1, or null for all, not {self.val_images}.")

    @property
    def discovers(self) -> bool:
        """Whether labels of the task can be discovered; otherwise it is taught by features alone."""
        return type(self).discover is not Task.discover

    def to_config(self) -> dict[str, Any]:
        """Plain values that ``from_config`` and config files understand."""
        return {
            "class_path": f"{type(self).__module__}.{type(self).__qualname__}",
            "init_args": {
                field.name: list(value) if isinstance(value := getattr(self, field.name), tuple) else value
                for field in fields(self)
            },
        }

    @property
    def meaning(self) -> dict[str, Any]:
        """The part of the settings that outputs and labels depend on."""
        settings: dict[str, Any] = self.to_config()["init_args"]
        return {key: value for key, value in settings.items() if key not in self.training_only + self.measuring}

    @staticmethod
    def from_config(config: Mapping[str, Any]) -> "Task":
        """The task that ``to_config`` describes.

        Raises:
            HTTError: Its class cannot be imported, is no task or takes other arguments.
        """
        if not (isinstance(config, Mapping) and isinstance(given := config.get("init_args", {}), Mapping)):
            raise HTTError(f"A task must have a class_path and init_args, not be {config!r}.")
        path = str(config.get("class_path"))
        try:
            found = getattr(import_module(path.rpartition(".")[0]), path.rpartition(".")[2])
        except (ImportError, AttributeError, ValueError, TypeError) as error:
            raise HTTError(f"Task {path!r} cannot be imported; install what defines it.") from error
        if not (isinstance(found, type) and issubclass(found, Task)):
            raise HTTError(f"{path!r} is not a Task.")
        build: Callable[..., Task] = found
        try:
            return build(**{key: tuple(value) if isinstance(value, list) else value for key, value in given.items()})
        except (TypeError, ValueError, AttributeError) as error:
            raise HTTError(f"Task {path!r} does not take {dict(given)}: {error}") from error

    @property
    def class_names(self) -> tuple[str, ...]:
        """What the values of an index map mean, from 0 on; nothing for a field."""
        return tuple(map(str, range(max(2, self.num_tokens)))) if self.channels is None else ()

    def figure(self, name: str) -> Figure:
        """Unit and direction of a figure of ``metrics()``."""
        return self.other_figures.get(name, Figure(self.unit, self.higher_is_better))

    def gain(self, value: float, reference: float) -> float:
        """Relative improvement of the headline metric over a reference in percent; positive is better."""
        gain = 100 * (value - reference) / reference if reference else math.nan
        return gain if self.higher_is_better else -gain

    @property
    @abstractmethod
    def num_tokens(self) -> int:
        """K: classes, or bins of a regression task; the number of logit channels (method.md, Shapes)."""

    @abstractmethod
    def loss(self, output: Output, target: Tensor) -> Tensor:
        """Supervised loss, without the task's weight (method.md 3).

        Args:
            output: Network output at feature resolution.
            target: Label at input size, missing pixels marked; an image may be missing altogether.

        Returns:
            One value per image, ``b``: finite, and 0 with zero gradient where no pixel is valid.
        """

    @abstractmethod
    def decode(self, output: Output, size: tuple[int, int]) -> Tensor:
        """The map a user wants at ``size = (h, w)``: classes or probabilities ``b h w``, or a field ``b c h w``."""

    def discover(self, output: Output, size: tuple[int, int]) -> Discovered | None:
        """The labels that a teacher's output amounts to, at ``size = (h, w)`` (method.md 4).

        Returns:
            None by default: such a task is taught by features alone.
        """
        return None

    def kept(self, confidence: Tensor) -> Tensor:
        """Which discovered pixels count: bool, of the shape of ``confidence``."""
        return confidence > self.threshold

    def discovered_loss(self, output: Output, found: Discovered, valid: Tensor) -> Tensor:
        """Loss on discovered labels, without the weights lambda and beta (method.md 4).

        Args:
            output: The student's output at feature resolution.
            found: What ``discover`` made of the teacher's.
            valid: bool ``b h w``, False on padding, which never counts.

        Returns:
            One value per image, ``b``: finite, and 0 where nothing is kept.
        """
        raise NotImplementedError(f"{type(self).__name__} discovers labels but has no loss on them.")

    def belief(self, output: Output) -> Tensor:
        """What a teacher's output says about each cell, in a form that can be averaged over views of an image.

        Returns:
            ``b c h/s w/s``; by default the probabilities of the classes.
        """
        return upcast(output.logits).softmax(1)

    def mirror(self, belief: Tensor) -> Tensor:
        """A belief about the mirrored image as one about the image."""
        return belief.flip(-1)

    def settle_belief(self, belief: Tensor, valid: Tensor) -> Tensor:
        """Last word on a belief once views of an image have been averaged.

        Args:
            belief: ``b c h/s w/s``.
            valid: bool ``b h/s w/s``, False on padding.
        """
        return belief

    def imitation_loss(self, output: Output, belief: Tensor) -> Tensor:
        """Loss on a belief, a soft label, without the weights lambda and beta.

        Args:
            output: The student's output at feature resolution.
            belief: The teacher's, settled, ``b c h/s w/s``.

        Returns:
            ``b h/s w/s``; by default the Kullback-Leibler divergence in nats.
        """
        return (torch.xlogy(belief, belief) - belief * upcast(output.logits).log_softmax(1)).sum(1)

    def agrees(self, label: Tensor, target: Tensor) -> Tensor:
        """Where a discovered label is right, bool ``b h w``; any value where the target is missing."""
        if self.channels is not None:
            raise NotImplementedError(f"{type(self).__name__} discovers labels but cannot tell which are right.")
        return label == target

    def present(self, target: Tensor) -> Tensor:
        """Where a target has a label, bool ``b h w``."""
        return target != IGNORE if self.channels is None else target.isfinite().all(1)

    @abstractmethod
    def metrics(self) -> Metric | MetricCollection:
        """A fresh metric, updated with ``(decoded, target)``, that computes figures by name, the headline among them.

        A ``MetricCollection`` of metrics of one figure each will do.
        """

    def test_metrics(self) -> Metric | MetricCollection:
        """The metric of ``test``, which may take its time; by default that of validation."""
        return self.metrics()

    @abstractmethod
    def colour(self, values: Tensor) -> Tensor:
        """Picture of a decoded map or a target: uint8 ``b 3 h w``, mid-grey where missing."""

    @abstractmethod
    def constant(self, targets: Iterable[Tensor]) -> Tensor:
        """The best constant prediction for the headline metric, from at least one image's target without batch axis.

        Returns:
            ``c`` for a field, a scalar for an index map: what a network that ignores its image would decode to.
        """

    def settle(self, array: np.ndarray) -> np.ndarray:
        """Last word on a numpy map once all geometry is done."""
        return array

    def flip(self, array: np.ndarray) -> np.ndarray:
        """Mirror a numpy map left to right."""
        return np.asarray(cv2.flip(array, 1)).reshape(array.shape)

    def zoom(self, array: np.ndarray, factor: float) -> np.ndarray:
        """Correct the values of a map whose image was enlarged by ``factor``."""
        return array

    def tally(self, array: np.ndarray, lengths: np.ndarray | None = None) -> Tally:
        """What a numpy map holds, to be added up over a dataset.

        Args:
            array: The map.
            lengths: Those of its vectors as they are stored, ``h w``, if it has been normalised since.

        Raises:
            HTTError: It is no map of the task: its type or shape is wrong, or a value is no class.
        """
        index, shape = self.channels is None, array.shape
        wanted = self.missing(*shape[:2]).shape if len(shape) > 1 else None
        if shape != wanted or array.dtype.kind not in ("iu" if index else "f"):
            words = "integer h w" if index else f"float h w {self.channels}" if self.channels != 1 else "float h w"
            raise HTTError(f"A map of {self.name} is {array.dtype} {shape}; it must be {words}.")
        array = self.settle(array)
        present = array != IGNORE if index else np.isfinite(array.reshape(*shape[:2], -1)).all(-1)
        values, names = array[present], self.class_names
        if index and values.size and not (values.min() >= 0 and values.max() < len(names)):
            raise HTTError(
                f"A map of {self.name} holds {values.min()} to {values.max()}; classes are 0 to {len(names) - 1}, "
                f"and {IGNORE} where missing."
            )
        counts = np.bincount(values, minlength=len(names)).tolist() if index else []
        measured = self.measure(values if lengths is None else values * lengths[present][:, None])
        return Tally(
            maps=1,
            empty=int(not len(values)),
            pixels=present.size,
            valid=len(values),
            values=Spread.of(values),
            classes=dict(zip(names, counts, strict=True)),
            shares={key: int(found.sum()) for key, found in measured.items() if found.dtype == np.bool_},
            spreads={key: Spread.of(found) for key, found in measured.items() if found.dtype != np.bool_},
        )

    def measure(self, values: np.ndarray) -> dict[str, np.ndarray]:
        """What else is worth knowing about labels.

        Args:
            values: Those of valid pixels, ``n``, or ``n c`` with several channels.

        Returns:
            Arrays ``n`` by name, in snake case: bool, of which the share is reported, or floats (mean and maximum).
        """
        return {}

    def doubts(self, tally: Tally) -> list[str]:
        """What may be wrong with labels that can be read, from the tally of them all; each is a sentence."""
        if not tally.valid:
            return ["Every pixel is missing."] if tally.maps else []
        never = [name for name, count in tally.classes.items() if not count]
        return [f"No pixel is of class {', '.join(never)}."] if never else []

    def missing(self, height: int, width: int) -> np.ndarray:
        """A numpy map without a single label."""
        if self.channels is None:
            return np.full((height, width), IGNORE, np.uint8)
        shape = (height, width) if self.channels == 1 else (height, width, self.channels)
        return np.full(shape, np.nan, np.float32)
