"""Label masks: which training image keeps which label (protocol.md 2, contracts.md, Label masks)."""

import difflib
import hashlib
import io
import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, TypeGuard, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from htt_lightning.errors import HTTError
from htt_lightning.files import atomic_path

logger = logging.getLogger(__name__)

Protocol = Literal["full", "one-label", "random-label"]
"""Every label; exactly one label per image; at least one and not all labels per image."""

FORMAT = 1
"""Version of the mask file."""

PUBLISHED: Mapping[str, str] = MappingProxyType(
    {
        "aa12f1e3daaa525c0f03907d833b13c6": "the published NYUD one-label mask",
        "c83e18adccde926a65ac5de96ffa033f": "the published NYUD random-label mask",
        "2a62911cac09f8c9e1bcd1bb499c4eca": "the published Cityscapes one-label mask",
    }
)
"""MD5 of the published tensor masks (protocol.md 2.1)."""


@dataclass(frozen=True, eq=False)
class LabelMask:
    """Which of a data set's training images keeps which of its labels; validation images keep all.

    Attributes:
        tasks: The data set's canonical tasks by name.
        ids: Image ids in natural order.
        labeled: bool ``n t``, True where image ``n`` keeps its label of task ``t``.
        protocol: How the mask was drawn, or ``file``.
        seed: What it was drawn with; None where nothing was drawn.

    Raises:
        ValueError: The shape of ``labeled`` is not ``n t``, or the ids are not in natural order.
    """

    tasks: tuple[str, ...]
    ids: tuple[str, ...]
    labeled: NDArray[np.bool_]
    protocol: str
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.labeled.shape != (len(self.ids), len(self.tasks)) or self.labeled.dtype != np.bool_:
            raise ValueError("A label mask is a bool array with one row per image and one column per task.")
        if self.ids != natural_order(self.ids):
            raise ValueError("The ids of a label mask must be in natural order.")

    @property
    def fingerprint(self) -> str:
        """SHA-256 over tasks, ids and labels in hexadecimal: equal exactly where two masks keep the same labels."""
        content = json.dumps([self.tasks, self.ids, self.labeled.astype(int).tolist()])
        return hashlib.sha256(content.encode()).hexdigest()

    @property
    def summary(self) -> dict[str, int]:
        """Number of labelled images per task."""
        return dict(zip(self.tasks, self.labeled.sum(0).tolist(), strict=True))

    def select(self, tasks: Sequence[str]) -> "LabelMask":
        """The mask of a run on some of the tasks: their columns, without the images that are left unlabelled.

        Args:
            tasks: Names, in the order wanted.

        Raises:
            HTTError: A task is not in the mask, or no image is labelled for any of them.
        """
        unknown = [task for task in tasks if task not in self.tasks]
        if unknown:
            raise HTTError(f"No labels for {_names(unknown)}: the mask is over {_names(self.tasks)}.")
        columns = self.labeled[:, [self.tasks.index(task) for task in tasks]]
        kept = np.flatnonzero(columns.any(1))
        if not kept.size:
            raise HTTError(f"The mask leaves no training image with a label of {_names(tasks)}.")
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
        head = {"format": FORMAT, "protocol": self.protocol, "seed": self.seed, "tasks": self.tasks}
        lines = [f"  {json.dumps(key)}: {json.dumps(value)},\n" for key, value in head.items()]
        text = "".join(["{\n", *lines, '  "labels": {\n', labels, "\n  }\n}\n"])
        with atomic_path(Path(path)) as partial:
            partial.write_text(text, encoding="utf-8")


