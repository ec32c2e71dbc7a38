"""Reading every image and label of a split, as training and evaluation read them."""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import numpy as np
from torch.utils.data import DataLoader, Dataset

from htt_lightning.data.batch import Arrays
from htt_lightning.data.datamodule import PartialLabelDataModule, Split
from htt_lightning.data.dataset import PartialLabelDataset
from htt_lightning.data.label_statistics import LabelStatistics, label_statistics
from htt_lightning.data.loader import worker_init
from htt_lightning.errors import DataError, HTTError
from htt_lightning.io.progress import track
from htt_lightning.tasks import Task

T = TypeVar("T")


class Problem(NamedTuple):
    """An error that a run would meet; ``id`` and ``task`` are None where it concerns no single one."""

    split: str
    id: str | None
    task: str | None
    message: str
    missing_path: str | None = None


def problems_of(error: Exception, split: str, image_id: str | None = None, task: str | None = None) -> list[Problem]:
    """Return a problem for an error, or for each error of a group."""
    if not isinstance(error, HTTError):
        return [Problem(split, image_id, task, f"{type(error).__name__}: {error}")]
    errors = [(one.message, str(one.missing_path) if one.missing_path else None) for one in error.errors]
    return [Problem(split, image_id, task, message, path) for message, path in errors]


@dataclass
class SplitScan:
    """Statistics and problems of a split, or of one of its images."""

    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    low: float = math.inf
    high: float = -math.inf
    labels_per_image: Counter[int] = field(default_factory=Counter)
    tasks: dict[str, LabelStatistics] = field(default_factory=dict)
    derived: dict[str, LabelStatistics] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def add(self, other: "SplitScan") -> None:
        """Add the statistics and problems of other images."""
        self.sizes += other.sizes
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        self.labels_per_image += other.labels_per_image
        for own, others in ((self.tasks, other.tasks), (self.derived, other.derived)):
            for name, found in others.items():
                own[name].add(found)
        self.problems += other.problems

    def to_dict(self) -> dict[str, Any]:
        """Return the statistics in plain values."""
        return {
            "images": self.labels_per_image.total(),
            "sizes": {f"{height}x{width}": count for (height, width), count in sorted(self.sizes.items())},
            "range": (self.low, self.high) if self.sizes else None,
            "labels_per_image": {str(labels): count for labels, count in sorted(self.labels_per_image.items())},
            "tasks": {name: found.to_dict() for name, found in self.tasks.items()},
            "derived": {name: found.to_dict() for name, found in self.derived.items()},
        }


class ImageScanner(Dataset[SplitScan]):
    """Images of a split with the labels they keep, as a run reads them; hidden labels are not read."""

    def __init__(self, split: Split, images: PartialLabelDataset) -> None:
        self.split, self.images = split, images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, position: int) -> SplitScan:
        problems: list[Problem] = []

        def read(task: Task | None, function: Callable[..., T], *arguments: Any) -> T | None:
            try:
                return function(*arguments)
            except Exception as error:  # every error of a dataset is a problem of its own
                known = {problem.message for problem in problems if isinstance(error, HTTError)}  # these name a file
                found = problems_of(error, self.split, image_id, task.name if task else None)
                problems.extend(problem for problem in found if problem.message not in known)
            return None

        image_id, (_, labeled) = self.images.ids[position], self.images.items[position]
        scan = SplitScan(labels_per_image=Counter([len(labeled)]), problems=problems)
        image = read(None, self.read_image, position)
        if image is not None:
            scan.sizes[image.shape[0], image.shape[1]] += 1
            scan.low, scan.high = float(image.min()), float(image.max())
        maps: Arrays = {}
        for task in self.images.tasks:
            if task.name in labeled and (label := read(task, self.read_label, position, task, image)) is not None:
                maps[task.name] = label
        for task in self.images.tasks:
            if task.name in labeled:
                statistics = read(task, label_statistics, task, maps[task.name]) if task.name in maps else None
                scan.tasks[task.name] = statistics or LabelStatistics()
        derived = read(None, self.images.derive, position, maps) or {}
        for task in self.images.tasks:
            if task.name in derived:
                scan.derived[task.name] = read(task, label_statistics, task, derived[task.name]) or LabelStatistics()
        if store := self.images.pseudo_labels:
            read(None, store.read, image_id, self.images.tasks_with_pseudo_label(position))
        return scan

    def read_image(self, position: int) -> np.ndarray:
        """Read an image; raise an error if it is corrupt, or of another type, shape or range."""
        dataset, index = self.images.dataset, self.images.items[position][0]
        image = dataset.image(index)
        is_float = image.dtype.kind == "f"
        if image.ndim != 3 or image.shape[2] != 3 or not image.size or not (image.dtype == np.uint8 or is_float):
            raise DataError(f"The image must be h w 3, uint8 or float in [0, 1], got {image.dtype} {image.shape}.")
        if is_float and not (image.min() >= 0 and image.max() <= 1):  # negated, so that NaN fails
            raise DataError(f"The image must be in [0, 1], got {image.min():g} to {image.max():g}.")
        return image

    def read_label(self, position: int, task: Task, image: np.ndarray | None) -> np.ndarray:
        """Read a label; raise an error if it is corrupt, or neither resized nor of the size of its image."""
        label = self.images.dataset.label(self.images.items[position][0], task.name)
        if image is not None and self.images.size is None and label.shape[:2] != image.shape[:2]:
            size = image.shape[:2]
            raise DataError(f"The map of {task.name} must have the size {size} of its image, got {label.shape[:2]}.")
        return label


def scan_split(data: PartialLabelDataModule, scanner: ImageScanner) -> SplitScan:
    """Read a split with the datamodule's workers."""
    split, images = scanner.split, scanner.images
    derived = {task: LabelStatistics() for task in images.derived.description}
    scan = SplitScan(tasks={task.name: LabelStatistics() for task in data.tasks}, derived=derived)
    loader = DataLoader(scanner, 8, num_workers=data.num_workers, collate_fn=list, worker_init_fn=worker_init)
    for batch in track(loader, f"Reading {len(scanner)} {split} images"):
        for one in batch:
            scan.add(one)
    broken = {problem.id for problem in scan.problems}
    labels = {name: tasks for name, (_, tasks) in zip(images.ids, images.items, strict=True) if name not in broken}
    try:  # problems between images, such as different sizes
        images.dataset.check(labels)
        if images.pseudo_labels:
            images.pseudo_labels.check(data.origins_per_image(images.dataset), data.tasks, data.fingerprint())
    except Exception as error:
        scan.problems += problems_of(error, split)
    return scan
