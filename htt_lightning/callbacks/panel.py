"""Layout of panels: an image, its maps in a grid beside it, and a legend of their colors."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange
from PIL import Image, ImageDraw
from torch import Tensor

from htt_lightning.data.batch import to_target
from htt_lightning.data.origin import Origin
from htt_lightning.io.arrays import resize
from htt_lightning.tasks import Task
from htt_lightning.tasks.colormap import error_heatmap

WIDTH, MAX_CELL_WIDTH = 1000, 256
"""Smallest width of a panel and largest width of a map in it, in pixels."""
GAP = 6
"""Space between the parts of a panel, in pixels."""
WHITE, BLACK, GRAY, HATCH = (255, 255, 255), (0, 0, 0), (235, 235, 235), (205, 205, 205)

Row = Mapping[str, np.ndarray | str]
"""Maps of a row by their headers, uint8 ``h w 3``; a text, such as "no label", stands for a missing map."""
Item = str | Image.Image
"""Part of a legend: a text or a picture as high as a line."""


@dataclass(frozen=True)
class PanelEntry:
    """An image and the maps beside it.

    Attributes:
        title: Text above the image.
        image: Image, uint8 ``h w 3``.
        rows: Rows of the grid with their names. Headers are drawn where they differ from those of the row above.
    """

    title: str
    image: np.ndarray
    rows: Sequence[tuple[str, Row]]


def draw_panel(entries: Sequence[PanelEntry], legend: Sequence[Sequence[Item]] = ()) -> np.ndarray:
    """Draw entries below each other and the legend below them, uint8 ``h w 3``.

    An image is as high as the grid of its maps. The panel is at least 1,000 pixels wide, and wider for larger maps.
    """
    grid = max(len(entry.rows) + max(len(row) for _, row in entry.rows) for entry in entries)
    native = max(entry.image.shape[1] for entry in entries)
    cell_width = max(-(-WIDTH // grid), min(native, MAX_CELL_WIDTH))
    font = round(grid * cell_width / 80)
    drawn = [_draw_entry(entry, cell_width, font) for entry in entries]
    width = max(picture.width for picture in drawn)
    lines = list(_wrap(legend, width, font))
    line = font + GAP
    canvas = Image.new("RGB", (width, sum(p.height for p in drawn) + len(lines) * line + (GAP if lines else 0)), WHITE)
    top = 0
    for picture in drawn:
        canvas.paste(picture, (0, top))
        top += picture.height
    for number, items in enumerate(lines):
        left = GAP
        for item in items:
            _put(canvas, item, (left, top + GAP + number * line), font)
            left += _item_width(item, font) + GAP
    return np.asarray(canvas)


def task_legend(tasks: Sequence[Task], entries: Sequence[PanelEntry], errors: bool = False) -> list[list[Item]]:
    """Make the legend of tasks: a line of items each.

    Args:
        tasks: Tasks in the order of lines.
        entries: Entries of the panel. Classes that occur in none of them are left out.
        errors: If true, add the colors of errors.
    """
    maps = [(task, cell) for entry in entries for _, row in entry.rows for task, cell in row.items()]
    drawn = {
        (task.split()[0], *color)
        for task, cell in maps
        if not isinstance(cell, str)
        for color in np.unique(cell.reshape(-1, 3), axis=0).tolist()
    }
    legend: list[list[Item]] = []
    for task in tasks:
        items: list[Item] = [f"{task.name}:"]
        for text, samples in task.legend():
            colors = to_uint8(task.colorize(samples)[0])
            if task.field_channels is None and colors.size == 3 and (task.name, *colors[0, 0].tolist()) not in drawn:
                continue
            items += [Image.fromarray(colors), text]
        if errors:
            ramp = torch.linspace(0, 1, 32) if task.output_range else torch.ones(1)
            items += [Image.fromarray(to_uint8(error_heatmap(ramp.view(1, 1, -1))[0])), f"error: {task.large_error}"]
        legend.append(items)
    return legend


def column_header(task: str, origin: Origin | None) -> str:
    """Return the header of a map: its task, and that it is derived if it is."""
    return f"{task} ({origin})" if origin is Origin.DERIVED else task


def to_uint8(image: Tensor) -> np.ndarray:
    """Convert an image ``3 h w``, uint8 or in [0, 1], to uint8 ``h w 3``."""
    pixels = image if image.dtype == torch.uint8 else (image.float().clamp(0, 1) * 255).round().to(torch.uint8)
    return rearrange(pixels.cpu(), "c h w -> h w c").numpy()


def draw_map(task: Task, values: Tensor) -> np.ndarray:
    """Draw one decoded map or target, ``h w`` or ``c h w``, in the colors of its task, uint8 ``h w 3``."""
    return to_uint8(task.colorize(values[None])[0])


def draw_label(task: Task, label: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Draw a label as datasets return it, resized to ``size``, uint8 ``h w 3``."""
    return draw_map(task, to_target(resize(label, size, "nearest"), task))


