"""Every image and label that a run would read, read once: what they hold, and which of them are broken.

Nothing is kept but sums, so memory does not grow with the dataset, and nothing depends on the number of processes.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import compress
from typing import Any, NamedTuple, TypeVar, get_args

import numpy as np
from rich.progress import track
from torch.utils.data import DataLoader, Dataset

from htt_lightning.data.arrays import lengths_as_stored
from htt_lightning.data.base import PartialLabelDataModule, Split, one_thread
from htt_lightning.data.mask_figures import mask_doubts, mask_figures
from htt_lightning.data.masks import unable_message
from htt_lightning.data.partial import PartialLabels
from htt_lightning.data.transforms import EvalTransform
from htt_lightning.errors import HTTError
from htt_lightning.tasks import Task
from htt_lightning.tasks.tally import Spread, Tally

T = TypeVar("T")

Labels = Mapping[str, Sequence[str]]
"""Names of the tasks each image keeps its label of, by image id."""


class Fault(NamedTuple):
    """What training would stumble over.

    Attributes:
        split: ``train`` or ``val``.
        id: The image's; None where the fault is none of a single image.
        what: ``image``, a task, or what else was looked at.
        message: What is wrong.
    """

    split: str
    id: str | None
    what: str
    message: str


@dataclass
class Inspection:
    """What was found in images and their labels; that of several images is the sum of theirs.

    Attributes:
        images: Number of images that were asked for.
        sizes: How many of those that can be read have which ``(h, w)``.
        colours: Of their values.
        labels: How many images keep how many labels.
        tallies: What the labels hold that can be read, by task.
        faults: What cannot be read.
    """

    images: int = 0
    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    colours: Spread = field(default_factory=Spread)
    labels: Counter[int] = field(default_factory=Counter)
    tallies: dict[str, Tally] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)

    def add(self, other: "Inspection") -> None:
        """Add what was found in other images."""
        self.images += other.images
        self.sizes += other.sizes
        self.colours += other.colours
        self.labels += other.labels
        for task, tally in other.tallies.items():
            self.tallies[task] = self.tallies.get(task, Tally()) + tally
        self.faults += other.faults

    def figures(self) -> dict[str, Any]:
        """Everything but the faults in plain values."""
        return {
            "images": self.images,
            "sizes": {f"{h}x{w}": count for (h, w), count in sorted(self.sizes.items())},
            "range": self.colours.reach,
            "labels_per_image": {str(count): images for count, images in sorted(self.labels.items())},
            "tasks": {task: tally.figures() for task, tally in self.tallies.items()},
        }


class Readings(Dataset[Inspection]):
    """What is found in each image of a split, as it is stored. Labels that are hidden are never even read.

    Args:
        name: Of the split.
        split: The split as training or evaluation reads it.
        labels: The labels its images keep.
    """

    def __init__(self, name: Split, split: PartialLabels, labels: Labels) -> None:
        self.name, self.split, self.labels = name, split, labels
        self._places = {image: index for index, image in enumerate(split.source.ids)}

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, position: int) -> Inspection:
        split, image_id = self.split, self.split.ids[position]
        found = Inspection(images=1, labels=Counter([len(self.labels[image_id])]))
        image = self.image(position, found.faults)
        if image is not None:
            found.sizes[image.shape[0], image.shape[1]] += 1
            found.colours = Spread.of(image)
        for task in split.tasks:
            if task.name in self.labels[image_id]:
                tallied = self.label(position, task, image, found.faults)
                found.tallies[task.name] = tallied[1] if tallied else Tally()
        if completed := split.completed:
            lacking = split.lacking(position)
            self._try(position, "discovered", found.faults, lambda: completed.read(image_id, lacking))
        if not found.faults:  # what only the dataset itself can tell, such as an image of another size than the first
            alone = {image_id: self.labels[image_id]}
            self._try(position, "sample", found.faults, lambda: split.source.check(alone))
        return found

    def image(self, position: int, faults: list[Fault]) -> np.ndarray | None:
        """An image, or a fault more."""
        place = self._places[self.split.ids[position]]
        return self._try(position, "image", faults, lambda: sound_image(self.split.source.image(place)))

    def label(
        self, position: int, task: Task, image: np.ndarray | None, faults: list[Fault]
    ) -> tuple[np.ndarray, Tally] | None:
        """A map and what it holds, or a fault more: also where it does not fit its image, unless both are resized."""

        def read() -> tuple[np.ndarray, Tally]:
            with lengths_as_stored() as seen:
                array = self.split.source.label(self._places[self.split.ids[position]], task.name)
            lengths = seen[-1] if seen and seen[-1].shape == array.shape[:2] else None
            tally = task.tally(array, lengths)
            if image is not None and self.split.size is None and array.shape[:2] != image.shape[:2]:
                raise HTTError(f"The map of {task.name} is {array.shape[:2]}, but its image {image.shape[:2]}.")
            return array, tally

        return self._try(position, task.name, faults, read)

    def _try(self, position: int, what: str, faults: list[Fault], read: Callable[[], T]) -> T | None:
        return attempt(read, faults, Fault(self.name, self.split.ids[position], what, ""))


def attempt(read: Callable[[], T], faults: list[Fault], fault: Fault) -> T | None:
    """What ``read`` returns; if it fails in any way, None, and a fault more.

    An ``HTTError`` names its file: where labels fail because of their image, one fault is enough.
    """
    try:
        return read()
    except HTTError as error:
        if all(str(error) != known.message for known in faults):
            faults.append(fault._replace(message=str(error)))
    except Exception as error:
        faults.append(fault._replace(message=f"{type(error).__name__}: {error}"))
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


def open_splits(data: PartialLabelDataModule) -> tuple[dict[Split, Readings], list[Fault]]:
    """The splits of a dataset, and a fault for one that cannot be opened.

    Raises:
        HTTError: None can be opened.
    """
    splits: dict[Split, Readings] = {}
    faults: list[Fault] = []
    for name in get_args(Split):
        try:
            split = data.dataset(name)
            splits[name] = Readings(name, split, data.labels_of(name, split.source))
        except HTTError as error:
            faults += [Fault(name, None, "split", text) for text in error.faults]
            if rest := readable(data, name):
                splits[name] = rest
    if not splits:
        raise HTTError(faults[0].message)
    return splits, faults


def readable(data: PartialLabelDataModule, name: Split) -> Readings | None:
    """A split that a run could not open, for the sake of its other faults, with every label that can be found."""
    try:
        source = data.source(name)
    except HTTError:
        return None
    labels: dict[str, list[str]] = {image: [] for image in source.ids}
    for task in data.tasks:
        try:
            available = source.available(task.name)
        except HTTError:
            continue  # named already
        for image in compress(source.ids, available):
            labels[image].append(task.name)
    split = PartialLabels(source, data.tasks, labels, EvalTransform(data.tasks, None), data.image_size)
    return Readings(name, split, labels) if labels else None


def inspect_split(data: PartialLabelDataModule, readings: Readings) -> Inspection:
    """Read a split, as many images at a time as ``data.num_workers`` says, and show progress."""
    found = Inspection(tallies={task.name: Tally() for task in data.tasks})
    loader = DataLoader(
        readings, batch_size=8, num_workers=data.num_workers, collate_fn=list, worker_init_fn=one_thread
    )
    for batch in track(loader, f"Reading {len(readings)} {readings.name} images"):
        for one in batch:
            found.add(one)
    source, completed, whole = readings.split.source, readings.split.completed, Fault(readings.name, None, "split", "")
    if not found.faults:  # images that are sound one by one need not be so together
        attempt(lambda: source.check(readings.labels), found.faults, whole)
    if completed:
        attempt(lambda: completed.check(readings.labels, data.tasks, data.identity()), found.faults, whole)
    return found


def inspect(data: PartialLabelDataModule) -> dict[str, Any]:
    """Read everything that training and evaluation would read.

    Args:
        data: The dataset, as a config describes it.

    Returns:
        Plain values: figures per split and of the label mask, ``faults`` that training would stumble over, and
        ``warnings`` of what may be meant.

    Raises:
        HTTError: The dataset cannot be opened at all.
    """
    splits, faults = open_splits(data)
    found = {name: inspect_split(data, readings) for name, readings in splits.items()}
    report: dict[str, Any] = {"format": 1, "dataset": type(data).__name__, "labels": data.labels, "mask": None}
    opened = set(splits) - {fault.split for fault in faults}
    report["splits"] = {name: one.figures() for name, one in found.items()}
    warnings = []
    for name, one in found.items():
        faults += one.faults
        for task in data.tasks:
            warnings += [f"{name} {task.name}: {doubt}" for doubt in task.doubts(one.tallies[task.name])]
    if "train" in opened:
        source = splits["train"].split.source
        mask = data.draw_labels(source)
        unable = data.unable(mask, source)
        report["mask"] = {"summary": data.label_summary, **mask_figures(mask, source), "unable": unable}
        warnings += [f"train: {doubt}" for doubt in mask_doubts(report["mask"])]
        warnings += [f"train: {unable_message(data.labels, task, names)}" for task, names in unable.items()]
    if len(splits) > 1:
        train_ids, val_ids = (splits[name].split.source.ids for name in get_args(Split))
        known = set(val_ids)  # numbers, also those of a part of a mixture, begin anew in each split
        both = [name for name in train_ids if name in known and not name.rpartition("/")[2].isdecimal()]
        if both:
            warnings.append(f"{len(both)} ids are in both splits, such as {both[0]!r}.")
    return report | {"faults": [fault._asdict() for fault in faults], "warnings": warnings}
