"""Heat map of a matrix of shares, with names of its rows and columns."""

import math
from collections.abc import Sequence
from itertools import product

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from htt_lightning.callbacks.panel import to_uint8
from htt_lightning.tasks.colormap import MISSING_GRAY, heatmap

CELL, FONT_SIZE, GAP = 34, 13, 6
"""Side of a cell, size of the font and space between parts, in pixels."""
MAX_NUMBERED = 64
"""Largest number of rows with numbers in the cells; those of more rows are as small as the names allow."""


def draw_matrix(heading: str, names: Sequence[str], shares: Tensor) -> np.ndarray:
    """Draw shares ``k k`` in [0, 1] with numbers in percent, uint8 ``h w 3``; NaN is gray."""
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
    width = max(margin + matrix.width + GAP, round(font.getlength(heading)) + 2 * GAP)
    canvas = Image.new("RGB", (width, line + margin + matrix.height + GAP), "white")
    ImageDraw.Draw(canvas).text((GAP, GAP), heading, "black", font)
    labels = Image.new("RGB", (margin, cell * len(names)), "white")
    for k, name in enumerate(names):
        ImageDraw.Draw(labels).text((GAP, round((k + 0.5) * cell)), name, "black", font, anchor="lm")
    canvas.paste(labels.rotate(90, expand=True), (margin, line))
    canvas.paste(labels, (0, line + margin))
    canvas.paste(matrix, (margin, line + margin))
    return np.asarray(canvas)
