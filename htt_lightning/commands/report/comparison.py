"""Runs of the same settings as one row, rows named by what differs, and Delta_m against one of them."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from htt_lightning.errors import HTTError, did_you_mean
from htt_lightning.io.run_directory import RESULTS
from htt_lightning.tasks.metric_spec import MetricSpec, delta_m
from htt_lightning.training.results import ALONE, STEPS, Run, Split

DELTA_M = "delta_m"
"""Key of the figure that is over all tasks."""
TELLING = ("data.labels", "model.network", "data.tasks", "model.", "data", "discovery.", "trainer.", "test.")
"""Settings that say most about a row, by how they begin."""
ABSENT = "null"
"""A setting that a run has not."""


@dataclass
class Row:
    """Runs that differ in nothing but their seeds; networks of single tasks are one row together.

    Attributes:
        settings: What they have in common.
        runs: The runs.
        name: Short, from what tells the row from others.
        gains: Delta_m of each seed against a baseline.
    """

    settings: Mapping[str, str]
    runs: list[Run]
    name: str = ""
    gains: list[float] = field(default_factory=list)

    @property
    def tasks(self) -> set[str]:
        """Tasks that there are figures of."""
        return {task for run in self.runs for task in run.tasks}

    @property
    def seeds(self) -> dict[str, list[Run]]:
        """The runs by seed."""
        return {run.seed: [other for other in self.runs if other.seed == run.seed] for run in self.runs}

    @property
    def count(self) -> str:
        """Number of seeds; from the least to the most of a task, where single tasks have different numbers."""
        counts = {len([run for run in self.runs if task in run.tasks]) for task in self.tasks}
        return f"{min(counts)}" if len(counts) == 1 else f"{min(counts)} to {max(counts)}"

    def values(self, key: str) -> list[float]:
        """A figure, of every run that has it."""
        if key == DELTA_M and self.gains:
            return self.gains
        found = [run.values[key].value for run in self.runs if key in run.values]
        return [value for value in found if not math.isnan(value)]


@dataclass
class Comparison:
    """Rows with figures of one split.

    Attributes:
        rows: The rows.
        split: Whose figures.
        notes: What a reader has to know about them.
    """

    rows: list[Row]
    split: Split
    notes: list[str] = field(default_factory=list)

    @property
    def kinds(self) -> dict[str, MetricSpec]:
        """Unit and direction of every figure by ``<task>/<figure>``; Delta_m comes last."""
        kinds = {key: value.kind for row in self.rows for run in row.runs for key, value in run.values.items()}
        kinds.pop(DELTA_M, None)
        return kinds | ({DELTA_M: MetricSpec()} if any(row.values(DELTA_M) for row in self.rows) else {})

    @property
    def headlines(self) -> dict[str, MetricSpec]:
        """Those that papers report."""
        keys = {
            key for row in self.rows for run in row.runs for key, value in run.values.items() if value.primary_metric
        }
        return {key: kind for key, kind in self.kinds.items() if key in keys or key == DELTA_M}

    @cached_property
    def differing(self) -> dict[str, list[str]]:
        """The settings in which rows differ, with their values row by row."""
        keys = dict.fromkeys(key for row in self.rows for key in row.settings)
        columns = {key: [row.settings.get(key, ABSENT) for row in self.rows] for key in keys}
        return {key: values for key, values in columns.items() if len(set(values)) > 1}

    def best(self, key: str) -> set[str]:
        """Names of the rows with the best mean of a figure; none where there is nothing to compare."""
        means = {row.name: statistics.mean(row.values(key)) for row in self.rows if row.values(key)}
        better = max if self.kinds[key].higher_is_better else min
        return {name for name, mean in means.items() if mean == better(means.values())} if len(means) > 1 else set()


def compare(runs: Sequence[Run], split: Split | None, faults: list[HTTError]) -> Comparison:
    """Put runs of the same settings together and name the rows.

    Args:
        runs: At least one.
        split: Whose figures; by default those of ``test``, where there are any.
        faults: Where to add runs that cannot be compared with the others.

    Raises:
        HTTError: No run has figures of the split.
    """
    chosen: Split = split or ("test" if any(run.split == "test" for run in runs) else "val")
    mine = [run for run in runs if run.split == chosen]
    if not mine:
        raise HTTError(f"There is no {RESULTS[chosen]} in these folders; leave out --split, or run the command first.")
    alike = list(of_one_kind(mine, faults))
    latest = {(key_of(run), run.seed): run for run in sorted(alike, key=lambda run: run.path.stat().st_mtime)}
    comparison = Comparison([], chosen)
    if left := len(runs) - len(mine):
        comparison.notes.append(f"Figures of other commands are left out ({left} files); see --split.")
    if twice := len(alike) - len(latest):
        comparison.notes.append(f"Of runs with the same settings and seed the latest counts ({twice} left out).")
    rows: dict[tuple[tuple[str, str], ...], Row] = {}
    for run in sorted(latest.values(), key=lambda run: str(run.path)):
        rows.setdefault(tuple(sorted(run.settings.items())), Row(run.settings, [])).runs.append(run)
    comparison.rows = list(rows.values())
    for row, name in zip(comparison.rows, names(comparison), strict=True):
        row.name = name
    return comparison


def key_of(run: Run) -> tuple[object, ...]:
    """What runs of one figure in a row have in common: settings and, where each task has a network, the task."""
    return *sorted(run.settings.items()), run.tasks if run.settings["data.tasks"] == ALONE else ()


def of_one_kind(runs: Iterable[Run], faults: list[HTTError]) -> Iterable[Run]:
    """The runs whose figures have the units of those before them; the others are faults."""
    known: dict[str, Run] = {}
    for run in runs:
        odd = [key for key, value in run.values.items() if key in known and known[key].values[key].kind != value.kind]
        if odd:
            units, other = run.values[odd[0]].kind, known[odd[0]]
            faults.append(
                HTTError(
                    f"{run.path} has {units.column_header(odd[0])}, but {other.path} "
                    f"{other.values[odd[0]].kind.column_header(odd[0])}; report them apart."
                )
            )
            continue
        known = dict.fromkeys(run.values, run) | known
        yield run


def names(comparison: Comparison) -> list[str]:
    """Short names of rows: the settings that differ, by names as short as possible; one of those that go together.

    Steps, which follow from the others or tell one stage from another, are named in the latter case alone.
    """
    differing, kept = comparison.differing, dict[tuple[int, ...], str]()
    for key in sorted(differing, key=lambda key: [not key.startswith(start) for start in TELLING]):
        if key != STEPS or len(set(zip(*kept, strict=True))) < len(comparison.rows):
            kept.setdefault(tuple(differing[key].index(value) for value in differing[key]), key)
    if not kept:
        return [row.settings.get("data", "all runs") for row in comparison.rows]
    every = ", ".join(dict.fromkeys(task for row in comparison.rows for run in row.runs for task in run.tasks))
    words = [
        [f"{short(key, kept.values())}={'all' if value == every else value}" for value in differing[key]]
        for key in kept.values()
    ]
    return [" ".join(row) for row in zip(*words, strict=True)]


def short(key: str, others: Iterable[str]) -> str:
    """An option's name without its group, unless another one is called the same then."""
    rest = key.partition(".")[2] or key
    return key if any(other != key and (other.partition(".")[2] or other) == rest for other in others) else rest


