"""Label masks: which training image keeps which label (protocol.md 2, contracts.md, Label masks)."""

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, TypeGuard, get_args

import numpy as np
from numpy.typing import NDArray

from htt_lightning.errors import HTTError, did_you_mean
from htt_lightning.io.files import atomic_path

Protocol = Literal["full", "one-label", "random-label"]
"""Every label; exactly one label per image; at least one and not all labels per image."""

FORMAT = 1
"""Version of the mask file."""


@dataclass(frozen=True, eq=False)
class LabelMask:
    """Which of a data set's training images keeps which of its labels; validation images keep all.

    Attributes:
        tasks: The data set's canonical tasks by name.
        ids: Image ids in natural order.
        labeled: bool ``n t``, True where image ``n`` keeps its label of task ``t``.
        protocol: How the mask was drawn, whatever file it has been in since; ``file`` where that is not known.
        seed: What it was drawn with; None where nothing was drawn, or the seed is not known.
        origin: Which published mask it is, in words; None for any other.

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
        """SHA-256 over tasks, ids and labels in hexadecimal: equal exactly where two masks keep the same labels."""
        content = json.dumps([self.tasks, self.ids, self.labeled.astype(int).tolist()])
        return hashlib.sha256(content.encode()).hexdigest()

    @property
    def provenance(self) -> dict[str, str | int | None]:
        """Protocol, seed and origin."""
        return {"protocol": self.protocol, "seed": self.seed, "origin": self.origin}

    @property
    def summary(self) -> dict[str, int]:
        """Number of labelled images per task."""
        return dict(zip(self.tasks, self.labeled.sum(0).tolist(), strict=True))

    @property
    def description(self) -> str:
        """How many images keep which label, and how that was drawn, in one line."""
        seed = None if self.seed is None else f"seed {self.seed}"
        drawn = joined(filter(None, (self.protocol, seed, self.origin)))
        counts = joined(f"{task} {count}" for task, count in self.summary.items())
        return f"Labels of {len(self.ids)} training images ({drawn}): {counts}"

    def select(self, tasks: Sequence[str]) -> "LabelMask":
        """The mask of a run on some of the tasks: their columns, without the images that are left unlabelled.

        Args:
            tasks: Names, in the order wanted.

        Raises:
            HTTError: A task is not in the mask, or no image is labelled for any of them.
        """
        unknown = [task for task in tasks if task not in self.tasks]
        if unknown:
            raise HTTError(f"No labels for {joined(unknown)}: the mask is over {joined(self.tasks)}.")
        columns = self.labeled[:, [self.tasks.index(task) for task in tasks]]
        kept = np.flatnonzero(columns.any(1))
        if not kept.size:
            raise HTTError(f"The mask leaves no training image with a label of {joined(tasks)}.")
        return replace(self, tasks=tuple(tasks), ids=tuple(self.ids[i] for i in kept), labeled=columns[kept])

    def save(self, path: str | Path) -> None:
        """Write the mask as JSON with one line per image; an existing file is replaced as a whole or not at all.

        Args:
            path: The file; its folder is made.

        Raises:
            HTTError: The file cannot be written.
        """
        labels = ",\n".join(
            f"    {json.dumps(name)}: {json.dumps([task for task, keep in zip(self.tasks, row, strict=True) if keep])}"
            for name, row in zip(self.ids, self.labeled.tolist(), strict=True)
        )
        head = {"format": FORMAT, **self.provenance, "tasks": self.tasks}
        lines = [f"  {json.dumps(key)}: {json.dumps(value)},\n" for key, value in head.items()]
        text = "".join(["{\n", *lines, '  "labels": {\n', labels, "\n  }\n}\n"])
        with atomic_path(Path(path)) as partial:
            partial.write_text(text, encoding="utf-8")


def natural_key(name: str) -> tuple[list[str | int], str]:
    """Sort key that puts "2" before "10"; names that differ only in leading zeros still have one order."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)], name


def natural_sort(ids: Iterable[str]) -> tuple[str, ...]:
    """Ids sorted naturally, so that nothing depends on the order of a file system."""
    return tuple(sorted(ids, key=natural_key))


