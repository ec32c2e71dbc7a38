"""Do discovered labels help? Trains every method on the embedded scenes and compares what each reaches.

    python benchmarks/label_efficiency.py --out runs/label_efficiency              # everything, hours
    python benchmarks/label_efficiency.py --out runs/label_efficiency_quick --quick   # some of it, 15 minutes

Finished runs are not repeated and an interrupted one goes on from its last epoch, so the same command continues; runs
share their teachers. Results: ``results.csv``, ``table.md`` (mean, standard deviation, gap closed) and ``figure.png``.
Choices are made on one block of scenes (``--block tune``), reported on another (``report``).
"""

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

from htt_lightning.data import SyntheticDataModule
from htt_lightning.files import atomic_path

Row = dict[str, str | float]
"""One figure of one run."""

TASKS = [task.name for task in SyntheticDataModule().tasks]
SIGNS = {task.name: 1 if task.higher_is_better else -1 for task in SyntheticDataModule().tasks}
BLOCKS = {"tune": 1, "report": 2}
"""Seeds of the two collections of scenes; the demo's is 0."""

VALIDATION = 240
"""Validation scenes, all labelled: more than the demo's, for figures with less noise."""

NETWORK = ("--model.backbone_options.channels", "[32, 64, 96, 96]", "--model.token_dim", "32")
"""Smaller than the demo's: the study is many runs."""

SUPERVISED, LONGER, FULL = "supervised, N", "supervised, 2N", "full labels"
NO_GLOBAL, NO_FINE = "supervised, no global tokens", "supervised, no fine-grained tokens"
PREDICTIONS, THREE, FOUR = "+ predictions", "+ predictions, 3 stages", "+ predictions, 4 stages"
FEATURES = ("--discovery.terms.feature_labeled", "1", "--discovery.terms.feature_unlabeled", "1")
ALL_TASKS = ("--discovery.betas", "{human_parts: 1, edges: 0.05}")
PUBLISHED = (*FEATURES, *ALL_TASKS, "--discovery.targets", "hard", "--discovery.student", "fresh")


@dataclass(frozen=True)
class Method:
    """A row of the table.

    Attributes:
        name: Of the row.
        words: Arguments of ``htt fit``.
        stages: How many times N epochs are trained in one go.
        teacher: Name of the row whose run of the same seed is the stage before; it has the same network options.
        offline: Whether it teaches through labels on disk.
        single: Whether every task has a run of its own.
    """

    name: str
    words: tuple[str, ...] = ()
    stages: int = 1
    teacher: str = ""
    offline: bool = False
    single: bool = False


METHODS = {
    method.name: method
    for method in (
        Method("single-task", ("--model.network", "multitask"), single=True),
        Method("multi-task baseline", ("--model.network", "multitask")),
        Method(SUPERVISED),
        Method(LONGER, stages=2),
        Method("supervised, 3N", stages=3),
        Method("supervised, 4N", stages=4),
        Method("published recipe", PUBLISHED, teacher=SUPERVISED),
        Method("+ features", (*FEATURES, "--discovery.terms.prediction", "0"), teacher=SUPERVISED),
        Method(PREDICTIONS, teacher=SUPERVISED),  # the recipe of synthetic.yaml
        Method("+ both", FEATURES, teacher=SUPERVISED),
        Method(THREE, teacher=PREDICTIONS),
        Method(FOUR, teacher=THREE),
        Method("+ predictions, hard labels", ("--discovery.targets", "hard"), teacher=SUPERVISED),
        Method("+ predictions, one view", ("--discovery.targets", "soft"), teacher=SUPERVISED),
        Method("+ predictions, fresh student", ("--discovery.student", "fresh"), teacher=SUPERVISED),
        Method("+ predictions, all tasks", ALL_TASKS, teacher=SUPERVISED),
        Method("offline predictions", teacher=SUPERVISED, offline=True),
        Method("moving average", ("--discovery.teacher", "ema"), stages=2),
        Method(NO_GLOBAL, ("--model.global_tokens", "false")),
        Method("+ predictions, no global tokens", ("--model.global_tokens", "false"), teacher=NO_GLOBAL),
        Method(NO_FINE, ("--model.fine_tokens", "false")),
        Method("+ predictions, no fine-grained tokens", ("--model.fine_tokens", "false"), teacher=NO_FINE),
        Method(FULL),
    )
}
PROTOCOLS = ["one-label", "random-label"]
MAIN = [SUPERVISED, LONGER, PREDICTIONS, FULL]


