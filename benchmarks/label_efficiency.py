"""Measure the gain of label discovery: train every method on rendered scenes and compare metrics.

    python benchmarks/label_efficiency.py --out runs/label_efficiency              # everything, hours
    python benchmarks/label_efficiency.py --out runs/label_efficiency_quick --quick   # some of it, 15 minutes

Finished runs are not repeated and an interrupted one resumes at its last epoch, so the same command continues; runs
share their teachers. Results: ``results.csv``, ``table.md`` (mean, standard deviation, gap closed) and ``figure.png``.
Choices are made on one block of scenes (``--block tune``), reported on another (``report``).
"""

import argparse
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

from gap import FULL, LONGER, SUPERVISED, TASKS, Row, draw, read, summary, write
from runs import fit_words, metrics_of, run_folder, run_htt

from htt_lightning.data import SyntheticDataModule

BLOCKS = {"tune": 1, "report": 2}
"""Seeds of the two collections of scenes; that of the demo is 0."""

VALIDATION = 240
"""Number of validation scenes, more than in the demo for less noise."""

NETWORK = ("--model.backbone", "resnet18", "--model.pretrained", "false", "--model.tokens", "released")
NETWORK += ("--model.backbone_options", "{channels: [32, 64, 96, 96]}", "--model.token_dim", "32")
"""Settings of a smaller network than the demo's, because the study has many runs; its tokens have the released form."""

NO_GLOBAL, NO_FINE = "supervised, no global tokens", "supervised, no fine-grained tokens"
PREDICTIONS, TOGETHER = "+ predictions", "+ predictions, 3 teachers"
TWICE = "+ predictions, 3 teachers, 2 students"
FEATURES = ("--discovery.loss_weights.feature_labeled", "1", "--discovery.loss_weights.feature_unlabeled", "1")
UNBALANCED, BALANCED = "{semseg: 0, human_parts: 0}", "{semseg: 0.5, human_parts: 0.5}"
AVERAGE = ("--discovery.teacher", "ema")
EDGES = ("--discovery.pseudo_label_weights", "{edges: 0.05}")
PUBLISHED = (*FEATURES, *EDGES, "--discovery.target_type", "hard", "--discovery.student_init", "random")


@dataclass(frozen=True)
class Method:
    """A row of the table.

    Attributes:
        name: Of the row.
        words: Arguments of ``htt fit``; ``N`` stands for the number of epochs.
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
        Method("supervised, 4N", stages=4),
        Method("published recipe", PUBLISHED, teacher=SUPERVISED),
        Method("+ features", (*FEATURES, "--discovery.loss_weights.pseudo_label", "0"), teacher=SUPERVISED),
        Method(PREDICTIONS, teacher=SUPERVISED),  # the recipe of synthetic.yaml
        Method("+ both", FEATURES, teacher=SUPERVISED),
        Method("+ predictions, 3 stages", teacher=PREDICTIONS),
        Method(TOGETHER, ("--discovery.stages", "4", "--discovery.num_teachers", "3")),
        Method(TWICE, teacher=TOGETHER),
        Method("+ predictions, 3 teachers, 3 students", teacher=TWICE),
        Method(
            "+ predictions, 3 teachers, 3 students, last not raised",
            ("--discovery.class_balance_powers", UNBALANCED),
            teacher=TWICE,
        ),
        Method("+ predictions, hard labels", ("--discovery.target_type", "hard"), teacher=SUPERVISED),
        Method("+ predictions, one view", ("--discovery.target_type", "soft"), teacher=SUPERVISED),
        Method("+ predictions, fresh student", ("--discovery.student_init", "random"), teacher=SUPERVISED),
        Method("+ predictions, also edges", EDGES, teacher=SUPERVISED),
        Method("+ predictions, no balance", ("--discovery.class_balance_powers", UNBALANCED), teacher=SUPERVISED),
        Method("offline predictions", teacher=SUPERVISED, offline=True),
        Method("moving average", (*AVERAGE, "--discovery.rampup_epochs", "N"), stages=2),
        Method("moving average, raised, no ramp", (*AVERAGE, "--discovery.class_balance_powers", BALANCED), stages=2),
        Method(NO_GLOBAL, ("--model.use_global_tokens", "false")),
        Method("+ predictions, no global tokens", ("--model.use_global_tokens", "false"), teacher=NO_GLOBAL),
        Method(NO_FINE, ("--model.use_fine_tokens", "false")),
        Method("+ predictions, no fine-grained tokens", ("--model.use_fine_tokens", "false"), teacher=NO_FINE),
        Method(FULL),
    )
}
PROTOCOLS = ["one-label", "random-label"]
MAIN = [SUPERVISED, LONGER, PREDICTIONS, FULL]


@dataclass(frozen=True)
class Run:
    """A training run.

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
        """Return the name of its folder."""
        words = [self.method.name, *([self.task] if self.task else []), self.labels, f"seed {self.seed}"]
        return "-".join(words).replace(" ", "_").replace(",", "").replace("+", "plus")

    @property
    def teacher(self) -> "Run | None":
        """Return the run of its teacher."""
        return Run(METHODS[self.method.teacher], self.labels, self.seed) if self.method.teacher else None

    @property
    def turn(self) -> tuple[bool, bool, int]:
        """Return the sort key: main rows first, and teachers before their students."""
        taught = self.teacher.turn[-1] + 1 if self.teacher else 0
        return self.method.name not in MAIN, self.labels == "random-label", taught


