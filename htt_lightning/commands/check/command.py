"""The command ``check``: reads a dataset once, describes it, and names every file that is broken."""

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table

from htt_lightning.callbacks.drawing import placeholder, to_uint8_image, vstack_images, with_title
from htt_lightning.commands.check.inspection import inspect, open_splits
from htt_lightning.commands.check.readings import Readings
from htt_lightning.data.batch import to_target
from htt_lightning.data.datamodule import LABEL_MASK, PartialLabelDataModule, Split
from htt_lightning.errors import HTTError
from htt_lightning.io.arrays import resized
from htt_lightning.io.files import atomic_path, check_output_dir


def check(data: PartialLabelDataModule, out: str | None = None, overwrite: bool = False, images: int = 6) -> None:
    """See ``HTTTrainer.check``."""
    if images < 0:
        raise HTTError(f"--images must be at least 0, not {images}.")
    folder = Path(out) if out else None
    if folder:
        check_output_dir(folder, overwrite)
    opened = open_splits(data)
    report = inspect(data, opened)
    console = Console()
    for table in tables(report):
        console.print(table)
    if report["mask"]:
        console.out(report["mask"]["summary"], highlight=False)
    for note in report["notes"]:
        console.out("note:", note, highlight=False)
    for warning in report["warnings"]:
        console.out("warning:", warning, highlight=False)
    for fault in report["faults"]:
        place = " ".join(filter(None, (fault["split"], fault["id"], fault["what"])))
        console.out(f"fault: {place}: {fault['message']}", highlight=False)
    for tree in report["trees"]:
        console.out(f"The dataset must read:\n{tree}", highlight=False)
    if folder:
        picture = contact_sheet(opened.splits, images, suspects(report)) if images else None
        if picture is not None:
            with atomic_path(folder / "contact_sheet.png") as partial:
                Image.fromarray(picture).save(partial, format="PNG")
            console.out(folder / "contact_sheet.png", highlight=False)
        if data.mask:
            data.mask.save(folder / LABEL_MASK)
            console.out(folder / LABEL_MASK, highlight=False)
        with atomic_path(folder / "check.json") as partial:
            partial.write_text(json.dumps(report, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        console.out(folder / "check.json", highlight=False)
    if count := len(report["faults"]):
        raise HTTError(f"The dataset has {count} fault{'s' if count > 1 else ''}; mend what is named above.")


def tables(report: Mapping[str, Any]) -> Iterator[Table]:
    """A report of ``inspect`` for people."""
    splits = report["splits"]
    table = _table(report["dataset"], "split", "images", "sizes", "range", "labels per image: images")
    for name, split in splits.items():
        sizes = ", ".join(f"{size}: {count}" for size, count in split["sizes"].items())
        labels = ", ".join(f"{labels}: {count}" for labels, count in split["labels_per_image"].items())
        table.add_row(name, str(split["images"]), sizes, _reach(split["range"]), labels)
    yield table
    table = _table("Labels that are read", "split", "task", "labels", "empty", "resized", "range", "missing %")
    for name, split in splits.items():
        for task, row in split["tasks"].items():
            counts = (str(row[key]) for key in ("labels", "empty", "resized"))
            table.add_row(name, task, *counts, _reach(row["range"]), _number(row["missing_percent"]))
    yield table
    for title, group in ("Classes, % of valid pixels", "classes_percent"), ("Valid pixels", "further"):
        table = _table(title, "task", "", *splits)
        for task in next(iter(splits.values()))["tasks"]:
            rows = [split["tasks"][task][group] for split in splits.values()]
            for key in max(rows, key=len):  # a split without a label of the task has no figures
                table.add_row(task, key.replace("_", " "), *(_number(row.get(key)) for row in rows))
        if table.row_count:
            yield table
    if mask := report["mask"]:
        title = ", ".join(filter(None, (mask["protocol"], mask["origin"])))
        table = _table(f"Label mask: {title}", "training images with", "number", "expected", "between")
        for words, group in ("{}", "tasks"), ("{} of the labels", "labels_per_image"), ("just {}", "patterns"):
            for key, row in mask[group].items():
                kept = str(row["images"])
                table.add_row(words.format(key), kept, _number(row.get("expected")), _reach(row.get("band")))
        yield table


def suspects(report: Mapping[str, Any]) -> dict[str, list[str]]:
    """Ids of the images that a report of ``inspect`` has faults of, or remarks on, by split."""
    return {
        name: list(
            dict.fromkeys(
                [fault["id"] for fault in report["faults"] if fault["split"] == name and fault["id"]]
                + [image for odd in split["odd"] for image in odd["ids"]]
            )
        )
        for name, split in report["splits"].items()
    }


def contact_sheet(
    splits: Mapping[Split, Readings], count: int, first: Mapping[str, Sequence[str]]
) -> np.ndarray | None:
    """Images of both splits beside the labels they keep.

    Args:
        splits: The dataset.
        count: Number of images, half of them (rounded up) from training; fewer where a split has fewer.
        first: Ids of images by split that come first, unless they cannot be read; others are spread evenly.

    Returns:
        uint8 ``h w 3``; None without an image.
    """
    rows = []
    for (name, readings), share in zip(splits.items(), (count - count // 2, count // 2), strict=False):
        places = {image: position for position, image in enumerate(readings.split.ids)}
        wanted = (places[image] for image in first.get(name, ()))
        chosen = list(islice((place for place in wanted if readings.image(place, []) is not None), share))
        rest = [place for place in places.values() if place not in chosen]
        spread = np.linspace(0, len(rest) - 1, min(share - len(chosen), len(rest))).round().astype(int)
        rows += [draw_row(readings, place) for place in [*chosen, *(rest[index] for index in spread)]]
    return vstack_images(rows) if rows else None


def draw_row(readings: Readings, position: int) -> np.ndarray:
    """An image and its maps side by side: uint8 ``h w 3``. Labels that it lacks and broken files are hatched."""
    split, name = readings.split, readings.split.ids[position]
    image = readings.image(position, [])
    pixels = np.zeros((64, 96, 3), np.uint8) if image is None else image
    pixels = resized(pixels, split.size, smooth=True) if split.size else pixels
    picture = to_uint8_image(torch.from_numpy(pixels.transpose(2, 0, 1).copy())[None])[0]
    cells = [with_title(placeholder(picture, "broken") if image is None else picture, f"{readings.name} image {name}")]
    for task in split.tasks:
        given = task.name in readings.labels[name]
        label = readings.label(position, task, image, []) if given else None
        if label is None or image is None:
            cell = placeholder(picture, "no label" if not given else "broken" if label is None else "image broken")
        else:
            array = resized(label[0], split.size, smooth=False) if split.size else label[0]
            cell = to_uint8_image(task.colorize(to_target(array, task)[None]))[0]
        cells.append(with_title(cell, task.name))
    return np.concatenate(cells, 1)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title)
    for column in columns:
        table.add_column(column)
    return table


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _reach(reach: tuple[float, float] | None) -> str:
    return f"{_number(reach[0])} to {_number(reach[1])}" if reach else "-"
