"""Tables of the studies: the share of the gap to full labels that a method closes, and the gain over a baseline."""

import csv
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from htt_lightning.data import SyntheticDataModule
from htt_lightning.io.files import atomic_path

Row = dict[str, str | float]
"""A metric of a run."""

TASKS = [task.name for task in SyntheticDataModule().tasks]
SIGNS = {task.name: 1 if task.higher_is_better else -1 for task in SyntheticDataModule().tasks}
SUPERVISED, LONGER, FULL = "supervised, N", "supervised, 2N", "full labels"
FULL_LABELS = {"one-label": "full", "random-label": "full", "by-source": "full-by-source"}
"""Labels of the rows with all of them, by protocol."""
LABELED_SHARE = {"one-label": 1 / 6, "random-label": 1 / 2, "by-source": 1 / 2}
"""Average share of the training images that have the label of a task; that of full labels is 1."""


def read(path: Path) -> list[Row]:
    """Read the rows of a table that ``write`` wrote."""
    with path.open(newline="", encoding="utf-8") as file:
        numbers = {"images": int, "seed": int, "value": float}
        return [{key: numbers.get(key, str)(text) for key, text in row.items()} for row in csv.DictReader(file)]


def write(rows: Sequence[Row], path: Path) -> None:
    """Write every metric of every run, one per line."""
    with atomic_path(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def summary(rows: Sequence[Row], methods: Sequence[str]) -> str:
    """Make a Markdown table per setting, with mean, standard deviation, gap closed and Delta_m by method.

    Delta_m is the mean gain over the tasks, relative to supervised training of 2N epochs with the same seed.
    """
    lines: list[str] = []
    settings = [(row["backbone"], row["images"], row["labels"]) for row in rows if row["labels"] in FULL_LABELS]
    for backbone, images, labels in dict.fromkeys(settings):
        mine = [row for row in rows if (row["backbone"], row["images"]) == (backbone, images)]
        mine = [row for row in mine if row["labels"] in (labels, FULL_LABELS[str(labels)])]
        values: dict[tuple[str, str], list[float]] = {}
        for row in mine:
            values.setdefault((str(row["method"]), str(row["task"])), []).append(float(row["value"]))
        base = [row for row in mine if row["method"] == LONGER]
        head = ["method", "seeds", *TASKS, "gap closed", "Delta_m %"]
        lines += [f"### {backbone}, {images} images, {labels}", "", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
        for method in methods:
            own = [row for row in mine if row["method"] == method]
            cells = [cell(values.get((method, task), ())) for task in TASKS]
            if own:
                shares = [share for share in gap_closed(values, method).values() if share is not None]
                cells += [f"{statistics.mean(shares):.2f}" if shares else "", cell(gain(own, base))]
                lines.append(f"| {' | '.join([method, str(len({row['seed'] for row in own})), *cells])} |")
        narrow = [task for task, share in gap_closed(values, FULL).items() if share is None]
        listed = ", ".join(narrow) or "none"
        lines += ["", f"Not in the mean, as the gap is under two standard deviations: {listed}.", ""]
    return "\n".join(lines)


def gap_closed(values: Mapping[tuple[str, str], Sequence[float]], method: str) -> dict[str, float | None]:
    """Compute (method - supervised) / (full labels - supervised) by task, from means over seeds.

    Supervised is the better of N and 2N epochs.

    Args:
        values: One per seed, by method and task.
        method: The method.

    Returns:
        By task; None where the gap to full labels is under two standard deviations over seeds. Tasks for which a figure
        is missing are left out.
    """
    shares: dict[str, float | None] = {}
    for task in TASKS:
        reached, full = values.get((method, task)), values.get((FULL, task))
        bases = [values[name, task] for name in (SUPERVISED, LONGER) if (name, task) in values]
        if reached and full and bases:
            base = max(bases, key=lambda scores: SIGNS[task] * statistics.mean(scores))
            gap = statistics.mean(full) - statistics.mean(base)
            spread = max(statistics.stdev(scores) if len(scores) > 1 else 0.0 for scores in (base, full))
            wide = SIGNS[task] * gap > 2 * spread and gap
            shares[task] = (statistics.mean(reached) - statistics.mean(base)) / gap if wide else None
    return shares


def gain(rows: Sequence[Row], base: Sequence[Row]) -> list[float]:
    """Compute Delta_m in percent, one value per seed that both have."""
    values: dict[tuple[int, str], float] = {(int(row["seed"]), str(row["task"])): float(row["value"]) for row in rows}
    ours: dict[int, list[float]] = {}
    for row in base:
        if (key := (int(row["seed"]), str(row["task"]))) in values:
            ours.setdefault(key[0], []).append(SIGNS[key[1]] * (values[key] / float(row["value"]) - 1))
    return [100 * statistics.mean(parts) for parts in ours.values() if len(parts) == len(TASKS)]


def cell(values: Sequence[float]) -> str:
    """Format mean and standard deviation."""
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):.2g}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3g}{spread}"


def first_setting(rows: Sequence[Row]) -> list[Row]:
    """Select the rows of the first protocol and backbone, with any number of images."""
    present = {row["labels"] for row in rows}
    names = next({own, full} for own, full in FULL_LABELS.items() if {own, full} & present)
    rows = [row for row in rows if row["labels"] in names]
    backbone = min(str(row["backbone"]) for row in rows)
    return [row for row in rows if row["backbone"] == backbone]


def budget(rows: Sequence[Row], methods: Sequence[str]) -> dict[str, dict[float, list[float]]]:
    """Compute Delta_m by the number of labeled images per task, for methods with several numbers of images.

    The base is supervised training of 2N epochs with the fewest images and the same seed.

    Returns:
        One value per seed, by method and number of labeled images per task.
    """
    rows = first_setting(rows)
    fewest = min(int(row["images"]) for row in rows)
    base = [row for row in rows if row["method"] == LONGER and row["images"] == fewest]
    curves: dict[str, dict[float, list[float]]] = {}
    for method in methods:
        points: dict[float, list[Row]] = {}
        for row in rows:
            if row["method"] == method:
                labeled = int(row["images"]) * LABELED_SHARE.get(str(row["labels"]), 1)
                points.setdefault(labeled, []).append(row)
        gains = {labeled: found for labeled, own in sorted(points.items()) if (found := gain(own, base))}
        if len(gains) > 1:
            curves[method] = gains
    return curves
