"""Several datasets in one run, each labelled for its own tasks only."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from htt_lightning.data.datamodule import PartialLabelDataModule, Split
from htt_lightning.data.dataset import DenseDataset
from htt_lightning.data.masks.label_mask import LabelMask, is_protocol
from htt_lightning.errors import HTTError, raise_or_collect, several
from htt_lightning.tasks import Task


class Part(NamedTuple):
    """A dataset's split.

    Attributes:
        source: The split.
        labels: The dataset's names of the tasks that its images keep their labels of, by id.
        names: What tasks are called in the mixture, by the dataset's names.
    """

    source: DenseDataset
    labels: Mapping[str, Sequence[str]]
    names: Mapping[str, str]


class Mixed(DenseDataset):
    """Splits of several datasets, one after the other. The number of the dataset leads its images' ids: ``0/12``.

    Args:
        parts: The splits by number. Only images that their labels list are here, and only these labels.
    """

    def __init__(self, parts: Mapping[int, Part]) -> None:
        self.parts, self.ids = dict(parts), []
        self.usual = frozenset[str]().union(*(part.source.usual for part in parts.values()))
        self._items: list[tuple[Part, int, Mapping[str, str]]] = []
        for number, part in parts.items():
            places = {name: index for index, name in enumerate(part.source.ids)}
            self.ids += [f"{number}/{name}" for name in part.labels]
            self._items += [
                (part, places[name], {part.names[task]: task for task in kept}) for name, kept in part.labels.items()
            ]

    def image(self, index: int) -> np.ndarray:
        """RGB image ``h w 3``: uint8, or float32 in [0, 1], as its dataset has it."""
        part, place, _ = self._items[index]
        return part.source.image(place)

    def size(self, index: int) -> tuple[int, int]:
        """Height and width of an image, as its dataset has it."""
        part, place, _ = self._items[index]
        return part.source.size(place)

    def image_file(self, index: int) -> Path | None:
        """The file that holds an image, as its dataset has it."""
        part, place, _ = self._items[index]
        return part.source.image_file(place)

    def origin(self, index: int) -> DenseDataset:
        """The dataset that an image comes from."""
        part, place, _ = self._items[index]
        return part.source.origin(place)

    def doubts(self) -> list[str]:
        """Those of every dataset."""
        parts = self.parts.items()
        return [f"data.parts {number}: {doubt}" for number, part in parts for doubt in part.source.doubts()]

    def label(self, index: int, task: str) -> np.ndarray:
        """The task's map, as its dataset has it.

        Raises:
            HTTError: The image keeps no label of the task in its dataset.
        """
        part, place, _ = self._items[index]
        return part.source.label(place, self._own_name(index, task))

    def available(self, task: str) -> NDArray[np.bool_]:
        """Which images keep a label of the task in their dataset, bool ``n``."""
        return np.array([task in own for _, _, own in self._items], np.bool_)

    def check(self, labels: Mapping[str, Sequence[str]]) -> None:
        """Let every dataset check the files of its own that will be used.

        Raises:
            HTTError: As those of the datasets, or a label is asked for that the image does not keep in its own.
        """
        asked: dict[int, dict[str, list[str]]] = {number: {} for number in self.parts}
        for index, name in enumerate(self.ids):
            if name in labels:
                lead, _, image = name.partition("/")
                asked[int(lead)][image] = [self._own_name(index, task) for task in labels[name]]
        for number, own in asked.items():
            if own:
                self.parts[number].source.check(own)

    def _own_name(self, index: int, task: str) -> str:
        """What a task is called in the dataset of an image."""
        own = self._items[index][2]
        if task not in own:
            raise HTTError(f"{self.ids[index]} keeps no label of {task} in its own dataset; see labels of data.parts.")
        return own[task]


class MixedDataModule(PartialLabelDataModule):
    """Several datasets trained and evaluated together, as if they were one with labels for only some tasks.

    A training image has the labels that its own dataset's ``labels`` and ``tasks`` leave it; metrics of a task count
    the validation images of the datasets that have it. A part's ``image_size``, batch size, augmentation and workers
    give way to those here, and its seed where it has none.

    Tasks of one name are one task, which must mean the same wherever it occurs, down to the classes or bins. How it is
    trained and measured (weight, threshold, edge tolerance, ...) may differ: the first part that has it decides, unless
    ``tasks`` does.

    Args:
        parts: The datasets.
        image_size: ``[h, w]`` that the images of all parts are resized to.
        rename: What to call a task of a part, by the number of the part and its name for the task, as in
            ``{"1/semseg": "objects"}``: for tasks of one name that mean different things.
        labels: As in ``PartialLabelDataModule``, drawn among the labels that the parts keep; by default all of them.
        **kwargs: See ``PartialLabelDataModule``.

    Raises:
        HTTError: There are no parts, a task means one thing in one part and another in another, or ``rename`` names no
            task or gives two tasks of a part one name.
    """

    def __init__(
        self,
        parts: list[PartialLabelDataModule],
        image_size: tuple[int, int],
        rename: dict[str, str] | None = None,
        labels: str = "full",
        **kwargs: Any,
    ) -> None:
        self.parts, self.rename = parts, rename or {}
        if any(part.completed for part in parts):
            raise HTTError("data.parts must not have discovered labels of their own; give data.discovered.")
        super().__init__(image_size=image_size, labels=labels, **kwargs)
        for part in parts:
            part.image_size = self.image_size
            part.seed = self.seed if part.seed is None else part.seed

    def names(self, number: int) -> dict[str, str]:
        """What the tasks of a part are called here, by its own names.

        Args:
            number: Of the part.
        """
        names = {task.name: self.rename.get(f"{number}/{task.name}", task.name) for task in self.parts[number].tasks}
        twice = [name for name, count in Counter(names.values()).items() if count > 1]
        if twice:
            raise HTTError(f"data.rename gives two tasks of data.parts {number} the name {twice[0]}.")
        return names

    def dataset_tasks(self) -> list[Task]:
        """The tasks of all parts; where several have one, the first says how it is trained and measured."""
        found: dict[str, tuple[int, Task]] = {}
        for number, part in enumerate(self.parts):
            names = self.names(number)
            for task in (replace(own, name=names[own.name]) for own in part.tasks):
                first, known = found.setdefault(task.name, (number, task))
                if (type(task), task.output_settings) != (type(known), known.output_settings):
                    ours, theirs = ({"class": type(one).__name__, **one.output_settings} for one in (task, known))
                    keys = [key for key in ours | theirs if ours.get(key) != theirs.get(key)]
                    own_name = next(own for own, name in names.items() if name == task.name)
                    raise HTTError(
                        f"Task {task.name} means one thing in data.parts {first} and another in {number}: its "
                        f"{', '.join(keys)} differ. Rename one of them, as with data.rename "
                        f"{{{number}/{own_name}: {task.name}_{number}}}, or give both the same settings."
                    )
        if not found:
            raise HTTError("data.parts is empty; list the datasets to train on.")
        known_names = [f"{number}/{name}" for number in range(len(self.parts)) for name in self.names(number)]
        if strange := [name for name in self.rename if name not in known_names]:
            raise HTTError(f"data.rename names {strange[0]!r}, but data.parts have {', '.join(known_names)}.")
        return [task for _, task in found.values()]

    @property
    def label_summary(self) -> str:
        """That of the mixture, and those of its parts."""
        parts = [f"data.parts {number}: {part.label_summary}" for number, part in enumerate(self.parts)]
        return "\n".join([super().label_summary, *parts])

    def source(self, split: Split) -> Mixed:
        """The split of every part with the labels that it keeps there."""
        parts: dict[int, Part] = {}
        errors = []
        for number, part in enumerate(self.parts):
            try:
                own = part.source(split)
                parts[number] = Part(own, part.labels_per_image(split, own), self.names(number))
            except HTTError as error:
                errors.append(error)
        if errors and not parts:
            raise several(errors)
        if errors:
            raise_or_collect(several(errors))
        return Mixed(parts)

    def label_mask(self, source: DenseDataset) -> LabelMask:
        """Drawn anew each time, as the parts may have drawn theirs anew."""
        if is_protocol(self.labels):
            self.mask = None
        return super().label_mask(source)
