"""Figures per class of a test, and a picture of its confusion matrix."""

import math
from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from htt_lightning.callbacks.panel import to_uint8
from htt_lightning.metrics.classes import class_scores
from htt_lightning.tasks import MetricSpec, PixelClassification, Task
from htt_lightning.tasks.colormap import MISSING_GRAY, heatmap

CELL, FONT_SIZE, GAP = 34, 13, 6
"""Side of a cell, size of the font and space between parts, in pixels."""
MAX_NUMBERED = 64
"""Largest number of classes with numbers in the cells; those of more classes are as small as the names allow."""

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
    numbered = len(names) <= MAX_NUMBERED
    cell = CELL if numbered else FONT_SIZE + 2
    colors = to_uint8(heatmap(shares[None])[0]).repeat(cell, 0).repeat(cell, 1)
    matrix = Image.fromarray(colors)
    draw, font = ImageDraw.Draw(matrix), ImageFont.load_default(FONT_SIZE)
    for row, column in product(range(len(names)), repeat=2) if numbered else ():
        if not math.isnan(share := shares[row, column].item()):
            place = round((column + 0.5) * cell), round((row + 0.5) * cell)
            color = "white" if colors[place[1], place[0]].mean() < MISSING_GRAY else "black"
            draw.text(place, f"{100 * share:.0f}", color, font, anchor="mm")
    margin, line = round(max(map(font.getlength, names))) + 2 * GAP, FONT_SIZE + 2 * GAP
    heading = f"{title}: rows are true classes, columns predicted ones, % of the true pixels"
    width = max(margin + matrix.width + GAP, round(font.getlength(heading)) + 2 * GAP)
    canvas = Image.new("RGB", (width, line + margin + matrix.height + GAP), "white")
    ImageDraw.Draw(canvas).text((GAP, GAP), heading, "black", font)
    labels = _labels(names, margin, cell, font)
    canvas.paste(labels.rotate(90, expand=True), (margin, line))
    canvas.paste(labels, (0, line + margin))
    canvas.paste(matrix, (margin, line + margin))
    return np.asarray(canvas)


def _labels(
    names: Sequence[str], width: int, cell: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont
) -> Image.Image:
    """Draw names below each other, as high as the cells of the matrix."""
    labels = Image.new("RGB", (width, cell * len(names)), "white")
    for k, name in enumerate(names):
        ImageDraw.Draw(labels).text((GAP, round((k + 0.5) * cell)), name, "black", font, anchor="lm")
    return labels
