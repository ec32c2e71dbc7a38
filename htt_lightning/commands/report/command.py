"""The command ``report``."""

from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console

from htt_lightning.errors import ConfigError, HTTError, collect_errors, combine_errors, missing_extra
from htt_lightning.io.files import atomic_path, check_output_dir
from htt_lightning.io.run_directory import RESULTS
from htt_lightning.training.results import Run, Split, read_run


def report(
    folders: list[str],
    out: str = "comparison",
    baseline: str | None = None,
    split: Split | None = None,
    overwrite: bool = False,
) -> None:
    """Compare the metrics of runs over seeds, as a table and a figure.

    Runs that differ in seeds and paths only are one row, named by the settings that differ between rows. Single-task
    networks of equal settings are one row.

    Args:
        folders: Run directories, or folders of runs, such as ``runs``.
        out: Folder for ``comparison.md`` (primary metrics), ``comparison.csv`` (all metrics, and the settings that
            differ) and ``comparison.png``.
        baseline: Row that Delta_m is relative to: its name, a unique part of it, or the directory of one of its runs.
            No Delta_m is computed by default.
        split: ``test`` for the metrics of ``test``, ``val`` for the last validation of ``fit``. ``test`` by default,
            if there is any.
        overwrite: If true, existing files may be replaced.

    Raises:
        ConfigError: There are no runs, the output folder is not empty, or no row is the baseline. Nothing is written.
        DataError: Some runs are corrupt or cannot be compared. The others are reported first.
    """
    if missing := [package for package in ("pandas", "tabulate", "matplotlib") if find_spec(package) is None]:
        raise missing_extra(f"htt report needs {', '.join(missing)}", "report")
    from htt_lightning.commands.report.comparison import compare
    from htt_lightning.commands.report.figure import draw

    check_output_dir(Path(out), overwrite)
    runs, errors = read_runs(folders)
    if runs:
        comparison = compare(runs, split, errors)
        if baseline is not None:
            comparison.add_delta_m(baseline, errors)
        text = comparison.to_markdown()
        Console().out(text, highlight=False)
        writers: dict[str, Callable[[Path], Any]] = {
            "comparison.md": lambda path: path.write_text(text, encoding="utf-8"),
            "comparison.csv": comparison.to_frame().to_csv,
            "comparison.png": lambda path: draw(comparison, path),
        }
        for name, write in writers.items():
            with atomic_path(Path(out) / name) as partial:
                write(partial)
            Console().out(Path(out) / name, highlight=False)
    if errors:
        raise combine_errors(errors, shown=None)


def read_runs(folders: Iterable[str]) -> tuple[list[Run], list[HTTError]]:
    """Read every run in the folders once, and collect the errors of corrupt ones."""
    files: dict[Path, Path] = {}
    runs, errors = list[Run](), list[HTTError]()
    for folder in folders:
        found = [path for name in RESULTS.values() for path in sorted(Path(folder).rglob(name))]
        files = {path.resolve(): path for path in found} | files
        if not Path(folder).exists():
            errors.append(ConfigError(f"DIR must be a folder that exists, got {folder}."))
        elif not found:
            errors.append(ConfigError(f"DIR must contain {' or '.join(RESULTS.values())}, got {folder}. Name a run."))
    for path in files.values():
        with collect_errors(errors):
            runs.append(read_run(path, "test" if path.name == RESULTS["test"] else "val"))
    return runs, errors