def natural_key(name: str) -> tuple[list[str | int], str]:
    """Sort key that puts "2" before "10"; names that differ only in leading zeros still have one order."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)], name


def natural_order(ids: Iterable[str]) -> tuple[str, ...]:
    """Ids sorted naturally, so that nothing depends on the order of a file system."""
    return tuple(sorted(ids, key=natural_key))


def is_protocol(labels: str) -> TypeGuard[Protocol]:
    """Whether labels are to be drawn, rather than read from a file."""
    return labels in get_args(Protocol)


def protocol_of(labels: str) -> str:
    """The protocol that labels follow, also those of a file of ours or a published one; ``file`` if it says nothing."""
    if is_protocol(labels):
        return labels
    content = Path(labels).read_bytes()
    known = PUBLISHED.get(hashlib.md5(content, usedforsecurity=False).hexdigest(), "")
    try:
        return next((p for p in get_args(Protocol) if p in known), None) or str(json.loads(content)["protocol"])
    except (ValueError, KeyError, TypeError):  # whoever reads the mask will say what is wrong
        return "file"


def check_labels(labels: str) -> None:
    """Refuse what can be neither a protocol nor a mask file, before any work is done.

    Raises:
        HTTError: It is no protocol, and there is no such file.
    """
    if is_protocol(labels) or Path(labels).is_file():
        return
    raise HTTError(f"Cannot read the label mask {labels}: no such file.") if Path(labels).suffix else unknown(labels)


def unknown(protocol: str) -> HTTError:
    """The error that a misspelt protocol deserves."""
    near = difflib.get_close_matches(str(protocol), get_args(Protocol), 1, 0.3)
    hint = f" Did you mean {near[0]}?" if near else ""
    return HTTError(f"Unknown label protocol {protocol!r}: choose {', '.join(get_args(Protocol))}.{hint}")


def draw_mask(
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
        raise unknown(protocol)
    if protocol == "random-label" and len(tasks) < 3:
        raise HTTError(
            f"random-label keeps at least one and not all labels, which with {_names(tasks)} alone is one-label: "
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
        raise HTTError(f"Image {names[available.any(1).argmin()]!r} has no label of {_names(tasks)}.")
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


def read_mask(
    path: str | Path, ids: Sequence[str], tasks: Sequence[str], published: Mapping[str, str] = PUBLISHED
) -> LabelMask:
    """Read a label mask: a JSON file as ``LabelMask.save`` writes it, or a published tensor file (``.pth``).

    A published file is positional (protocol.md 2.1): columns are the canonical tasks in order and row ``i`` is the
    training image with id ``i``. A tensor file with an unknown MD5 is read with a warning in the log.

    Args:
        path: The file.
        ids: Ids of all training images of the data set.
        tasks: The data set's canonical tasks by name, in canonical order.
        published: Description of known tensor files by MD5.

    Returns:
        The mask with the protocol ``file``, columns in the order of ``tasks``.

    Raises:
        HTTError: The file is missing or damaged, is over other tasks or images, or leaves an image without a label.
    """
    path, ids, tasks = Path(path), natural_order(ids), tuple(tasks)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise HTTError(f"Cannot read the label mask {path}: {error.strerror}.") from error
    if path.suffix in (".pth", ".pt"):
        labeled = _from_tensor(path, content, ids, tasks)
        known = published.get(hashlib.md5(content, usedforsecurity=False).hexdigest())
        logger.log(logging.INFO if known else logging.WARNING, "%s is %s.", path, known or "no published label mask")
    else:
        labeled = _from_json(path, content, ids, tasks)
    if not labeled.any(1).all():
        raise HTTError(f"{path}: image {ids[labeled.any(1).argmin()]!r} has no label; every image needs one.")
    return LabelMask(tasks, ids, labeled, "file")


def _from_tensor(path: Path, content: bytes, ids: Sequence[str], tasks: Sequence[str]) -> NDArray[np.bool_]:
    try:
        weights = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)["labels_weights"].numpy()
    except Exception as error:  # damaged pickles raise nearly anything
        raise HTTError(f"{path} is no label mask: expected a torch file with a tensor 'labels_weights'.") from error
    if weights.shape != (len(ids), len(tasks)):
        raise HTTError(
            f"{path}: 'labels_weights' has shape {weights.shape}, expected {(len(ids), len(tasks))}: "
            f"{len(ids)} training images and the tasks {_names(tasks)}."
        )
    if not np.isin(weights, (0, 1)).all():
        raise HTTError(f"{path}: 'labels_weights' must hold only 0 and 1.")
    other = next((name for i, name in enumerate(ids) if name != str(i)), None)
    if other is not None:
        raise HTTError(
            f"{path} numbers its images 0 to {len(ids) - 1}, so it does not say which one is {other!r}; "
            "use a mask file that names its images."
        )
    return np.asarray(weights == 1)


def _from_json(path: Path, content: bytes, ids: Sequence[str], tasks: Sequence[str]) -> NDArray[np.bool_]:
    try:
        mask = json.loads(content, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise HTTError(f"{path} is no label mask: no valid JSON ({error}).") from error
    if not isinstance(mask, dict) or mask.get("format") != FORMAT:
        raise HTTError(f"{path} is no label mask of format {FORMAT}.")
    named, labels = mask.get("tasks"), mask.get("labels")
    if not _is_names(named) or not isinstance(labels, dict) or not all(map(_is_names, labels.values())):
        raise HTTError(f"{path}: expected 'tasks' as a list of names and 'labels' as a list of names per image id.")
    if set(named) != set(tasks):
        raise HTTError(
            f"{path} is over the tasks {_names(named)}, but the data set has {_names(tasks)}: "
            f"they differ in {_names(sorted(set(named) ^ set(tasks)))}."
        )
    missing, unexpected = [i for i in ids if i not in labels], sorted(labels.keys() - set(ids), key=natural_key)
    if missing or unexpected:
        counts = (("missing", missing), ("unexpected", unexpected))
        parts = [f"{len(names)} {what} (such as {names[0]!r})" for what, names in counts if names]
        raise HTTError(f"{path} is not a mask of the data set's {len(ids)} training images: {', '.join(parts)}.")
    for name, kept in labels.items():
        if not set(kept) <= set(tasks):
            raise HTTError(f"{path}: image {name!r} lists unknown tasks {_names(sorted(set(kept) - set(tasks)))}.")
    labeled = [[task in labels[name] for task in tasks] for name in ids]
    return np.array(labeled, np.bool_).reshape(len(ids), len(tasks))


def _is_names(value: Any) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """JSON object in which a repeated key is an error rather than a silent overwrite."""
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a key is repeated")
    return dict(pairs)


def _names(names: Iterable[str]) -> str:
    return ", ".join(names)
