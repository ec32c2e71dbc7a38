"""The one abstraction behind every dense prediction task."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from importlib import import_module
from types import MappingProxyType
from typing import Any, ClassVar

import cv2
import numpy as np
from torch import Tensor
from torchmetrics import Metric, MetricCollection

from htt_lightning.errors import HTTError
from htt_lightning.output import TaskOutput
from htt_lightning.tasks.label_statistics import LabelStatistics, RunningRange
from htt_lightning.tasks.metric_spec import MetricSpec
from htt_lightning.tasks.pseudo_label import PseudoLabelMixin
from htt_lightning.tasks.serialization import MapEncoding

IGNORE_INDEX = 255
"""The missing value of index maps (contracts.md, Batch)."""

RELEASE_ALIASES: Mapping[str, str] = MappingProxyType({"sal": "saliency", "edge": "edges"})
"""Tasks that published masks and checkpoints call otherwise."""


@dataclass(frozen=True, kw_only=True)
class Task(MapEncoding, PseudoLabelMixin, ABC):
    """Everything that differs between two tasks: loss, decoding, metrics, colours, geometry, discovery, label checks.

    A task has plain fields and no parameters, so it is written in a config, kept in a checkpoint and shared between
    processes. The rest of the library never asks for a task's name.

    Targets come in two kinds. An *index map* (``field_channels is None``) is uint8 ``h w`` in numpy and int64
    ``b h w`` in a batch, 255 where missing. A *field* (``field_channels = c``) is float32 ``h w c``
    (``h w`` for one channel) in numpy and float32 ``b c h w`` in a batch, NaN where missing.

    Args:
        name: Key of the task in batches, outputs, masks and logs.
        loss_weight: Loss weight lambda (method.md 3).
        confidence_threshold: Confidence tau in [0, 1] above which a discovered label is kept (method.md 4).
        pseudo_label_weight: Weight of discovered labels beside given ones.
        max_val_images: Largest number of validation images scored during ``fit``, always the same ones; None for all.
            ``validate`` and ``test`` score all.
    """

    name: str
    loss_weight: float = 1.0
    confidence_threshold: float = 0.9
    pseudo_label_weight: float = 1.0
    max_val_images: int | None = None

    training_fields: ClassVar[tuple[str, ...]] = ("loss_weight", "confidence_threshold", "pseudo_label_weight")
    """Fields that say how it is trained; they may differ between a checkpoint and a run that goes on with it."""
    metric_fields: ClassVar[tuple[str, ...]] = ("max_val_images",)
    """Fields that say how it is measured; so may these."""
    field_channels: ClassVar[int | None] = None
    logits_are_distribution: ClassVar[bool] = False
    """Whether ``decode`` needs no more of the logits than their softmax: then probabilities are what is averaged."""
    primary_metric: ClassVar[str]
    """The figure of ``metrics()`` that papers report and that enters Delta_m."""
    higher_is_better: ClassVar[bool]
    """Direction of the headline metric."""
    metric_unit: ClassVar[str]
    """Unit of the headline metric."""
    metric_specs: ClassVar[Mapping[str, MetricSpec]] = {}
    """Those that differ from the headline in unit or direction, by name."""
    guides_crop: ClassVar[bool] = False
    """Whether a training crop is drawn again when one class of this map fills most of it (protocol.md 3.2, step 2)."""

    def __post_init__(self) -> None:
        if not 0 <= self.confidence_threshold <= 1:
            raise HTTError(f"confidence_threshold of {self.name} must be in [0, 1], not {self.confidence_threshold}.")
        if self.max_val_images is not None and self.max_val_images < 1:
            raise HTTError(
                f"max_val_images of {self.name} must be at least 1, or null for all, not {self.max_val_images}."
            )

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
    def output_settings(self) -> dict[str, Any]:
        """The part of the settings that outputs and labels depend on."""
        settings: dict[str, Any] = self.to_config()["init_args"]
        return {key: value for key, value in settings.items() if key not in self.training_fields + self.metric_fields}

    @staticmethod
    def from_config(config: Mapping[str, Any]) -> "Task":
        """The task that ``to_config`` describes.

        Args:
            config: ``class_path`` and ``init_args``.

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
        return tuple(map(str, range(max(2, self.num_tokens)))) if self.field_channels is None else ()

    def metric_spec(self, name: str) -> MetricSpec:
        """Unit and direction of a figure of ``metrics()``.

        Args:
            name: The figure's.
        """
        return self.metric_specs.get(name, MetricSpec(self.metric_unit, self.higher_is_better))

    def relative_gain(self, value: float, reference: float) -> float:
        """Relative improvement of the headline metric in percent; positive is better.

        Args:
            value: The headline metric.
            reference: The same of another network.
        """
        return self.metric_spec(self.primary_metric).relative_gain(value, reference)

    @property
    @abstractmethod
    def num_tokens(self) -> int:
        """K: classes, or bins of a regression task; the number of logit channels (method.md, Shapes)."""

    @abstractmethod
    def loss(self, output: TaskOutput, target: Tensor) -> Tensor:
        """Supervised loss, without the task's weight (method.md 3).

        Args:
            output: Network output at feature resolution.
            target: Label at input size, missing pixels marked; an image may be missing altogether.

        Returns:
            One value per image, ``b``: finite, and 0 with zero gradient where no pixel is valid.
        """

    @abstractmethod
    def decode(self, output: TaskOutput, size: tuple[int, int]) -> Tensor:
        """The map a user wants.

        Args:
            output: Network output at feature resolution.
            size: Height and width of the map, those of the image.

        Returns:
            Classes or probabilities ``b h w``, or a field ``b c h w``.
        """

    def valid_mask(self, target: Tensor) -> Tensor:
        """Where a target has a label, bool ``b h w``.

        Args:
            target: Label, missing pixels marked.
        """
        return target != IGNORE_INDEX if self.field_channels is None else target.isfinite().all(1)

    @abstractmethod
    def metrics(self) -> Metric | MetricCollection:
        """A fresh metric, updated with ``(decoded, target)``, that computes figures by name, the headline among them.

        A ``MetricCollection`` of metrics of one figure each will do.
        """

    def test_metrics(self) -> Metric | MetricCollection:
        """The metric of ``test``, which may take its time; by default that of validation."""
        return self.metrics()

    @abstractmethod
    def colorize(self, values: Tensor) -> Tensor:
        """Picture of a map.

        Args:
            values: A decoded map or a target, ``b h w`` or ``b c h w``.

        Returns:
            uint8 ``b 3 h w``, mid-grey where missing.
        """

    def postprocess_target(self, array: np.ndarray) -> np.ndarray:
        """Last word on a map once all geometry is done.

        Args:
            array: A numpy map.
        """
        return array

    def flip(self, array: np.ndarray) -> np.ndarray:
        """Mirror a map left to right.

        Args:
            array: A numpy map.
        """
        return np.asarray(cv2.flip(array, 1)).reshape(array.shape)

    def rescale_values(self, array: np.ndarray, scale: float) -> np.ndarray:
        """Correct the values of a map whose image was enlarged.

        Args:
            array: A numpy map, enlarged.
            scale: By which it was.
        """
        return array

    def tally(self, array: np.ndarray, lengths: np.ndarray | None = None) -> LabelStatistics:
        """What a numpy map holds, to be added up over a dataset.

        Args:
            array: The map.
            lengths: Those of its vectors as they are stored, ``h w``, if it has been normalised since.

        Raises:
            HTTError: It is no map of the task: its type or shape is wrong, or a value is no class.
        """
        index, shape = self.field_channels is None, array.shape
        wanted = self.empty_target(*shape[:2]).shape if len(shape) > 1 else None
        if shape != wanted or array.dtype.kind not in ("iu" if index else "f"):
            words = (
                "integer h w"
                if index
                else f"float h w {self.field_channels}"
                if self.field_channels != 1
                else "float h w"
            )
            raise HTTError(f"A map of {self.name} is {array.dtype} {shape}; it must be {words}.")
        array = self.postprocess_target(array)
        present = array != IGNORE_INDEX if index else np.isfinite(array.reshape(*shape[:2], -1)).all(-1)
        values, names = array[present], self.class_names
        if index and values.size and not (values.min() >= 0 and values.max() < len(names)):
            raise HTTError(
                f"A map of {self.name} holds {values.min()} to {values.max()}; classes are 0 to {len(names) - 1}, "
                f"and {IGNORE_INDEX} where missing."
            )
        counts = np.bincount(values, minlength=len(names)).tolist() if index else []
        measured = self.measure(values if lengths is None else values * lengths[present][:, None])
        return LabelStatistics(
            maps=1,
            empty=int(not len(values)),
            pixels=present.size,
            valid=len(values),
            values=RunningRange.of(values),
            classes=dict(zip(names, counts, strict=True)),
            shares={key: int(found.sum()) for key, found in measured.items() if found.dtype == np.bool_},
            spreads={key: RunningRange.of(found) for key, found in measured.items() if found.dtype != np.bool_},
        )

    def measure(self, values: np.ndarray) -> dict[str, np.ndarray]:
        """What else is worth knowing about labels.

        Args:
            values: Those of valid pixels, ``n``, or ``n c`` with several channels.

        Returns:
            Arrays ``n`` by name, in snake case: bool, of which the share is reported, or floats (mean and maximum).
        """
        return {}

    def doubts(self, tally: LabelStatistics) -> list[str]:
        """What may be wrong with labels that can be read; each is a sentence.

        Args:
            tally: That of them all.
        """
        if not tally.valid:
            return ["Every pixel is missing."] if tally.maps else []
        never = [name for name, count in tally.classes.items() if not count]
        return [f"No pixel is of class {', '.join(never)}."] if never else []

    def empty_target(self, height: int, width: int) -> np.ndarray:
        """A numpy map without a single label.

        Args:
            height: In pixels.
            width: Likewise.
        """
        if self.field_channels is None:
            return np.full((height, width), IGNORE_INDEX, np.uint8)
        shape = (height, width) if self.field_channels == 1 else (height, width, self.field_channels)
        return np.full(shape, np.nan, np.float32)
