"""Figures per class of a test, and a picture of its confusion matrix."""

from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from htt_lightning.callbacks.matrix import draw_matrix
from htt_lightning.metrics.classes import class_scores
from htt_lightning.tasks import MetricSpec, PixelClassification, Task

ClassRows = Mapping[str, Mapping[str, float]]
"""Scores of classes by name: ``iou``, ``pixel_acc`` and ``share`` in percent."""


def scores_by_class(task: Task, confusion: Tensor) -> ClassRows:
    """Compute the scores of each class from the confusion matrix of a task, ``k k``."""
    absent = task.absent_classes if isinstance(task, PixelClassification) else "skip"
    scores = {key: values.tolist() for key, values in class_scores(confusion.cpu(), absent).items()}
    return {name: {key: row[k] for key, row in scores.items()} for k, name in enumerate(task.class_names)}


def class_table(task: Task, rows: ClassRows) -> str:
    """Write the scores of each class as a Markdown table."""
    spec = MetricSpec()
    lines = [
        [task.name, spec.column_header("iou"), spec.column_header("pixel_acc"), "share %"],
        [":---", *3 * ["---:"]],
    ]
    lines += [[name.replace("|", "/"), *map(spec.format, row.values())] for name, row in rows.items()]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def draw_confusion(title: str, names: Sequence[str], confusion: Tensor) -> np.ndarray:
    """Draw a confusion matrix ``k k``, uint8 ``h w 3``: in each row where the pixels of a true class went, in percent.

    Rows of classes without labels are gray.
    """
    shares = confusion.cpu().double() / confusion.cpu().sum(1, keepdim=True)
    return draw_matrix(f"{title}: rows are true classes, columns predicted ones, % of the true pixels", names, shares)