@dataclass(frozen=True)
class Run:
    """One training run.

    Attributes:
        method: What is trained.
        labels: Protocol of the mask.
        seed: Of everything random but the scenes.
        task: The only task of a single-task run.
    """

    method: Method
    labels: str
    seed: int
    task: str | None = None

    @property
    def key(self) -> str:
        """Name of its folder."""
        words = [self.method.name, *([self.task] if self.task else []), self.labels, f"seed {self.seed}"]
        return "-".join(words).replace(" ", "_").replace(",", "").replace("+", "plus")

    @property
    def teacher(self) -> "Run | None":
        """The run whose network it learns from."""
        return Run(METHODS[self.method.teacher], self.labels, self.seed) if self.method.teacher else None

    @property
    def turn(self) -> tuple[bool, bool, int]:
        """Main rows come first, and teachers before those they teach."""
        taught = self.teacher.turn[-1] + 1 if self.teacher else 0
        return self.method.name not in MAIN, self.labels == "random-label", taught


class Study:
    """All runs of a study in a folder.

    Args:
        out: The folder.
        scenes: Seed of the collection of scenes.
        images: Number of training scenes.
        epochs: N.
        extra: Further arguments of every ``htt fit``.
    """

    def __init__(self, out: Path, scenes: int, images: int, epochs: int, extra: Sequence[str] = ()) -> None:
        self.out, self.epochs, self.extra = out, epochs, list(extra)
        self.data = ["--data.train_images", str(images), "--data.val_images", str(VALIDATION)]
        self.data += ["--data.scenes_seed", str(scenes)]
        self.data += ["--data.cache", str(out / "scenes"), "--data.num_workers", "0"]

    def folder(self, run: Run) -> Path:
        """Where a run keeps its files."""
        return self.out / "runs" / run.key / "run"

    def last(self, run: Run) -> Path:
        """Its checkpoint."""
        return self.folder(run) / "checkpoints" / "last.ckpt"

    def command(self, run: Run) -> list[str]:
        """The words of ``htt`` that train it, from its last epoch if there is one."""
        method = run.method
        words = ["fit", "--config", "synthetic.yaml", *self.data, "--data.labels", run.labels, *NETWORK]
        words += ["--seed_everything", str(run.seed), "--trainer.limit_train_batches", "1.0"]
        words += ["--trainer.max_epochs", str(self.epochs * method.stages)]
        words += ["--trainer.check_val_every_n_epoch", str(self.epochs)]
        words += ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]
        words += ["--panel.images", "0", "--discovery_panel.images", "0", "--discovery_panel.train_images", "0"]
        words += ["--trainer.logger", "CSVLogger", "--trainer.logger.save_dir", str(self.out / "runs")]
        words += ["--trainer.logger.name", run.key, "--trainer.logger.version", "run"]
        words += ["--data.tasks", run.task] if run.task else []
        if method.offline:
            words += ["--data.discovered", str(self.out / "discovered" / run.key), "--discovery.stages", "1"]
        elif run.teacher:
            words += ["--discovery.stages", "2", "--discovery.teacher", str(self.last(run.teacher))]
        else:
            words += ["--discovery.stages", "1"]
        words += [*method.words, *self.extra]
        return [*words, "--ckpt_path", str(self.last(run))] if self.last(run).exists() else words

    def train(self, run: Run, teacher: "Future[None] | None" = None) -> None:
        """Train a run to its end, unless it has been, once its teacher's job is done."""
        if teacher:
            teacher.result()
        if (self.folder(run) / "results.json").exists():
            return
        if run.method.offline and run.teacher:
            mask = ["--data.labels", run.labels, "--seed_everything", str(run.seed)]
            goal = ["--ckpt_path", str(self.last(run.teacher)), "--out", str(self.out / "discovered" / run.key)]
            self._htt(run, ["discover", "--config", "synthetic.yaml", *self.data, *mask, *goal])
        self._htt(run, self.command(run))
        print("finished", run.key, flush=True)

    def _htt(self, run: Run, words: Sequence[str]) -> None:
        log = self.out / "logs" / f"{run.key}.txt"
        log.parent.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # runs share the cores, not their threads
        with log.open("a") as file:
            done = subprocess.run(
                [sys.executable, "-m", "htt_lightning", *words], stdout=file, stderr=file, env=environment, check=False
            )
        if done.returncode:
            raise SystemExit(f"{run.key} failed; see {log}")

    def results(self, runs: Iterable[Run]) -> list[Row]:
        """One row per finished run and metric."""
        rows: list[Row] = []
        for run in runs:
            path = self.folder(run) / "results.json"
            for metric, figures in json.loads(path.read_text()).items() if path.exists() else ():
                task = metric.split("/")[1]
                row = {"labels": run.labels, "method": run.method.name, "seed": run.seed, "task": task}
                rows.append({**row, "metric": metric, "value": figures["value"]})
        return rows


def plan(seeds: int, quick: bool) -> list[Run]:
    """Every run of the study in order: one-label in full, random-label for the main rows."""
    protocols = PROTOCOLS[:1] if quick else PROTOCOLS
    runs = [Run(METHODS[FULL], "full", seed) for seed in range(seeds)]
    for labels in protocols:
        for method in METHODS.values():
            if method.name != FULL and (method.name in MAIN or (labels == "one-label" and not quick)):
                tasks = TASKS if method.single else [None]
                runs += [Run(method, labels, seed, task) for seed in range(seeds) for task in tasks]
    return sorted(runs, key=attrgetter("turn"))


