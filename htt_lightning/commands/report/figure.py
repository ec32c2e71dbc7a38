"""A comparison as a picture."""

import statistics
from pathlib import Path

from htt_lightning.commands.report.comparison import Comparison
from htt_lightning.errors import missing_extra
from htt_lightning.io.files import atomic_path

WRAP = 34
"""Characters of a row's name on a line."""


def draw(comparison: Comparison, path: Path) -> None:
    """Every headline figure in a panel of its own: a point per run, mean and standard deviation per row.

    The arrow in a panel's title points to where it is better; the best mean is blue.

    Raises:
        HTTError: matplotlib is not installed, or the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise missing_extra(f"{path.name} is drawn with matplotlib", "report") from error
    rows, headlines = comparison.rows, comparison.headlines
    places = range(len(rows))
    names = ["\n".join(wrapped(row.name)) for row in rows]
    height = 1.3 + 0.2 * sum(name.count("\n") + 1.6 for name in names)
    picture = Figure(figsize=(2.4 + 2.3 * len(headlines), height), layout="constrained")
    axes = picture.subplots(1, len(headlines), sharey=True, squeeze=False)[0]
    for axis, (key, kind) in zip(axes, headlines.items(), strict=True):
        best = comparison.best(key)
        for place, row in zip(places, rows, strict=True):
            if values := row.values(key):
                mean = statistics.mean(values)
                spread = statistics.stdev(values) if len(values) > 1 else 0
                colour = "tab:blue" if row.name in best else "black"
                axis.plot(values, [place] * len(values), "o", color="0.6", markersize=3.5, zorder=1)
                axis.errorbar(mean, place, xerr=spread, fmt="|", color=colour, markersize=13, capsize=3, zorder=2)
        axis.set_title(kind.column_header(key.replace("/", " ")).replace(" ", "\n", 1), fontsize=9)
        axis.tick_params(labelsize=8)
        axis.tick_params(axis="y", length=0)
        axis.grid(axis="x", alpha=0.3)
        axis.margins(x=0.12)
        axis.spines[["top", "right", "left"]].set_visible(False)
    axes[0].set_yticks(places, names, fontsize=8)
    axes[0].set_ylim(len(rows) - 0.5, -0.5)
    picture.supxlabel("Points: runs. Bars: mean ± standard deviation over seeds, blue where it is best.", fontsize=8)
    with atomic_path(path) as partial:
        picture.savefig(partial, format="png", dpi=150)


def wrapped(name: str) -> list[str]:
    """A row's name on lines that break between settings."""
    lines = [""]
    for word in name.split(" "):
        fits = not lines[-1] or len(lines[-1]) + len(word) < WRAP
        lines = [*lines[:-1], f"{lines[-1]} {word}".strip()] if fits else [*lines, word]
    return lines
