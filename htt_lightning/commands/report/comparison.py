"""Rows of runs with equal settings, statistics over seeds, and Delta_m."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import pandas as pd

from htt_lightning.errors import ConfigError, DataError, HTTError, did_you_mean
from htt_lightning.io.run_directory import RESULTS
from htt_lightning.tasks.metric_spec import MetricSpec, delta_m
from htt_lightning.training.results import ALONE, STEPS, Run, Split

DELTA_M = "delta_m"
KEY_SETTINGS = ("data.labels", "model.network", "data.tasks", "model.", "data", "discovery.", "trainer.", "test.")
"""Prefixes of settings in the order in which they name rows."""
TITLES = {"test": "Metrics of test", "val": "Metrics of the last validation of fit"}


@dataclass
class Comparison:
    """Runs of one split, grouped into rows of equal settings."""

    split: Split
    values: pd.DataFrame
    """Metrics by row and seed; columns are ``<task>/<metric>``."""
    specs: dict[str, MetricSpec]
    """Units and directions of the columns, in their order."""
    primary: list[str]
    """Columns of primary metrics."""
    runs: dict[str, list[Run]]
    settings: pd.DataFrame
    """Settings that differ between rows, by row."""
    notes: list[str] = field(default_factory=list)

    def statistics(self, statistic: Any) -> pd.DataFrame:
        """Aggregate the metrics of each row over seeds, by ``mean``, ``std`` or ``count``."""
        table: pd.DataFrame = self.values.groupby(level="run", sort=False).agg(statistic)
        return table

    def counts(self) -> "pd.Series[str]":
        """Return the number of seeds by row, as a range if it depends on the task."""
        counts = self.statistics("count")
        ranges = zip(counts.where(counts > 0).min(axis=1).fillna(0).astype(int), counts.max(axis=1), strict=True)
        texts = [f"{low}" if low == high else f"{low} to {high}" for low, high in ranges]
        return pd.Series(texts, counts.index, name="seeds")

    def best(self) -> pd.DataFrame:
        """Return True for the best mean of each metric of several rows."""
        means = self.statistics("mean") * [1 if spec.higher_is_better else -1 for spec in self.specs.values()]
        return means.eq(means.max()) & (means.count() > 1)

    def to_frame(self) -> pd.DataFrame:
        """Return seeds, run directories, settings and statistics of all metrics."""
        folders = {name: " ".join(str(run.path.parent) for run in runs) for name, runs in self.runs.items()}
        stats = self.statistics(["mean", "std"])
        stats.columns = [f"{self.split}/{key}{end}" for key in self.specs for end in ("", " std")]
        table = pd.concat([self.counts(), pd.Series(folders, name="folders"), self.settings, stats], axis=1)
        return table.rename_axis("run")

    def to_markdown(self) -> str:
        """Return tables of primary metrics, best means in bold, and of settings."""
        means, stds, best = self.statistics("mean"), self.statistics("std"), self.best()
        table = self.counts().to_frame()
        for key in self.primary:
            spec, cells = self.specs[key], zip(means[key], stds[key], best[key], strict=True)
            table[spec.column_header(key.replace("/", " "))] = [_cell(spec, *cell) for cell in cells]
        parts = [f"{TITLES[self.split]}, mean ± standard deviation over seeds.", _markdown_table(table)]
        if len(self.settings.columns):
            parts += ["Settings that differ:", _markdown_table(self.settings)]
        return "\n\n".join([*parts, *self.notes]) + "\n"

    def add_delta_m(self, baseline: str, errors: list[HTTError]) -> None:
        """Compute Delta_m of every seed to the mean of a row; collect errors of other tasks."""
        base = find_row(self.runs, baseline)
        self.values = self.values.drop(columns=DELTA_M, errors="ignore")
        self.primary = [key for key in self.primary if key != DELTA_M]
        self.specs.pop(DELTA_M, None)
        means: Any = self.statistics("mean").loc[base]
        specs = {key: self.specs[key] for key in self.primary if not math.isnan(means[key])}
        gains = delta_m(specs, cast(Any, self.values), means)  # of whole columns
        tasks = {name: sorted({task for run in runs for task in run.tasks}) for name, runs in self.runs.items()}
        other = [name for name in tasks if tasks[name] != tasks[base]]
        for name in other:
            path, expected = self.runs[name][0].path, ", ".join(tasks[base])
            errors.append(DataError(f"{path} must have the tasks of --baseline ({expected}), got {tasks[name]}."))
        self.values[DELTA_M] = pd.Series(gains, self.values.index).drop(other, level="run")
        self.specs[DELTA_M] = MetricSpec()
        self.primary.append(DELTA_M)
        self.notes.append(f"Delta_m is relative to {base}.")


def compare(runs: Sequence[Run], split: Split | None, errors: list[HTTError]) -> Comparison:
    """Group at least one run into rows of equal settings; collect errors of other units."""
    trained = [run for run in runs if run.trained]
    if not trained:
        rule = "hold a run of a trained network, got random weights only"
        raise ConfigError(f"DIR must {rule} ({runs[0].path}). Run htt test with --ckpt_path.")
    chosen: Split = split or ("test" if any(run.split == "test" for run in trained) else "val")
    candidates = [run for run in trained if run.split == chosen]
    if not candidates:
        raise ConfigError(f"--split {chosen} needs a {RESULTS[chosen]}, got none. Leave it out, or run its command.")
    usable = without_steps_of_tasks(list(with_same_units(candidates, errors)))
    latest = {
        (*sorted(run.settings.items()), run.seed, run.tasks if run.settings["data.tasks"] == ALONE else ()): run
        for run in sorted(usable, key=lambda run: run.path.stat().st_mtime)
    }
    kept = sorted(latest.values(), key=lambda run: str(run.path))
    notes = []
    if untrained := [str(run.path) for run in runs if not run.trained]:
        notes.append(f"Metrics of random weights are left out: {', '.join(untrained)}.")
    if count := len(trained) - len(candidates):
        notes.append(f"Metrics of another split are left out ({count} files); see --split.")
    if count := len(usable) - len(kept):
        notes.append(f"Of runs with equal settings and seed, the latest counts ({count} left out).")

    settings = pd.DataFrame([dict(run.settings) for run in kept]).fillna("null")
    group = settings.groupby(list(settings), sort=False).ngroup()
    rows = settings.drop_duplicates()
    differing = rows.loc[:, rows.nunique() > 1]
    names = row_names(differing, kept)
    index = pd.MultiIndex.from_arrays([[names[k] for k in group], [run.seed for run in kept]], names=["run", "seed"])
    metrics = {key: metric for run in kept for key, metric in run.metrics.items()}
    columns = sorted(metrics, key=lambda key: key == DELTA_M)
    table = [[run.metrics[key].value if key in run.metrics else math.nan for key in columns] for run in kept]
    values = pd.DataFrame(table, index, columns).groupby(level=["run", "seed"], sort=False).first()
    return Comparison(
        chosen,
        values,
        specs={key: metrics[key].spec for key in columns},
        primary=[key for key in columns if metrics[key].primary],
        runs={name: [run for run, k in zip(kept, group, strict=True) if names[k] == name] for name in names},
        settings=differing.set_axis(pd.Index(names, name="run")),
        notes=notes,
    )


def without_steps_of_tasks(runs: Sequence[Run]) -> list[Run]:
    """Leave out the steps of single-task networks, if there are several tasks: each has as many images as labels."""
    alone = [run for run in runs if run.settings["data.tasks"] == ALONE]
    if len({run.tasks for run in alone}) < 2:
        return list(runs)
    return [
        replace(run, settings={key: value for key, value in run.settings.items() if key != STEPS or run not in alone})
        for run in runs
    ]


def with_same_units(runs: Iterable[Run], errors: list[HTTError]) -> Iterator[Run]:
    """Yield runs with the units of earlier runs, and collect errors of the others."""
    first: dict[str, Run] = {}
    for run in runs:
        other = {key: first[key] for key, metric in run.metrics.items() if key in first}
        wrong = next((key for key in other if other[key].metrics[key].spec != run.metrics[key].spec), None)
        if wrong is None:
            first = dict.fromkeys(run.metrics, run) | first
            yield run
        else:
            found, expected = (one.metrics[wrong].spec.column_header(wrong) for one in (run, other[wrong]))
            errors.append(DataError(f"{run.path} must have {expected} as {other[wrong].path}, got {found}."))


def row_names(settings: pd.DataFrame, runs: Sequence[Run]) -> list[str]:
    """Name rows by the settings that differ, once if settings vary together; by ``steps`` only if ambiguous."""
    kept: dict[tuple[int, ...], str] = {}
    for key in sorted(map(str, settings), key=lambda key: [not key.startswith(prefix) for prefix in KEY_SETTINGS]):
        if key != STEPS or len(settings[list(kept.values())].drop_duplicates()) < len(settings):
            kept.setdefault(tuple(pd.factorize(settings[key])[0]), key)
    if not kept:
        return [runs[0].settings.get("data", "all runs")]
    every = ", ".join(dict.fromkeys(task for run in runs for task in run.tasks))
    words = [
        [f"{short_name(key, kept.values())}={'all' if value == every else value}" for value in settings[key]]
        for key in kept.values()
    ]
    return [" ".join(row) for row in zip(*words, strict=True)]


def short_name(key: str, keys: Iterable[str]) -> str:
    """Strip the group of an option, unless the rest is ambiguous among ``keys``."""
    rest = key.partition(".")[2] or key
    return key if any(other != key and (other.partition(".")[2] or other) == rest for other in keys) else rest


def find_row(rows: dict[str, list[Run]], baseline: str) -> str:
    """Find the only row by its name, a part of it, or the directory of a run."""
    folder = Path(baseline).resolve()
    named = [baseline] if baseline in rows else [name for name in rows if baseline in name]
    found = named or [name for name, runs in rows.items() if any(run.path.resolve().parent == folder for run in runs)]
    if len(found) == 1:
        return found[0]
    rule = "be part of one name only" if found else "name a row or the directory of one of its runs"
    hint = "" if found else did_you_mean(baseline, rows)
    raise ConfigError("\n  ".join([f"--baseline must {rule}, got {baseline!r}.{hint} Rows:", *(found or rows)]))


def _cell(spec: MetricSpec, mean: float, std: float, best: bool) -> str:
    text = spec.format(mean) + ("" if math.isnan(std) else f" ± {spec.format(std)}")
    return f"**{text}**" if best else text


def _markdown_table(table: pd.DataFrame) -> str:
    plain = table.map(lambda cell: cell.replace("|", "/")).rename(lambda name: name.replace("|", "/"))
    align = ("left", *["right"] * len(table.columns))
    return plain.rename_axis("run").to_markdown(colalign=align, disable_numparse=True)
