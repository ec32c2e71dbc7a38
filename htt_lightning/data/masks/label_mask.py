"""Label masks: the labels that each training image keeps."""

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from pathlib import Path
from typing import Literal, TypeGuard, get_args

import numpy as np
from numpy.typing import NDArray

from htt_lightning.errors import ConfigError, DataError, did_you_mean
from htt_lightning.io.files import write_text

Protocol = Literal["full", "one-label", "random-label"]
"""Every label; exactly one label per image; at least one and not all labels per image."""

FORMAT = 1
"""Version of the mask file."""


@dataclass(frozen=True, eq=False)
class LabelMask:
    """The labels that the training images of a dataset keep; validation images keep all.

    Attributes:
        tasks: Names of the dataset's canonical tasks.
        ids: Image ids in natural order.
        labeled: bool ``n t``, True if image ``n`` keeps its label of task ``t``.
        protocol: Protocol of the draw, also after a file; ``file`` if unknown.
        seed: Seed of the draw; None if nothing was drawn or the seed is unknown.
        origin: Name of the published mask; None for other masks.

    Raises:
        ValueError: The shape of ``labeled`` is not ``n t``, or the ids are not in natural order.
    """

    tasks: tuple[str, ...]
    ids: tuple[str, ...]
    labeled: NDArray[np.bool_]
    protocol: str
    seed: int | None = None
    origin: str | None = None

    def __post_init__(self) -> None:
        if self.labeled.shape != (len(self.ids), len(self.tasks)) or self.labeled.dtype != np.bool_:
            raise ValueError("A label mask is a bool array with one row per image and one column per task.")
        if self.ids != natural_sort(self.ids):
            raise ValueError("The ids of a label mask must be in natural order.")

    @property
    def fingerprint(self) -> str:
        """SHA-256 of tasks, ids and labels in hexadecimal, without the provenance."""
        content = json.dumps([self.tasks, self.ids, self.labeled.astype(int).tolist()])
        return hashlib.sha256(content.encode()).hexdigest()

    @property
    def provenance(self) -> dict[str, str | int | None]:
        """Protocol, seed and origin."""
        return {"protocol": self.protocol, "seed": self.seed, "origin": self.origin}

    @property
    def labels(self) -> dict[str, tuple[str, ...]]:
        """Names of the tasks whose label each image keeps, by image id."""
        rows = zip(self.ids, self.labeled, strict=True)
        return {name: tuple(compress(self.tasks, row)) for name, row in rows}

    @property
    def summary(self) -> dict[str, int]:
        """Number of labeled images per task."""
        return dict(zip(self.tasks, self.labeled.sum(0).tolist(), strict=True))

    @property
    def description(self) -> str:
        """Number of labels per task and provenance, in one line."""
        seed = None if self.seed is None else f"seed {self.seed}"
        provenance = ", ".join(filter(None, (self.protocol, seed, self.origin)))
        counts = ", ".join(f"{task} {count}" for task, count in self.summary.items())
        return f"Labels of {len(self.ids)} training images ({provenance}): {counts}"

    def select(self, tasks: Sequence[str]) -> "LabelMask":
        """Select tasks in their order and drop images without labels; raise a ``ConfigError`` if none is left."""
        unknown = [task for task in tasks if task not in self.tasks]
        if unknown:
            raise ConfigError(f"Tasks of the label mask must be in {', '.join(self.tasks)}, got {', '.join(unknown)}.")
        columns = self.labeled[:, [self.tasks.index(task) for task in tasks]]
        kept = np.flatnonzero(columns.any(1))
        if not kept.size:
            raise ConfigError(f"The label mask must keep labels of {', '.join(tasks)}, got none.")
        return replace(self, tasks=tuple(tasks), ids=tuple(self.ids[i] for i in kept), labeled=columns[kept])

    def save(self, path: str | Path) -> None:
        """Write the mask atomically as JSON with one line per image; the folder is created."""
        labels = ",\n".join(f"    {json.dumps(name)}: {json.dumps(tasks)}" for name, tasks in self.labels.items())
        head = {"format": FORMAT, **self.provenance, "tasks": self.tasks}
        lines = [f"  {json.dumps(key)}: {json.dumps(value)},\n" for key, value in head.items()]
        write_text(Path(path), "".join(["{\n", *lines, '  "labels": {\n', labels, "\n  }\n}\n"]))


