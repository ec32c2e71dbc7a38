"""Table from the classes of another program to those of a task."""

from collections.abc import Mapping, Sequence

import numpy as np

from htt_lightning.errors import ConfigError, did_you_mean
from htt_lightning.io.file_names import shorten
from htt_lightning.tasks import IGNORE_INDEX

ClassTable = Mapping[int, int]
"""Class of the task by class of the other program; others are missing."""


def class_table(
    classes: Mapping[str | int, str] | None, task_classes: Sequence[str], other_classes: Sequence[str], option: str
) -> ClassTable:
    """Build the table of classes that an option describes.

    Args:
        classes: Name of the task's class by name or index of the other program's. By default classes of the same name
            belong together, and it is an error if there are none.
        task_classes: Names of the task's classes.
        other_classes: Names of the other program's classes; empty if it has only indices.
        option: Option of the teacher, for messages.

    Raises:
        ConfigError: A name is unknown, or no class has a counterpart.
    """
    if not classes:
        ours = {name.lower(): index for index, name in enumerate(task_classes)}
        table = {index: ours[name.lower()] for index, name in enumerate(other_classes) if name.lower() in ours}
        if not table:
            raise ConfigError(
                f"{option}.classes must map the teacher's classes ({shorten(other_classes)}) to those of the task "
                f"({shorten(task_classes)}), as no name is in both, got none."
            )
        return table
    table = {}
    for other, name in classes.items():
        if name not in task_classes:
            hint = did_you_mean(str(name), task_classes)
            raise ConfigError(f"{option}.classes must map to classes of the task, got {name!r} for {other!r}.{hint}")
        table[_other_index(other, other_classes, option)] = task_classes.index(name)
    return table


def _other_index(other: str | int, other_classes: Sequence[str], option: str) -> int:
    """Return the index of a class of the other program, by name or index."""
    text = str(other)
    if text in other_classes:
        return other_classes.index(text)
    if text.isdecimal() and (not other_classes or int(text) < len(other_classes)):
        return int(text)
    names = f"name the teacher's {len(other_classes)} classes or their indices"
    rule = names if other_classes else "have values of the maps as keys"
    raise ConfigError(f"{option}.classes must {rule}, got {other!r}.{did_you_mean(text, other_classes)}")


def map_classes(stored: np.ndarray, table: ClassTable) -> np.ndarray:
    """Turn class indices ``h w`` of the other program into uint8 classes of the task, 255 where they are in no table.

    >>> map_classes(np.array([[7, 8]]), {7: 0})
    array([[  0, 255]], dtype=uint8)
    """
    keys = np.array(sorted(table))
    labels = np.array([table[key] for key in sorted(table)], np.uint8)
    position = keys.searchsorted(stored).clip(max=len(keys) - 1)
    return np.where(keys[position] == stored, labels[position], np.uint8(IGNORE_INDEX))


def map_probabilities(probabilities: np.ndarray, table: ClassTable, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Turn probabilities ``k h w`` of the other program's classes into classes of the task and their confidence.

    Probabilities of classes that become one are added. A pixel whose probability lies mostly in classes without a
    counterpart is missing.

    Returns:
        uint8 ``h w``, 255 where missing, and the probability of the class, float32 ``h w``.
    """
    ours = np.zeros((num_classes, *probabilities.shape[1:]), np.float32)
    for other, index in table.items():
        ours[index] += probabilities[other]
    confidence = ours.max(0)
    missing = probabilities.sum(0) - ours.sum(0) > confidence
    return np.where(missing, IGNORE_INDEX, ours.argmax(0)).astype(np.uint8), np.where(missing, 0, confidence)
