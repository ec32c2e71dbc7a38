"""One image and its labels, read as they are stored: what they hold, and which of them are broken.

Nothing is kept but sums and a few names, so memory does not grow with the dataset, and nothing depends on the number of
processes.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, TypeVar

import numpy as np
from torch.utils.data import Dataset

from htt_lightning.data.datamodule import Split
from htt_lightning.data.dataset import PartialLabelDataset
from htt_lightning.data.observed import observed
from htt_lightning.errors import HTTError
from htt_lightning.tasks import Task
from htt_lightning.tasks.label_statistics import LabelStatistics, RunningRange

T = TypeVar("T")

NAMED = 3
"""So many images are named at most as examples of what is odd."""


class Fault(NamedTuple):
    """What training would stumble over.

    Attributes:
        split: ``train`` or ``val``.
        id: The image's; None where the fault is none of a single image.
        what: ``image``, a task, or what else was looked at.
        message: What is wrong.
        missing: The file or folder that is not there, if that is what is wrong.
    """

    split: str
    id: str | None
    what: str
    message: str
    missing: str | None = None

    def of(self, error: Exception) -> "Fault":
        """The same place with what an error says."""
        if not isinstance(error, HTTError):
            return self._replace(message=f"{type(error).__name__}: {error}")
        return self._replace(message=error.message, missing=str(error.missing) if error.missing else None)


@dataclass
class Inspection:
    """What was found in images and their labels; that of several images is the sum of theirs.

    Attributes:
        images: Number of images that were asked for.
        sizes: How many of those that can be read have which ``(h, w)``.
        colours: Of their values.
        labels: How many images keep how many labels.
        tallies: What the labels hold that can be read, by task.
        odd: Ids of a few images with labels that are ``empty`` or ``stretched``, by task and that.
        faults: What cannot be read.
        trees: The expected folders and files of datasets of which files are missing.
    """

    images: int = 0
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    colours: RunningRange = field(default_factory=RunningRange)
    labels: Counter[int] = field(default_factory=Counter)
    tallies: dict[str, LabelStatistics] = field(default_factory=dict)
    odd: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    trees: dict[str, None] = field(default_factory=dict)

    def add(self, other: "Inspection") -> None:
        """Add what was found in other images."""
        self.images += other.images
        self.sizes += other.sizes
        self.colours += other.colours
        self.labels += other.labels
        for task, tally in other.tallies.items():
            self.tallies[task] = self.tallies.get(task, LabelStatistics()) + tally
        for key, names in other.odd.items():
            self.odd[key] = [*self.odd.get(key, []), *names][:NAMED]
        self.faults += other.faults
        self.trees |= other.trees

    def figures(self) -> dict[str, Any]:
        """Everything but faults and trees in plain values."""
        return {
            "images": self.images,
            "sizes": {f"{h}x{w}": count for (h, w), count in sorted(self.sizes.items())},
            "range": self.colours.reach,
            "labels_per_image": {str(count): images for count, images in sorted(self.labels.items())},
            "tasks": {task: tally.figures() for task, tally in self.tallies.items()},
            "odd": [{"task": task, "kind": kind, "ids": names} for (task, kind), names in self.odd.items()],
        }


class Readings(Dataset[Inspection]):
    """What is found in each image of a split, as it is stored. Labels that are hidden are never even read.

    Args:
        name: Of the split.
        split: The split as training or evaluation reads it.
    """

    def __init__(self, name: Split, split: PartialLabelDataset) -> None:
        self.name, self.split = name, split
        self.labels = {image: kept for image, (_, kept) in zip(split.ids, split.items, strict=True)}

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, position: int) -> Inspection:
        split, image_id = self.split, self.split.ids[position]
        found = Inspection(images=1, labels=Counter([len(self.labels[image_id])]))
        image = self.image(position, found.faults)
        if image is not None:
            found.sizes[image.shape[0], image.shape[1]] += 1
            found.colours = RunningRange.of(image)
        for task in split.tasks:
            if task.name in self.labels[image_id]:
                tallied = self.label(position, task, image, found.faults)
                tally = found.tallies[task.name] = tallied[1] if tallied else LabelStatistics()
                for kind, holds in {"empty": tally.empty, "stretched": tally.stretched}.items():
                    if holds:
                        found.odd[task.name, kind] = [image_id]
        if not found.faults:  # what only the dataset itself can tell, such as an image of another size than the first
            alone = {image_id: self.labels[image_id]}
            self._try(position, "sample", found.faults, lambda: split.source.check(alone))
        if any(fault.missing for fault in found.faults):
            found.trees = dict.fromkeys(filter(None, [split.source.origin(self._place(position)).tree]))
        if completed := split.completed:
            lacking = split.lacking(position)
            self._try(position, "discovered", found.faults, lambda: completed.read(image_id, lacking))
        return found

    def _place(self, position: int) -> int:
        return self.split.items[position][0]

    def image(self, position: int, faults: list[Fault]) -> np.ndarray | None:
        """An image, or a fault more."""
        return self._try(position, "image", faults, lambda: sound_image(self.split.source.image(self._place(position))))

    def label(
        self, position: int, task: Task, image: np.ndarray | None, faults: list[Fault]
    ) -> tuple[np.ndarray, LabelStatistics] | None:
        """A map and what it holds, or a fault more: also where it does not fit its image, unless both are resized."""

        def read() -> tuple[np.ndarray, LabelStatistics]:
            with observed() as seen:
                array = self.split.source.label(self._place(position), task.name)
            lengths = seen.lengths[-1] if seen.lengths and seen.lengths[-1].shape == array.shape[:2] else None
            tally = task.tally(array, lengths)
            size = array.shape[:2] if image is None else image.shape[:2]
            if self.split.size is None and array.shape[:2] != size:
                raise HTTError(f"The map of {task.name} is {array.shape[:2]}, but its image {size}.")
            others = [stored for stored in (*seen.sizes, array.shape[:2]) if stored != size]
            stretched = any(not same_shape(stored, size) for stored in others)
            return array, replace(tally, resized=int(bool(others)), stretched=int(stretched))

        return self._try(position, task.name, faults, read)

    def _try(self, position: int, what: str, faults: list[Fault], read: Callable[[], T]) -> T | None:
        return attempt(read, faults, Fault(self.name, self.split.ids[position], what, ""))


def attempt(read: Callable[[], T], faults: list[Fault], place: Fault) -> T | None:
    """What ``read`` returns; if it fails in any way, None, and a fault more, or several.

    An ``HTTError`` names its file: where labels fail because of their image, one fault is enough.
    """
    try:
        return read()
    except HTTError as error:
        said = {fault.message for fault in faults}
        faults += [place.of(one) for one in error.faults if one.message not in said]
    except Exception as error:
        faults.append(place.of(error))
    return None


def sound_image(image: np.ndarray) -> np.ndarray:
    """The image itself.

    Raises:
        HTTError: It is neither uint8 nor float in [0, 1], or not ``h w 3``.
    """
    kind = image.dtype.kind
    if image.ndim != 3 or image.shape[2] != 3 or not image.size or not (image.dtype == np.uint8 or kind == "f"):
        raise HTTError(f"The image is {image.dtype} {image.shape}; it must be h w 3, uint8 or float in [0, 1].")
    if kind == "f" and not (image.min() >= 0 and image.max() <= 1):  # written so that NaN fails
        raise HTTError(f"The image holds {image.min():g} to {image.max():g}; floats must lie in [0, 1].")
    return image


def same_shape(size: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether two sizes ``(h, w)`` are one at two scales, with the smaller rounded down or to the nearest pixel."""
    return abs(size[0] * other[1] - size[1] * other[0]) < max(*size, *other)