def summary(rows: Sequence[Row]) -> str:
    """A Markdown table per protocol: mean and standard deviation, and the share of the gap closed by each method."""
    lines: list[str] = []
    for labels in dict.fromkeys(row["labels"] for row in rows if row["labels"] != "full"):
        values: dict[tuple[str, str], list[float]] = {}
        for row in rows:
            if row["labels"] in (labels, "full"):
                values.setdefault((str(row["method"]), str(row["task"])), []).append(float(row["value"]))
        head = ["method", *TASKS, "gap closed"]
        lines += [f"### {labels}", "", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
        for method in METHODS:
            cells = [_cell(values.get((method, task), ())) for task in TASKS]
            if any(cells):
                shares = [share for share in gap_closed(values, method).values() if share is not None]
                lines.append(f"| {' | '.join([method, *cells, f'{statistics.mean(shares):.2f}' if shares else ''])} |")
        narrow = [task for task, share in gap_closed(values, FULL).items() if share is None]
        listed = ", ".join(narrow) or "none"
        lines += ["", f"Not in the mean, as the gap is under two standard deviations: {listed}.", ""]
    return "\n".join(lines)


def gap_closed(values: Mapping[tuple[str, str], Sequence[float]], method: str) -> dict[str, float | None]:
    """(method - supervised) / (full labels - supervised) by task, from means over seeds.

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


def _cell(values: Sequence[float]) -> str:
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):.2g}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3g}{spread}"


def draw(rows: Sequence[Row], path: Path) -> None:
    """Every method's figure per task, one point per seed, next to full labels."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    chosen = [row for row in rows if row["labels"] != "random-label"]
    methods = [method for method in METHODS if any(row["method"] == method for row in chosen)]
    figure, axes = pyplot.subplots(1, len(TASKS), figsize=(3 * len(TASKS), 0.35 * len(methods) + 1.5), sharey=True)
    for axis, task in zip(axes, TASKS, strict=True):
        mine = [row for row in chosen if row["task"] == task]
        axis.scatter([row["value"] for row in mine], [methods.index(str(row["method"])) for row in mine], s=14)
        axis.set_title(str(mine[0]["metric"]).removeprefix("val/") if mine else task, fontsize=9)
        axis.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(range(len(methods)), methods, fontsize=8)
    axes[0].invert_yaxis()
    figure.tight_layout()
    with atomic_path(path) as partial:
        figure.savefig(partial, format="png", dpi=110)


def main(words: Sequence[str] | None = None) -> None:
    """Run what is missing, then write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="Folder of the study.")
    parser.add_argument("--quick", action="store_true", help="Main rows of one-label with one seed and few epochs.")
    parser.add_argument("--block", choices=BLOCKS, default="report", help="Collection of scenes.")
    parser.add_argument("--seeds", type=int, default=None, help="Number of seeds; 3, or 1 if quick.")
    parser.add_argument("--epochs", type=int, default=None, help="N; 80, or 16 if quick.")
    parser.add_argument("--images", type=int, default=60, help="Number of training scenes.")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="Runs at a time, one thread each.")
    parser.add_argument("--only", nargs="+", choices=METHODS, default=list(METHODS), help="Rows to run, with teachers.")
    parser.add_argument("--labels", nargs="+", choices=PROTOCOLS, default=PROTOCOLS, help="Protocols to run.")
    parser.add_argument("--set", nargs=argparse.REMAINDER, default=[], help="Further arguments of every htt fit.")
    given = parser.parse_args(words)
    study = Study(given.out, BLOCKS[given.block], given.images, given.epochs or (16 if given.quick else 80), given.set)
    runs = plan(given.seeds or (1 if given.quick else 3), given.quick)
    wanted = {run for run in runs if run.method.name in given.only}
    while teachers := {run.teacher for run in wanted if run.teacher} - wanted:
        wanted |= teachers
    wanted = {run for run in wanted if run.labels in ("full", *given.labels)}
    cache = {"scenes_seed": BLOCKS[given.block], "cache": str(given.out / "scenes"), "num_workers": given.jobs}
    SyntheticDataModule(given.images, VALIDATION, **cache).prepare_data()
    jobs: dict[Run, Future[None]] = {}
    with ThreadPoolExecutor(given.jobs) as pool:
        for run in runs:  # teachers come first, so no job waits for one that is not begun
            if run in wanted:
                jobs[run] = pool.submit(study.train, run, jobs[run.teacher] if run.teacher else None)
    for job in jobs.values():
        job.result()
    rows = study.results(runs)
    if rows:
        with atomic_path(given.out / "results.csv") as partial, partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        table = summary(rows)
        with atomic_path(given.out / "table.md") as partial:
            partial.write_text(table, encoding="utf-8")
        draw(rows, given.out / "figure.png")
        print(table)


if __name__ == "__main__":
    main()