def natural_key(name: str) -> tuple[list[str | int], str]:
    """Return a sort key that puts "2" before "10" and orders names that differ in leading zeros alone."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)], name


def natural_sort(ids: Iterable[str]) -> tuple[str, ...]:
    """Sort ids naturally.

    >>> natural_sort(["10", "2", "a10", "a2"])
    ('2', '10', 'a2', 'a10')
    """
    return tuple(sorted(ids, key=natural_key))


def is_protocol(labels: str) -> TypeGuard[Protocol]:
    """Return whether labels are drawn by a protocol, not read from a file."""
    return labels in get_args(Protocol)


def unknown_protocol_error(protocol: str) -> ConfigError:
    """Build the error for an unknown protocol, with the closest known one."""
    known = get_args(Protocol)
    hint = did_you_mean(str(protocol), known, cutoff=0.3)
    return ConfigError(f"data.labels must be {', '.join(known)} or a file, got {protocol!r}.{hint}")


def impossible_label_message(path: str, task: str, names: Sequence[str]) -> str:
    """Build the warning about labels in a mask file that images cannot have; it names three of them."""
    more = ", ..." if len(names) > 3 else ""
    return f"{path} keeps labels of {task} that {len(names)} images do not have: {', '.join(names[:3])}{more}."


def sample_mask(
    protocol: Protocol,
    ids: Sequence[str],
    tasks: Sequence[str],
    seed: int,
    available: NDArray[np.bool_] | None = None,
) -> LabelMask:
    """Draw a label mask; it depends on the arguments alone, not on the order of the ids.

    ``one-label`` partitions the images at random into equal parts, as far as availability allows: sizes differ by at
    most one, and a scarce task gets all it has. ``random-label`` draws for every image a number of labels uniformly
    from 1 to one less than available, then that many of its labels uniformly. An image with one available label keeps
    it.

    >>> sample_mask("one-label", ["1", "2", "3"], ["semseg", "depth", "normals"], seed=0).summary
    {'semseg': 1, 'depth': 1, 'normals': 1}

    Args:
        protocol: ``full``, ``one-label`` or ``random-label``.
        ids: Ids of the training images.
        tasks: Names of the dataset's canonical tasks in canonical order, whatever tasks a run selects.
        seed: Non-negative seed.
        available: bool ``n t``, False if an image cannot have a label of a task; rows in the order of ``ids``.

    Raises:
        ConfigError: The protocol is unknown or needs more tasks, or the seed is negative.
        DataError: An id or task is repeated, or an image can have no label.
        ValueError: ``available`` has another shape.
    """
    _validate_draw(protocol, ids, tasks, seed)
    shape = (len(ids), len(tasks))
    available = np.ones(shape, np.bool_) if available is None else available
    if available.shape != shape:
        raise ValueError(f"available must have shape {shape}, got {available.shape}.")

    order = sorted(range(len(ids)), key=lambda i: natural_key(ids[i]))
    names, available = tuple(ids[i] for i in order), available[order].astype(np.bool_)
    if not available.any(1).all():
        name = names[available.any(1).argmin()]
        raise DataError(f"Image {name!r} must have a label of {', '.join(tasks)}, got none.")
    if protocol == "full":
        return LabelMask(tuple(tasks), names, available, protocol)
    draw = _one_label if protocol == "one-label" else _random_label
    return LabelMask(tuple(tasks), names, draw(available, np.random.default_rng(seed)), protocol, seed)


def _validate_draw(protocol: str, ids: Sequence[str], tasks: Sequence[str], seed: int) -> None:
    if not is_protocol(protocol):
        raise unknown_protocol_error(protocol)
    if protocol == "random-label" and len(tasks) < 3:
        raise ConfigError(f"random-label needs at least 3 tasks, got {', '.join(tasks)}. Use one-label instead.")
    if seed < 0:
        raise ConfigError(f"The seed of a label mask must not be negative, got {seed}.")
    for kind, names in ("image id", ids), ("task", tasks):
        if len(set(names)) < len(names):
            repeated = next(name for i, name in enumerate(names) if name in names[:i])
            raise DataError(f"Each {kind} must appear once, got {repeated!r} twice.")


def _one_label(available: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.bool_]:
    """Partition the images equally; scarce tasks draw their quota first."""
    images, tasks = available.shape
    labeled = np.zeros_like(available)
    supply = available.sum(0)
    for task in supply.argsort(kind="stable"):
        if supply[task] < images:
            own = rng.permutation(np.flatnonzero(available[:, task] & ~labeled.any(1)))
            labeled[own[: images // tasks], task] = True
    counts = labeled.sum(0)
    for image in rng.permutation(np.flatnonzero(~labeled.any(1))):
        task = np.where(available[image], counts, images + 1).argmin()
        labeled[image, task] = True
        counts[task] += 1
    return labeled


def _random_label(available: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.bool_]:
    """Draw per image the number of labels, then the labels."""
    count = rng.integers(1, np.maximum(available.sum(1), 2))
    # The ranks of random keys are a random order; unavailable labels come last.
    place = np.where(available, rng.random(available.shape), 2.0).argsort(1).argsort(1)
    return np.asarray(place < count[:, None])