def _draw_entry(entry: PanelEntry, cell_width: int, font: int) -> Image.Image:
    """Draw an image and its grid."""
    height, width = entry.image.shape[:2]
    cell = (cell_width - GAP, round((cell_width - GAP) * height / width))
    line, gutter = font + GAP, font + GAP
    headers = [[*row] for _, row in entry.rows]
    headed = [above != header for above, header in zip([[], *headers], headers, strict=False)]
    columns = max(len(row) for _, row in entry.rows)
    grid_height = len(entry.rows) * (cell[1] + GAP) + sum(headed) * line
    large = len(entry.rows) * cell_width - GAP
    canvas = Image.new("RGB", (large + GAP + gutter + columns * cell_width + GAP, grid_height + GAP), WHITE)
    _put(canvas, entry.title, (GAP, 0), font, large)
    canvas.paste(_fit(entry.image, (large, grid_height - line - GAP)), (GAP, line))
    top = 0
    for (name, row), with_header in zip(entry.rows, headed, strict=True):
        left = large + GAP + gutter
        for column, (header, picture) in enumerate(row.items()):
            if with_header:
                _put(canvas, header, (left + column * cell_width, top), font, cell[0])
            place = (left + column * cell_width, top + line * with_header)
            canvas.paste(_hatched(picture, cell, font) if isinstance(picture, str) else _fit(picture, cell), place)
        top += line * with_header
        label = Image.new("RGB", (cell[1], gutter), WHITE)
        size = min(font, font * cell[1] // max(_item_width(name, font), 1))
        ImageDraw.Draw(label).text((cell[1] // 2, gutter // 2), name, BLACK, anchor="mm", font_size=size)
        canvas.paste(label.rotate(90, expand=True), (large + GAP, top))
        top += cell[1] + GAP
    return canvas


def _fit(picture: np.ndarray, box: tuple[int, int]) -> Image.Image:
    """Resize a picture to the largest size within width and height of ``box``."""
    height, width = picture.shape[:2]
    scale = min(box[0] / width, box[1] / height)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC)


def _hatched(text: str, size: tuple[int, int], font: int) -> Image.Image:
    """Draw a hatched cell with a text."""
    width, height = size
    cell = Image.new("RGB", size, GRAY)
    draw = ImageDraw.Draw(cell)
    for x in range(-height, width, 12):
        draw.line([(x, height), (x + height, 0)], fill=HATCH)
    draw.text((width // 2, height // 2), text, fill=BLACK, anchor="mm", font_size=font)
    return cell


def _put(canvas: Image.Image, item: Item, place: tuple[int, int], font: int, room: int | None = None) -> None:
    """Draw a text, no wider than ``room``, or a picture as high as the font."""
    if isinstance(item, Image.Image):
        canvas.paste(item.resize((_item_width(item, font), font), Image.Resampling.BICUBIC), (place[0], place[1] + 1))
        return
    size = font if room is None else min(font, font * room // max(_item_width(item, font), 1))
    ImageDraw.Draw(canvas).text(place, item, BLACK, font_size=max(size, 6))


def _item_width(item: Item, font: int) -> int:
    if isinstance(item, Image.Image):
        return font if item.width == item.height else font * 6
    return round(ImageDraw.Draw(Image.new("L", (1, 1))).textlength(item, font_size=font))


def _wrap(legend: Sequence[Sequence[Item]], width: int, font: int) -> Iterator[list[Item]]:
    """Break the items of each task into lines that fit the width."""
    for items in legend:
        line, used = list[Item](), GAP
        for place, item in enumerate(items):
            size = _item_width(item, font) + GAP
            # A picture stays with the text behind it.
            ahead = _item_width(items[place + 1], font) + GAP if isinstance(item, Image.Image) else 0
            if line and used + size + ahead > width:
                yield line
                line, used = [], GAP
            line.append(item)
            used += size
        yield line
