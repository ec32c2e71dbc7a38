"""Several datasets in one run, each labeled for its own tasks only."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from htt_lightning.data.datamodule import PartialLabelDataModule, Split
from htt_lightning.data.dataset import DenseDataset
from htt_lightning.data.derivation.camera import PinholeCamera
from htt_lightning.data.masks.label_mask import LabelMask, is_protocol
from htt_lightning.errors import ConfigError, HTTError, collect_errors, combine_errors
from htt_lightning.tasks import Task


class DatasetPart(NamedTuple):
    """One dataset's split in a mixture, the tasks labeled in each image, and the tasks' names in the mixture."""

    dataset: DenseDataset
    labels: Mapping[str, Sequence[str]]
    task_name_map: Mapping[str, str]


class MixedDataset(DenseDataset):
    """Concatenation of splits of several datasets. Ids begin with the number of the dataset: ``0/12``.

    Args:
        parts: The splits by number. The mixture has only the images and labels that their ``labels`` list.
    """

    def __init__(self, parts: Mapping[int, DatasetPart]) -> None:
        self.parts, self.ids = dict(parts), []
        layouts = dict.fromkeys(part.dataset.expected_layout for part in parts.values())
        self.expected_layout = "\n".join(filter(None, layouts))
        self._items: list[tuple[DenseDataset, int, Mapping[str, str]]] = []
        for number, part in parts.items():
            positions = {name: index for index, name in enumerate(part.dataset.ids)}
            self.ids += [f"{number}/{name}" for name in part.labels]
            self._items += [
                (part.dataset, positions[name], {part.task_name_map[task]: task for task in tasks})
                for name, tasks in part.labels.items()
            ]

    def image(self, index: int) -> np.ndarray:
        """Read an RGB image ``h w 3`` from its dataset."""
        dataset, position, _ = self._items[index]
        return dataset.image(position)

    def size(self, index: int) -> tuple[int, int]:
        """Return height and width of an image, as its dataset does."""
        dataset, position, _ = self._items[index]
        return dataset.size(position)

    def camera_of(self, index: int) -> PinholeCamera | None:
        """Return the camera of an image, as its dataset does."""
        dataset, position, _ = self._items[index]
        return dataset.camera_of(position)

    def image_path(self, index: int) -> Path | None:
        """Return the path of an image, if its dataset has one."""
        dataset, position, _ = self._items[index]
        return dataset.image_path(position)

    def warnings(self) -> list[str]:
        """Return the warnings of every dataset."""
        parts = self.parts.items()
        return [f"data.datasets {number}: {warning}" for number, part in parts for warning in part.dataset.warnings()]

    def label(self, index: int, task: str) -> np.ndarray:
        """Read a map of a task, by its name in the mixture, from its dataset."""
        dataset, position, _ = self._items[index]
        return dataset.label(position, self._original_name(index, task))

    def available(self, task: str) -> NDArray[np.bool_]:
        """Return which images have a label of the task in their dataset, bool ``n``."""
        return np.array([task in names for _, _, names in self._items], np.bool_)

    def check(self, labels: Mapping[str, Sequence[str]]) -> None:
        """Check the files of every dataset."""
        requested: dict[int, dict[str, list[str]]] = {number: {} for number in self.parts}
        for index, name in enumerate(self.ids):
            if name in labels:
                lead, _, image_id = name.partition("/")
                requested[int(lead)][image_id] = [self._original_name(index, task) for task in labels[name]]
        errors = list[HTTError]()
        for number, own_labels in requested.items():
            with collect_errors(errors):
                self.parts[number].dataset.check(own_labels)
        if errors:
            raise combine_errors(errors)

    def _original_name(self, index: int, task: str) -> str:
        names = self._items[index][2]
        if task not in names:
            raise ConfigError(f"{self.ids[index]} has no label of {task} in its dataset. See labels in data.datasets.")
        return names[task]


class MixedDataModule(PartialLabelDataModule):
    """Several datasets, trained and evaluated as one dataset with labels for only some tasks.

    A training image has the labels that ``labels`` and ``tasks`` of its own dataset leave. Metrics of a task count the
    validation images of the datasets that have it. ``image_size``, batch size, augmentation and workers given here
    override those of the datasets, and so does ``seed`` where a dataset has none.

    Tasks of one name are one task, which must mean the same in every dataset, down to the classes or bins. Settings of
    training and metrics (loss weight, confidence threshold, edge tolerance, ...) may differ; those of the first dataset
    count, unless ``tasks`` overrides them.

    Args:
        datasets: The datasets.
        image_size: ``[h, w]`` to which all images are resized.
        task_names: New names of tasks, by number of the dataset and its name for the task, as in
            ``{"1/semseg": "objects"}``; for tasks of one name that mean different things.
        labels: As in ``PartialLabelDataModule``, drawn among the labels that the datasets keep; by default all of them.
        **kwargs: Arguments of ``PartialLabelDataModule``.

    Raises:
        ConfigError: ``datasets`` is empty, a task means different things in two datasets, or ``task_names`` names an
            unknown task or gives two tasks of a dataset one name.
    """

    def __init__(
        self,
        datasets: list[PartialLabelDataModule],
        image_size: tuple[int, int],
        task_names: dict[str, str] | None = None,
        labels: str = "full",
        **kwargs: Any,
    ) -> None:
        self.datasets, self.task_names = datasets, task_names or {}
        for part in datasets:
            own: dict[str, Any] = {"pseudo_labels": part.pseudo_labels, "origin_weights": part.origin_weights}
            own |= {"derive": part.derived.derivations, "field_of_view": part.derived.field_of_view}
            for option, value in own.items():
                if value:
                    raise ConfigError(f"data.datasets must not have {option} of their own. Set data.{option} instead.")
        super().__init__(image_size=image_size, labels=labels, **kwargs)
        for part in datasets:
            part.image_size = self.image_size
            part.seed = self.seed if part.seed is None else part.seed

    def task_name_map(self, number: int) -> dict[str, str]:
        """Return the names in the mixture of the tasks of a dataset, by their own names."""
        tasks = self.datasets[number].tasks
        names = {task.name: self.task_names.get(f"{number}/{task.name}", task.name) for task in tasks}
        if repeated := [name for name, count in Counter(names.values()).items() if count > 1]:
            raise ConfigError(f"data.task_names gives two tasks of data.datasets {number} the name {repeated[0]}.")
        return names

    def dataset_tasks(self) -> list[Task]:
        """Return the tasks of all datasets, each with the settings of the first one that has it."""
        found: dict[str, tuple[int, Task]] = {}
        for number, part in enumerate(self.datasets):
            names = self.task_name_map(number)
            for own in part.tasks:
                task = replace(own, name=names[own.name])
                first, known = found.setdefault(task.name, (number, task))
                new, old = ({"class": type(one).__name__} | one.output_settings for one in (task, known))
                if keys := [key for key in new | old if new.get(key) != old.get(key)]:
                    raise ConfigError(
                        f"Task {task.name} must mean the same in data.datasets {first} and {number}, got another "
                        f"{', '.join(keys)}. Give both the same settings, or rename one with data.task_names "
                        f"{{{number}/{own.name}: {task.name}_{number}}}."
                    )
        if not found:
            raise ConfigError("data.datasets must list at least one dataset, got none.")
        known_names = [f"{number}/{task.name}" for number, part in enumerate(self.datasets) for task in part.tasks]
        if unknown := [name for name in self.task_names if name not in known_names]:
            raise ConfigError(f"data.task_names must name tasks in {', '.join(known_names)}, got {unknown[0]!r}.")
        return [task for _, task in found.values()]

    @property
    def splits(self) -> tuple[Split, ...]:
        """Splits of the mixture. If a dataset has a test split, those without one add what they test on."""
        return max((part.splits for part in self.datasets), key=len, default=("train", "val"))

    @property
    def label_summary(self) -> str:
        """Summary of the mixture's label mask and those of the datasets."""
        parts = [f"data.datasets {number}: {part.label_summary}" for number, part in enumerate(self.datasets)]
        return "\n".join([super().label_summary, *parts])

    def build_dataset(self, split: Split) -> MixedDataset:
        """Return the split of every dataset with the labels that it keeps there."""
        parts, errors = dict[int, DatasetPart](), list[HTTError]()
        for number, part in enumerate(self.datasets):
            own = part.test_split if split == "test" else split
            with collect_errors(errors):
                dataset = part.build_dataset(own)
                parts[number] = DatasetPart(dataset, part.labels_per_image(own, dataset), self.task_name_map(number))
        if errors:
            raise combine_errors(errors)
        return MixedDataset(parts)

    def label_mask(self, source: DenseDataset) -> LabelMask:
        """Return the label mask, drawn again each time, as the datasets may have drawn theirs again."""
        if is_protocol(self.labels):
            self.mask = None
        return super().label_mask(source)
