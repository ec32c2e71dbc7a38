"""What a label mask holds, beside what its protocol lets one expect (protocol.md 2.2 and 2.3.4)."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations, compress
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from htt_lightning.data.dataset import DenseDataset
from htt_lightning.data.masks.label_mask import LabelMask, is_protocol
from htt_lightning.data.masks.published import named
from htt_lightning.errors import HTTError

K = TypeVar("K")
Expected = Mapping[K, tuple[float, float]]
"""Mean and standard deviation of numbers of images."""

REACH = 3
"""Deviations from its mean within which a number is expected."""

FEW = 6
"""Patterns that three tasks have; of the 30 of five tasks, one lies beyond three deviations in every twelfth mask."""


def expected_labels(protocol: str, available: NDArray[np.bool_]) -> list[tuple[float, float]] | None:
    """How many labels a protocol draws per task: mean and standard deviation (protocol.md 2.3).

    Args:
        protocol: ``full``, ``one-label`` or ``random-label``.
        available: bool ``n t``: which image can have which label.

    Returns:
        None for one label per image where several tasks are scarce: it depends on who shares images.
    """
    images, tasks = available.shape
    supply = available.sum(0)
    if protocol == "full":
        return [(float(count), 0.0) for count in supply]
    if protocol == "random-label":
        # Half of the tasks in the mean, whatever their number; all of one.
        chance = np.where(available, np.where(available.sum(1) > 1, 0.5, 1.0)[:, None], 0.0)
        return list(zip(chance.sum(0).tolist(), np.sqrt((chance * (1 - chance)).sum(0)).tolist(), strict=True))
    if (supply < images).sum() > 1:
        return None
    scarce = min(int(supply.min()), images / tasks)
    level = (images - scarce) / (tasks - 1) if tasks > 1 else scarce
    return [(float(scarce) if count < images else level, 0.0) for count in supply]


def expected_sizes(protocol: str, available: NDArray[np.bool_]) -> dict[int, tuple[float, float]]:
    """How many images a protocol leaves how many labels: mean and standard deviation; arguments as above."""
    able = available.sum(1)
    if protocol == "one-label":
        return {1: (float(len(able)), 0.0)}
    if protocol == "full":
        return {
            int(size): (float(count), 0.0) for size, count in zip(*np.unique(able, return_counts=True), strict=True)
        }
    most = np.maximum(able - 1, 1)
    chances = {size: np.where(size <= most, 1 / most, 0) for size in range(1, int(most.max()) + 1)}
    return {size: (float(p.sum()), math.sqrt((p * (1 - p)).sum())) for size, p in chances.items()}


def expected_patterns(tasks: Sequence[str], available: NDArray[np.bool_]) -> dict[tuple[str, ...], tuple[float, float]]:
    """How many images ``random-label`` leaves which labels: mean and standard deviation.

    Args:
        tasks: Names of the columns.
        available: bool ``n t``: which image can have which label.
    """
    moments: dict[tuple[str, ...], tuple[float, float]] = {}
    for row, images in zip(*np.unique(available, axis=0, return_counts=True), strict=True):
        able = list(compress(tasks, row))
        most = max(len(able) - 1, 1)
        for size in range(1, most + 1):
            chance = 1 / most / math.comb(len(able), size)
            for pattern in combinations(able, size):
                mean, variance = moments.get(pattern, (0.0, 0.0))
                moments[pattern] = mean + images * chance, variance + images * chance * (1 - chance)
    return {pattern: (float(mean), math.sqrt(variance)) for pattern, (mean, variance) in moments.items()}


def mask_figures(mask: LabelMask, source: DenseDataset) -> dict[str, Any]:
    """Numbers of images by task, by how many labels they keep, and by which, and between which bounds they should lie.

    A published mask should have exactly the published numbers. Bounds are left out where the protocol is not known,
    and the numbers by pattern where nothing is known of them.

    Args:
        mask: Over all training images.
        source: These images.

    Returns:
        Plain values.
    """
    tasks: Expected[str] | None = None
    sizes: Expected[int] | None = None
    patterns: Expected[tuple[str, ...]] | None = None
    if known := named(mask.origin):
        tasks, sizes, patterns = exactly(known.tasks), exactly(known.sizes), exactly(known.patterns)
    elif is_protocol(mask.protocol) and (available := _available(mask, source)) is not None:
        means = expected_labels(mask.protocol, available)
        tasks = dict(zip(mask.tasks, means, strict=True)) if means else None
        sizes = expected_sizes(mask.protocol, available)
        if mask.protocol == "random-label" and len(mask.tasks) <= 5:
            patterns = expected_patterns(mask.tasks, available)
    kept = Counter(tuple(compress(mask.tasks, row)) for row in mask.labeled.tolist())
    by_size, by_pattern = Counter(sorted(map(len, kept.elements()))), _rows(kept, patterns)
    return {
        "protocol": mask.protocol,
        "seed": mask.seed,
        "origin": mask.origin,
        "tasks": _rows(mask.summary, tasks),
        "labels_per_image": {str(size): row for size, row in _rows(by_size, sizes).items()},
        "patterns": {" + ".join(pattern): row for pattern, row in by_pattern.items()} if patterns else {},
    }


def mask_doubts(figures: Mapping[str, Any]) -> list[str]:
    """A sentence for every number of ``mask_figures`` that is out of bounds."""
    words = {"tasks": "a label of {}", "labels_per_image": "{} of their labels", "patterns": "just {}"}
    doubts = []
    for group, what in words.items():
        for key, row in figures[group].items():
            low, high = row.get("band", (0, math.inf))
            if not low <= row["images"] <= high:
                doubts.append(f"{row['images']} images keep {what.format(key)}, not {low} to {high}.")
    return doubts


def exactly(counts: Mapping[K, int]) -> dict[K, tuple[float, float]]:
    """Numbers that nothing may deviate from."""
    return {key: (float(count), 0.0) for key, count in counts.items()}


def _available(mask: LabelMask, source: DenseDataset) -> NDArray[np.bool_] | None:
    try:
        return np.stack([source.available(task) for task in mask.tasks], 1)
    except HTTError:  # of a task that the run leaves out: a mask from a file does not need to know
        return None


def _rows(counts: Mapping[K, int], expected: Expected[K] | None) -> dict[K, dict[str, Any]]:
    rows: dict[K, dict[str, Any]] = {key: {"images": counts.get(key, 0)} for key in (*(expected or ()), *counts)}
    reach = REACH if len(rows) <= FEW else REACH + 1
    if expected is not None:
        for key, row in rows.items():
            mean, deviation = expected.get(key, (0.0, 0.0))
            low, high = math.floor(mean - reach * deviation), math.ceil(mean + reach * deviation)
            row |= {"expected": mean, "band": (max(low, 0), high)}
    return rows
