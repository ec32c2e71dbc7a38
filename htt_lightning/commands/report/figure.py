"""Figure of a comparison."""

from pathlib import Path
from textwrap import wrap

from matplotlib.figure import Figure

from htt_lightning.commands.report.comparison import Comparison


def draw(comparison: Comparison, path: Path) -> None:
    """Draw a panel per primary metric, with a point per seed, the mean and the standard deviation of each row."""
    means, stds, best = comparison.statistics("mean"), comparison.statistics("std"), comparison.best()
    names = ["\n".join(wrap(name, 34, break_long_words=False, break_on_hyphens=False)) for name in means.index]
    height = 1.3 + 0.2 * sum(name.count("\n") + 1.6 for name in names)
    figure = Figure(figsize=(2.4 + 2.3 * len(comparison.primary), height), layout="constrained")
    axes = figure.subplots(1, len(comparison.primary), sharey=True, squeeze=False)[0]
    for axis, key in zip(axes, comparison.primary, strict=True):
        for y, row in enumerate(means.index):
            values = comparison.values.loc[row, key].dropna()
            if len(values):
                mean, std = means.loc[row, key], stds.loc[row, key] if len(values) > 1 else 0
                color = "tab:blue" if best.loc[row, key] else "black"
                axis.plot(values, [y] * len(values), "o", color="0.6", markersize=3.5, zorder=1)
                axis.errorbar(mean, y, xerr=std, fmt="|", zorder=2, color=color, markersize=13, capsize=3)
        title = comparison.specs[key].column_header(key.replace("/", " "))
        axis.set_title(title.replace(" ", "\n", 1), fontsize=9)
        axis.tick_params(labelsize=8)
        axis.tick_params(axis="y", length=0)
        axis.grid(axis="x", alpha=0.3)
        axis.margins(x=0.12)
        axis.spines[["top", "right", "left"]].set_visible(False)
    axes[0].set_yticks(range(len(names)), names, fontsize=8)
    axes[0].set_ylim(len(names) - 0.5, -0.5)
    figure.supxlabel("Points: seeds. Bars: mean ± standard deviation, blue where the mean is best.", fontsize=8)
    figure.savefig(path, format="png", dpi=150)
