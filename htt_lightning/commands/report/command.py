"""The command ``report``."""

import csv
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console

from htt_lightning.commands.report.comparison import compare, measure
from htt_lightning.commands.report.figure import draw
from htt_lightning.commands.report.layout import markdown, numbers, table
from htt_lightning.errors import HTTError, combine_errors
from htt_lightning.io.files import atomic_path, check_output_dir
from htt_lightning.io.run_directory import RESULTS
from htt_lightning.training.results import Run, Split, find_results, read_run

TABLE, NUMBERS, FIGURE = "comparison.md", "comparison.csv", "comparison.png"


def report(
    folders: list[str],
    out: str = "comparison",
    baseline: str | None = None,
    split: Split | None = None,
    overwrite: bool = False,
) -> None:
    """Compare runs: a table of their figures, with mean and standard deviation over seeds, and a picture.

    Runs whose configs differ in nothing but seeds and places are one row, named by what tells it from the others;
    networks of single tasks are one row together.

    Args:
        folders: Runs, or folders that hold runs, such as ``runs``.
        out: Folder for ``comparison.md`` (headline figures), ``comparison.csv`` (all figures, and the settings that
            differ) and ``comparison.png``.
        baseline: The row that Delta_m is measured against: its name, a part of it that no other name has, or the
            folder of one of its runs.
        split: ``test`` for the figures of ``test``, the default where there are any; ``val`` for those that ``fit``
            ends with.
        overwrite: Whether files that are there may be replaced.

    Raises:
        HTTError: There are no results, the folder is not empty, or the baseline is unknown: then nothing is written.
            Some results are damaged or cannot be compared, or the picture cannot be drawn: then all else is written.
    """
    place = Path(out)
    check_output_dir(place, overwrite)
    runs, faults = read_runs(folders)
    if not runs:
        raise combine_errors(faults, shown=None)
    comparison = compare(runs, split, faults)
    if baseline is not None:
        measure(comparison, baseline, faults)
    console, text = Console(), markdown(comparison)
    if console.is_terminal:
        console.print(table(comparison))
        console.out(*comparison.notes, sep="\n", highlight=False)
    else:
        console.out(text, highlight=False)
    with atomic_path(place / TABLE) as partial:
        partial.write_text(text, encoding="utf-8")
    with atomic_path(place / NUMBERS) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(numbers(comparison))
    written = [TABLE, NUMBERS]
    try:
        draw(comparison, place / FIGURE)
        written.append(FIGURE)
    except HTTError as error:
        faults.append(error)
    for name in written:
        console.out(place / name, highlight=False)
    if faults:
        count = f"{len(faults)} thing{'s' if len(faults) > 1 else ''}"
        raise HTTError(
            f"{count} could not be reported, all else is in {out}:\n{combine_errors(faults, shown=None).message}"
        )


def read_runs(folders: Iterable[str]) -> tuple[list[Run], list[HTTError]]:
    """The runs below folders, each once, and what is wrong with the others."""
    files: dict[Path, tuple[Path, Split]] = {}
    runs, faults = list[Run](), list[HTTError]()
    for folder in folders:
        try:
            found = {path.resolve(): (path, split) for path, split in find_results(Path(folder))}
        except HTTError as error:
            faults.append(error)
            continue
        if not found:
            faults.append(HTTError(f"There are no results in {folder}: no {' or '.join(RESULTS.values())} of a run."))
        files = found | files
    for path, split in files.values():
        try:
            runs.append(read_run(path, split))
        except HTTError as error:
            faults.append(error)
    return runs, faults
