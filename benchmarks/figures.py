"""Figures of the studies: every metric by method, and the gain by the number of labels."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from gap import LONGER, TASKS, Row, first_setting
from matplotlib.axes import Axes
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


def draw_budget(curves: Mapping[str, Mapping[float, Sequence[float]]], path: Path) -> None:
    """Draw what ``budget`` computes, mean and standard deviation over seeds."""
    figure = Figure(figsize=(6, 4))
    axis = figure.subplots()
    for method, gains in curves.items():
        draw_curve(axis, gains, method)
    ticks = sorted({labeled for gains in curves.values() for labeled in gains})
    axis.set_xscale("log")
    axis.set_xticks(ticks, [f"{labeled:g}" for labeled in ticks])
    axis.minorticks_off()
    axis.set_xlabel("labeled images per task")
    axis.set_ylabel(f"Delta_m in %, over {LONGER}\nwith the fewest images and the same seed")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
    save(figure, path)


def draw_curve(axis: Axes, values: Mapping[float, Sequence[float]], label: str) -> None:
    """Draw mean and standard deviation over seeds of the values at every x."""
    means = [statistics.mean(own) for own in values.values()]
    spreads = [statistics.stdev(own) if len(own) > 1 else 0.0 for own in values.values()]
    axis.errorbar(list(values), means, spreads, marker="o", markersize=4, capsize=3, label=label)


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG."""
    figure.tight_layout()
    with atomic_path(path) as partial:
        figure.savefig(partial, format="png", dpi=110)