def measure(comparison: Comparison, baseline: str, faults: list[HTTError]) -> None:
    """Add Delta_m against a row, for every seed of each row of the same tasks.

    Args:
        comparison: The rows.
        baseline: Name of one of them, or a part of it that no other has, or the folder of one of its runs.
        faults: Where to add rows of other tasks.

    Raises:
        HTTError: There is no such row.
    """
    base = referred(comparison.rows, baseline)
    kinds = {key: kind for key, kind in comparison.headlines.items() if key != DELTA_M and base.values(key)}
    single = {key: statistics.mean(base.values(key)) for key in kinds}
    for row in comparison.rows:
        if row.tasks != base.tasks:
            theirs, ours = (", ".join(sorted(one.tasks)) for one in (row, base))
            what = f"{row.runs[0].path}: the tasks of its row are {theirs}, those of the baseline {ours}"
            faults.append(HTTError(f"{what}; Delta_m needs the same."))
            continue
        for runs in row.seeds.values():
            mine = {key: value.value for run in runs for key, value in run.values.items()}
            if not any(math.isnan(mine.get(key, math.nan)) for key in kinds):
                row.gains.append(delta_m(kinds, mine, single))
    comparison.notes.append(f"Delta_m is measured against {base.name}.")


def referred(rows: Sequence[Row], baseline: str) -> Row:
    """The row of a name, or of a part of it that no other has, or of the folder of one of its runs.

    Raises:
        HTTError: There is none, or more than one; the message names those there are.
    """
    place, known = Path(baseline).resolve(), [row.name for row in rows]
    named = [row for row in rows if row.name == baseline] or [row for row in rows if baseline in row.name]
    found = named or [row for row in rows if any(run.path.resolve().parent == place for run in row.runs)]
    if len(found) == 1:
        return found[0]
    listed = "\n".join(f"  {row.name}" for row in found or rows)
    if found:
        raise HTTError(f"--baseline {baseline!r} is part of several names. Rows:\n{listed}")
    hint = did_you_mean(baseline, known)
    raise HTTError(f"--baseline {baseline!r} names no row, nor the folder of one of its runs.{hint} Rows:\n{listed}")