def is_protocol(labels: str) -> TypeGuard[Protocol]:
    """Whether labels are to be drawn, rather than read from a file."""
    return labels in get_args(Protocol)


def unknown_protocol_error(protocol: str) -> HTTError:
    """The error that a misspelt protocol deserves."""
    hint = did_you_mean(str(protocol), get_args(Protocol), cutoff=0.3)
    return HTTError(f"data.labels: unknown label protocol {protocol!r}; choose {', '.join(get_args(Protocol))}.{hint}")


def impossible_label_message(path: str, task: str, names: Sequence[str]) -> str:
    """What to say of a mask file that gives images a label which they cannot have; it names three of them."""
    more = ", ..." if len(names) > 3 else ""
    return f"{path} gives {len(names)} images a label of {task} that they do not have: {joined(names[:3])}{more}."


def sample_mask(
    protocol: Protocol,
    ids: Sequence[str],
    tasks: Sequence[str],
    seed: int,
    available: NDArray[np.bool_] | None = None,
) -> LabelMask:
    """Draw a label mask (protocol.md 2.3): a function of its arguments alone, and not of the order of the ids.

    ``one-label`` splits the images at random into equal parts, as far as availability allows: sizes differ by at most
    one, and a task with too few images gets what it has. ``random-label`` draws for every image a number of labels
    uniformly from 1 to one less than it could have, then that many of its labels uniformly. An image that could have
    only one label keeps it.

    Args:
        protocol: ``full``, ``one-label`` or ``random-label``.
        ids: Ids of the training images.
        tasks: The data set's canonical tasks by name, in canonical order, whatever tasks a run lists.
        seed: Not negative.
        available: bool ``n t``, False where an image cannot have a label of a task; rows in the order of ``ids``.

    Raises:
        HTTError: The protocol is unknown or needs more tasks, the seed is negative, an id or task is listed twice, or
            an image can have no label.
        ValueError: ``available`` has another shape.
    """
    if not is_protocol(protocol):
        raise unknown_protocol_error(protocol)
    if protocol == "random-label" and len(tasks) < 3:
        raise HTTError(
            f"random-label keeps at least one and not all labels, which with {joined(tasks)} alone is one-label: "
            "use one-label."
        )
    if seed < 0:
        raise HTTError(f"The seed of a label mask must not be negative, got {seed}.")
    for what, names in ("image id", ids), ("task", tasks):
        if len(set(names)) < len(names):
            twice = next(name for i, name in enumerate(names) if name in names[:i])
            raise HTTError(f"The {what} {twice!r} is listed twice.")
    if available is None:
        available = np.ones((len(ids), len(tasks)), np.bool_)
    elif available.shape != (len(ids), len(tasks)):
        raise ValueError(f"available must have shape {(len(ids), len(tasks))}, got {available.shape}.")

    order = sorted(range(len(ids)), key=lambda i: natural_key(ids[i]))
    names, available = tuple(ids[i] for i in order), available[order].astype(np.bool_)
    if not available.any(1).all():
        raise HTTError(f"Image {names[available.any(1).argmin()]!r} has no label of {joined(tasks)}.")
    if protocol == "full":
        return LabelMask(tuple(tasks), names, available, protocol)
    draw = _one_label if protocol == "one-label" else _random_label
    labeled = draw(available, np.random.default_rng(seed))
    kept = labeled.sum(1)
    assert (labeled <= available).all()
    assert ((kept >= 1) & (kept <= np.maximum(available.sum(1) - 1, 1))).all()
    return LabelMask(tuple(tasks), names, labeled, protocol, seed)


def _one_label(available: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.bool_]:
    """Balanced partition (protocol.md 2.3.1); scarce tasks draw their quota first (protocol.md 2.3.3)."""
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
    """Number of labels first, then which of them, independently per image (protocol.md 2.3.2)."""
    count = rng.integers(1, np.maximum(available.sum(1), 2))
    # The places of random keys are a random order; what is not available comes last.
    place = np.where(available, rng.random(available.shape), 2.0).argsort(1).argsort(1)
    return np.asarray(place < count[:, None])


def joined(names: Iterable[str]) -> str:
    """Names in a sentence."""
    return ", ".join(names)
