"""A comparison as a table: for a terminal, in Markdown, and as numbers."""

import statistics
from collections.abc import Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from htt_lightning.commands.report.comparison import Comparison, Row

WHAT = {"test": "test", "val": "the last validation of fit"}


def table(comparison: Comparison) -> Table:
    """The headline figures for a terminal, the best means in bold."""
    found = Table(title=caption(comparison))
    found.add_column("run", overflow="fold")
    found.add_column("seeds", justify="right")
    for key, kind in comparison.headlines.items():
        found.add_column(kind.column_header(key.replace("/", "\n")), justify="right", no_wrap=True)
    for row in comparison.rows:
        cells = [Text(cell(comparison, row, key), "bold" if best else "") for key, best in bests(comparison, row)]
        found.add_row(Text(row.name), row.count, *cells)
    return found


def markdown(comparison: Comparison) -> str:
    """The headline figures, the best means in bold; then the settings that differ, and notes."""
    heads = ["run", "seeds", *(kind.column_header(key.replace("/", " ")) for key, kind in comparison.headlines.items())]
    lines = []
    for row in comparison.rows:
        cells = [(cell(comparison, row, key), best) for key, best in bests(comparison, row)]
        lines.append([row.name, row.count, *(f"**{text}**" if best else text for text, best in cells)])
    parts = [f"{caption(comparison)}.", grid(heads, lines)]
    if comparison.differing:
        rows = [[row.name, *values] for row, values in zip(comparison.rows, settings(comparison), strict=True)]
        parts += ["Settings that differ:", grid(["run", *comparison.differing], rows)]
    return "\n\n".join([*parts, *comparison.notes]) + "\n"


def numbers(comparison: Comparison) -> list[list[Any]]:
    """Lines of a CSV file: mean and standard deviation of every figure, unrounded, and the settings that differ."""
    keys = list(comparison.kinds)
    heads = [f"{comparison.split}/{key}{end}" for key in keys for end in ("", " std")]
    lines: list[list[Any]] = [["run", "seeds", "folders", *comparison.differing, *heads]]
    for row, values in zip(comparison.rows, settings(comparison), strict=True):
        found = [row.values(key) for key in keys]
        pairs = [(statistics.mean(one) if one else "", statistics.stdev(one) if len(one) > 1 else "") for one in found]
        folders = " ".join(str(run.path.parent) for run in row.runs)
        lines.append([row.name, row.count, folders, *values, *(number for pair in pairs for number in pair)])
    return lines


def caption(comparison: Comparison) -> str:
    """What the numbers are."""
    return f"Figures of {WHAT[comparison.split]}, mean ± standard deviation over seeds"


def cell(comparison: Comparison, row: Row, key: str) -> str:
    """Mean and standard deviation of a figure; a dash where there is none."""
    values, kind = row.values(key), comparison.kinds[key]
    spread = f" ± {kind.format(statistics.stdev(values))}" if len(values) > 1 else ""
    return f"{kind.format(statistics.mean(values))}{spread}" if values else "-"


def bests(comparison: Comparison, row: Row) -> list[tuple[str, bool]]:
    """The headline figures, and whether the row is the best."""
    return [(key, row.name in comparison.best(key)) for key in comparison.headlines]


def settings(comparison: Comparison) -> list[tuple[str, ...]]:
    """Values of the settings that differ, row by row."""
    return list(zip(*comparison.differing.values(), strict=True)) or [()] * len(comparison.rows)


def grid(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    rule = [":---", *["---:"] * (len(heads) - 1)]
    return "\n".join(f"| {' | '.join(text.replace('|', '/') for text in line)} |" for line in (heads, rule, *lines))
