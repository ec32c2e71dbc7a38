"""Figures of the studies: every metric by method."""

from collections.abc import Sequence
from pathlib import Path

from gap import TASKS, Row, first_setting
from matplotlib.figure import Figure

from htt_lightning.io.files import atomic_path


def draw(rows: Sequence[Row], methods: Sequence[str], path: Path) -> None:
    """Draw the metric of every method by task, one point per seed, beside full labels."""
    chosen = first_setting(rows)
    images = min(int(row["images"]) for row in chosen)
    chosen = [row for row in chosen if row["images"] == images]
    methods = [method for method in methods if any(row["method"] == method for row in chosen)]
    figure = Figure(figsize=(3 * len(TASKS), 0.35 * len(methods) + 1.5))
    axes = figure.subplots(1, len(TASKS), sharey=True)
    for axis, task in zip(axes, TASKS, strict=True):
        mine = [row for row in chosen if row["task"] == task]
        axis.scatter([row["value"] for row in mine], [methods.index(str(row["method"])) for row in mine], s=14)
        axis.set_title(str(mine[0]["metric"]).removeprefix("val/") if mine else task, fontsize=9)
        axis.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(range(len(methods)), methods, fontsize=8)
    axes[0].invert_yaxis()
    save(figure, path)


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG."""
    figure.tight_layout()
    with atomic_path(path) as partial:
        figure.savefig(partial, format="png", dpi=110)