class Study:
    """All runs of a study, in a folder.

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
        self.data += ["--data.scene_seed", str(scenes)]
        self.data += ["--data.cache", str(out / "scenes"), "--data.num_workers", "0"]

    def folder(self, run: Run) -> Path:
        """Return the folder of a run."""
        return run_folder(self.out, run.key)

    def last(self, run: Run) -> Path:
        """Return the checkpoint of a run."""
        return self.folder(run) / "checkpoints" / "last.ckpt"

    def command(self, run: Run) -> list[str]:
        """Return the arguments of ``htt`` that train a run or resume it."""
        method = run.method
        words = [*fit_words(self.out, run.key), *self.data, "--data.labels", run.labels, *NETWORK]
        words += ["--seed_everything", str(run.seed), "--trainer.limit_train_batches", "1.0"]
        words += ["--trainer.max_epochs", str(self.epochs * method.stages)]
        words += ["--trainer.check_val_every_n_epoch", str(self.epochs)]
        words += ["--data.tasks", run.task] if run.task else []
        if method.offline:
            words += ["--data.pseudo_labels", str(self.out / "discovered" / run.key), "--discovery.stages", "1"]
        elif run.teacher:
            words += ["--discovery.stages", "2", "--discovery.teacher", str(self.last(run.teacher))]
        else:
            words += ["--discovery.stages", "1"]
        words += [str(self.epochs) if word == "N" else word for word in method.words] + self.extra
        return [*words, "--ckpt_path", str(self.last(run))] if self.last(run).exists() else words

    def train(self, run: Run, teacher: "Future[None] | None" = None) -> None:
        """Train a run to its end after its teacher, unless it is done."""
        if teacher:
            teacher.result()
        if (self.folder(run) / "val_metrics.json").exists():
            return
        if run.method.offline and run.teacher:
            mask = ["--data.labels", run.labels, "--seed_everything", str(run.seed)]
            goal = ["--ckpt_path", str(self.last(run.teacher)), "--out", str(self.out / "discovered" / run.key)]
            run_htt(["discover", "--config", "synthetic.yaml", *self.data, *mask, *goal], self.out, run.key)
        run_htt(self.command(run), self.out, run.key)
        print("finished", run.key, flush=True)

    def results(self, runs: Iterable[Run]) -> list[Row]:
        """Return a row per finished run and metric."""
        rows: list[Row] = []
        for run in runs:
            own: Row = {"labels": run.labels, "method": run.method.name, "seed": run.seed}
            rows += [own | row for row in metrics_of(self.out, run.key)]
        return rows


def plan(seeds: int, quick: bool) -> list[Run]:
    """List all runs in order: one-label for every row, random-label for the main rows."""
    protocols = PROTOCOLS[:1] if quick else PROTOCOLS
    runs = [Run(METHODS[FULL], "full", seed) for seed in range(seeds)]
    for labels in protocols:
        for method in METHODS.values():
            if method.name != FULL and (method.name in MAIN or (labels == "one-label" and not quick)):
                tasks = TASKS if method.single else [None]
                runs += [Run(method, labels, seed, task) for seed in range(seeds) for task in tasks]
    return sorted(runs, key=attrgetter("turn"))


def main(words: Sequence[str] | None = None) -> None:
    """Train the missing runs, then write the results."""
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
    parser.add_argument("--known", type=Path, help="Results (CSV) of earlier runs, which are not repeated.")
    parser.add_argument("--set", nargs=argparse.REMAINDER, default=[], help="Further arguments of every htt fit.")
    given = parser.parse_args(words)
    study = Study(given.out, BLOCKS[given.block], given.images, given.epochs or (16 if given.quick else 80), given.set)
    runs = plan(given.seeds or (1 if given.quick else 3), given.quick)
    known = read(given.known) if given.known else []
    told = {(row["labels"], row["method"], row["seed"], row["task"]) for row in known}
    wanted = {
        run
        for run in runs
        if run.method.name in given.only
        and run.labels in ("full", *given.labels)
        and not {(run.labels, run.method.name, run.seed, task) for task in (run.task and [run.task]) or TASKS} <= told
    }
    while teachers := {run.teacher for run in wanted if run.teacher} - wanted:
        wanted |= teachers
    cache = {"scene_seed": BLOCKS[given.block], "cache": str(given.out / "scenes"), "num_workers": given.jobs}
    SyntheticDataModule(given.images, VALIDATION, **cache).prepare_data()
    jobs: dict[Run, Future[None]] = {}
    with ThreadPoolExecutor(given.jobs) as pool:
        for run in runs:  # teachers come first, so no job waits for one that is not begun
            if run in wanted:
                jobs[run] = pool.submit(study.train, run, jobs[run.teacher] if run.teacher else None)
    for job in jobs.values():
        job.result()
    rows = study.results(runs)
    own = {(row["labels"], row["method"], row["seed"], row["task"]) for row in rows}
    rows += [row for row in known if (row["labels"], row["method"], row["seed"], row["task"]) not in own]
    if rows:
        write(rows, given.out / "results.csv")
        table = summary(rows, list(METHODS))
        (given.out / "table.md").write_text(table, encoding="utf-8")
        draw(rows, list(METHODS), given.out / "figure.png")
        print(table)


if __name__ == "__main__":
    main()
