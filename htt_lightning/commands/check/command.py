"""The command ``check``: describe a dataset and name every missing or corrupt file."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from htt_lightning.callbacks.panel import PanelEntry, column_header, draw_label, draw_panel, task_legend, to_uint8
from htt_lightning.commands.check.scan import ImageScanner, Problem, problems_of, scan_split
from htt_lightning.data.batch import Arrays, to_chw_tensor
from htt_lightning.data.datamodule import LABEL_MASK, PartialLabelDataModule
from htt_lightning.data.dataset import find_train_val_overlap
from htt_lightning.data.label_statistics import label_warnings
from htt_lightning.data.masks.label_mask import impossible_label_message
from htt_lightning.errors import ConfigError, DataError, HTTError, combine_errors
from htt_lightning.io.arrays import resize
from htt_lightning.io.files import check_output_dir, write_text
from htt_lightning.io.images import write_png
from htt_lightning.tasks.semseg import unpaired_sides


def check(
    datamodule: PartialLabelDataModule, out: str | None = None, overwrite: bool = False, num_images: int = 6
) -> None:
    """Read every image and label that a run would read, describe them, and name every problem.

    Args:
        datamodule: The datamodule.
        out: Folder for ``check.json``, the label mask ``label_mask.json`` and ``contact_sheet.png``; by default the
            report is only printed.
        overwrite: True to replace existing files.
        num_images: Number of images on the contact sheet.

    Raises:
        HTTError: The dataset has problems.
    """
    if num_images < 0:
        raise ConfigError(f"--num_images must be at least 0, got {num_images}.")
    folder = Path(out) if out else None
    if folder:
        check_output_dir(folder, overwrite)
    scanners, report = inspect(datamodule)
    print_report(report, datamodule.label_summary)
    if folder:
        if num_images and (picture := contact_sheet(scanners, num_images)) is not None:
            write_png(folder / "contact_sheet.png", picture)
        if datamodule.mask:
            datamodule.mask.save(folder / LABEL_MASK)
        write_text(folder / "check.json", json.dumps(report, indent=2, allow_nan=False) + "\n")
        Console().out(folder, highlight=False)
    if count := len(report["problems"]):
        raise DataError(f"Found {count} problem{'s' if count > 1 else ''} in the dataset (listed above).")


def inspect(data: PartialLabelDataModule) -> tuple[list[ImageScanner], dict[str, Any]]:
    """Read everything that a run would read; return the splits that can be opened, and a report of plain values."""
    scanners, errors, problems, warnings = list[ImageScanner](), list[HTTError](), list[Problem](), list[str]()
    for split in data.splits:
        try:
            scanners.append(ImageScanner(split, data.partial_label_dataset(split)))
        except HTTError as error:
            errors.append(error)
            problems += problems_of(error, split)
    if not scanners:
        raise combine_errors(errors, shown=None)
    layouts, splits = [error.expected_layout for error in errors], {}
    datasets = [scanner.images.dataset for scanner in scanners]
    for scanner, dataset in zip(scanners, datasets, strict=True):
        scan, split = scan_split(data, scanner), scanner.split
        splits[split] = scan.to_dict()
        problems += scan.problems
        layouts += [dataset.expected_layout for problem in scan.problems if problem.missing_path]
        warnings += [f"{split}: {warning}" for warning in dataset.warnings()]
        for task in data.tasks:
            warnings += [f"{split} {task.name}: {text}" for text in label_warnings(task, scan.tasks[task.name])]
    warnings += unpaired_sides(data.tasks)
    if data.mask and "train" in splits:
        impossible = data.impossible_labels(data.mask, datasets[0])
        texts = (impossible_label_message(data.labels, task, names) for task, names in impossible.items())
        warnings += [f"train: {text}" for text in texts]
    for scanner, dataset in zip(scanners[1:], datasets[1:], strict=True):
        other = "validation" if scanner.split == "val" else scanner.split
        if "train" in splits and (shared := find_train_val_overlap(datasets[0], dataset, other)):
            warnings.append(shared)
    return scanners, {
        "format": 1,
        "dataset": type(data).__name__,
        "labels": data.labels,
        "label_mask": data.mask and {**data.mask.provenance, "labels": data.mask.summary},
        "splits": splits,
        "problems": [problem._asdict() for problem in problems],
        "expected_layout": "\n".join(filter(None, dict.fromkeys(layouts))),
        "warnings": warnings,
    }


def print_report(report: Mapping[str, Any], label_summary: str) -> None:
    """Print the statistics of ``inspect`` in tables, then a line per warning and problem."""
    console = Console()
    for table in tables(report):
        console.print(table)
    lines = [label_summary, *(f"warning: {warning}" for warning in report["warnings"])]
    for problem in report["problems"]:
        place = " ".join(filter(None, (problem["split"], problem["id"], problem["task"])))
        lines.append(f"problem: {place}: {problem['message']}")
    if layout := report["expected_layout"]:
        lines.append(f"Expected layout of the dataset:\n{layout}")
    for line in filter(None, lines):
        console.out(line, highlight=False)


def tables(report: Mapping[str, Any]) -> Iterator[Table]:
    """Lay the statistics of ``inspect`` out in tables."""
    splits = report["splits"]
    table = Table("split", "images", "sizes", "range", "labels per image: images", title=report["dataset"])
    for name, split in splits.items():
        cells = (_counts(split["sizes"], shown=6), _range(split["range"]), _counts(split["labels_per_image"]))
        table.add_row(name, str(split["images"]), *cells)
    yield table
    table = Table("split", "task", "labels", "empty", "range", "missing %", title="Labels")
    for name, split in splits.items():
        derived = {f"{task} (derived)": row for task, row in split["derived"].items()}
        for task, row in {**split["tasks"], **derived}.items():
            counts = (str(row[key]) for key in ("labels", "empty"))
            table.add_row(name, task, *counts, _range(row["range"]), _number(row["missing_percent"]))
    yield table
    for title, group in ("Classes, % of valid pixels", "classes_percent"), ("Means over valid pixels", "extra"):
        table = Table("task", "", *splits, title=title)
        for task in next(iter(splits.values()))["tasks"]:
            rows = [split["tasks"][task][group] for split in splits.values()]
            for key in max(rows, key=len):  # a split without labels of the task has no rows
                table.add_row(task, key.replace("_", " "), *(_number(row.get(key)) for row in rows))
        if table.row_count:
            yield table


def contact_sheet(scanners: Sequence[ImageScanner], num_images: int) -> np.ndarray | None:
    """Draw images of all splits beside the labels they keep, uint8 ``h w 3``, half of them from the first split."""
    entries = []
    for scanner, share in zip(scanners, (num_images - num_images // 2, num_images // 2), strict=False):
        positions = np.linspace(0, len(scanner) - 1, min(share, len(scanner))).round().astype(int)
        entries += [draw_labels(scanner, position) for position in positions]
    return draw_panel(entries, task_legend(scanners[0].images.tasks, entries)) if entries else None


def draw_labels(scanner: ImageScanner, position: int) -> PanelEntry:
    """Draw an image and its labels; missing labels and corrupt files are hatched."""
    images, image = scanner.images, None
    index, labeled = images.items[position]
    with suppress(Exception):  # reported as a problem
        image = images.dataset.image(index)
    pixels = np.zeros((64, 96, 3), np.uint8) if image is None else image
    size = images.size or (pixels.shape[0], pixels.shape[1])
    labels: Arrays = {}
    for task in images.tasks:
        if task.name in labeled and image is not None:
            with suppress(Exception):  # reported as a problem
                labels[task.name] = scanner.read_label(position, task, image)
    with suppress(Exception):  # reported as a problem
        labels |= images.derive(position, labels)
    cells: dict[str, np.ndarray | str] = {}
    for task in images.tasks:
        header = column_header(task.name, images.origins[images.ids[position]].get(task.name))
        cells[header] = "corrupt" if task.name in labeled else "no label"
        if task.name in labels:
            with suppress(Exception):  # reported as a problem
                cells[header] = draw_label(task, labels[task.name], size)
    title = f"{scanner.split} image {images.ids[position]}" + (" (corrupt)" if image is None else "")
    picture = to_uint8(to_chw_tensor(resize(pixels, size)))
    return PanelEntry(title, picture, [("label", cells)])


def _counts(counts: Mapping[str, int], shown: int | None = None) -> str:
    """List counts by key, or only those of the most frequent keys (``shown``)."""
    keys = [*counts] if shown is None else sorted(counts, key=lambda key: -counts[key])[:shown]
    others = len(counts) - len(keys)
    return ", ".join(f"{key}: {counts[key]}" for key in keys) + (f" and {others} others" if others else "")


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _range(values: tuple[float, float] | None) -> str:
    return f"{_number(values[0])} to {_number(values[1])}" if values else "-"
