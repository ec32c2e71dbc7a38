"""Several datasets in one run, each labelled for its own tasks only."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from htt_lightning.data.base import PartialLabelDataModule, Split
from htt_lightning.data.masks import LabelMask, is_protocol
from htt_lightning.data.partial import Source
from htt_lightning.errors import HTTError, raise_or_collect, several
from htt_lightning.tasks import Task

Part = tuple[Source, Mapping[str, Sequence[str]]]
"""A dataset's split, and the names of the tasks that its images keep their labels of, by id."""


class Mixed(Source):
    """Splits of several datasets, one after the other. The number of the dataset leads its images' ids: ``0/12``.

    Args:
        parts: The splits by number. Only images that their labels list are here, and only these labels.
    """

    def __init__(self, parts: Mapping[int, Part]) -> None:
        self.parts, self.ids = dict(parts), []
        self.usual = frozenset[str]().union(*(source.usual for source, _ in parts.values()))
        self._items: list[tuple[Source, int, Sequence[str]]] = []
        for number, (source, labels) in parts.items():
            places = {name: index for index, name in enumerate(source.ids)}
            self.ids += [f"{number}/{name}" for name in labels]
            self._items += [(source, places[name], kept) for name, kept in labels.items()]

    def image(self, index: int) -> np.ndarray:
        """RGB image ``h w 3``: uint8, or float32 in [0, 1], as its dataset has it."""
        source, place, _ = self._items[index]
        return source.image(place)

    def size(self, index: int) -> tuple[int, int]:
        """Height and width of an image, as its dataset has it."""
        source, place, _ = self._items[index]
        return source.size(place)

    def image_file(self, index: int) -> Path | None:
        """The file that holds an image, as its dataset has it."""
        source, place, _ = self._items[index]
        return source.image_file(place)

    def origin(self, index: int) -> Source:
        """The dataset that an image comes from."""
        source, place, _ = self._items[index]
        return source.origin(place)

    def doubts(self) -> list[str]:
        """Those of every dataset."""
        parts = self.parts.items()
        return [f"data.parts {number}: {doubt}" for number, (source, _) in parts for doubt in source.doubts()]

    def label(self, index: int, task: str) -> np.ndarray:
        """The task's map, as its dataset has it."""
        source, place, _ = self._items[index]
        return source.label(place, task)

    def available(self, task: str) -> NDArray[np.bool_]:
        """Which images keep a label of the task in their dataset, bool ``n``."""
        return np.array([task in kept for _, _, kept in self._items], np.bool_)

    def check(self, labels: Mapping[str, Sequence[str]]) -> None:
        """Let every dataset check the files of its own that will be used."""
        for number, (source, known) in self.parts.items():
            own = {name: labels[f"{number}/{name}"] for name in known if f"{number}/{name}" in labels}
            if own:
                source.check(own)


class MixedDataModule(PartialLabelDataModule):
    """Several datasets trained and evaluated together, as if they were one with labels for only some tasks.

    A training image has the labels that its own dataset's ``labels`` and ``tasks`` leave it; metrics of a task count
    the validation images of the datasets that have it. Tasks of one name are one task. A part's ``image_size``, batch
    size, augmentation and workers give way to those here, and its seed where it has none.

    Args:
        parts: The datasets.
        image_size: ``[h, w]`` that the images of all parts are resized to.
        labels: As in ``PartialLabelDataModule``, drawn among the labels that the parts keep; by default all of them.
        **kwargs: See ``PartialLabelDataModule``.

    Raises:
        HTTError: There are no parts, or a task means one thing in one part and another in another.
    """

    def __init__(
        self,
        parts: list[PartialLabelDataModule],
        image_size: tuple[int, int],
        labels: str = "full",
        **kwargs: Any,
    ) -> None:
        self.parts = parts
        if any(part.completed for part in parts):
            raise HTTError("data.parts must not have discovered labels of their own; give data.discovered.")
        super().__init__(image_size=image_size, labels=labels, **kwargs)
        for part in parts:
            part.image_size = self.image_size
            part.seed = self.seed if part.seed is None else part.seed

    def available_tasks(self) -> list[Task]:
        """The tasks of all parts; where several have one, the first says how it is trained."""
        found: dict[str, tuple[int, Task]] = {}
        for number, part in enumerate(self.parts):
            for task in part.tasks:
                first, known = found.setdefault(task.name, (number, task))
                if (type(task), task.meaning) != (type(known), known.meaning):
                    ours, theirs = ({"class": type(one).__name__, **one.meaning} for one in (task, known))
                    keys = [key for key in ours | theirs if ours.get(key) != theirs.get(key)]
                    raise HTTError(
                        f"Task {task.name} means one thing in data.parts {first} and another in {number}: its "
                        f"{', '.join(keys)} differ. Rename one of them, or give both the same settings."
                    )
        if not found:
            raise HTTError("data.parts is empty; list the datasets to train on.")
        return [task for _, task in found.values()]

    def source(self, split: Split) -> Mixed:
        """The split of every part with the labels that it keeps there."""
        parts: dict[int, Part] = {}
        errors = []
        for number, part in enumerate(self.parts):
            try:
                own = part.source(split)
                parts[number] = own, part.labels_of(split, own)
            except HTTError as error:
                errors.append(error)
        if errors and not parts:
            raise several(errors)
        if errors:
            raise_or_collect(several(errors))
        return Mixed(parts)

    def draw_labels(self, source: Source) -> LabelMask:
        """Drawn anew each time, as the parts may have drawn theirs anew."""
        if is_protocol(self.labels):
            self.mask = None
        return super().draw_labels(source)
