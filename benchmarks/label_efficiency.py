r"""Measure the gain of label discovery: train every method on rendered scenes and compare metrics.

    python benchmarks/label_efficiency.py --out runs/label_efficiency                 # everything, hours
    python benchmarks/label_efficiency.py --out runs/label_efficiency_quick --quick   # the main rows, shorter
    python benchmarks/label_efficiency.py --out runs/budget --labels one-label --backbones pretrained \
        --images 60 120 240 --only "supervised, 2N" "mean teacher" "label discovery"
    python benchmarks/label_efficiency.py --out runs/by_source --labels by-source --backbones pretrained \
        --only "supervised, N" "supervised, 2N" "mean teacher" "label discovery" "full labels"

Under ``by-source``, half of the scenes are of another style, and each style has the labels of three tasks. Validation
scenes of both styles keep all labels.

Finished runs are not repeated and an interrupted one resumes at its last epoch, so the same command continues; runs
share their teachers. Results: ``results.csv``, ``table.md`` (mean, standard deviation, gap closed) and ``figure.png``;
with several ``--images`` also ``budget.png``, Delta_m by the number of labeled images per task.
Choices are made on one block of scenes (``--block tune``), reported on another (``report``).
"""

import argparse
import itertools
import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path

from by_source import BY_SOURCE, Sources
from figures import draw, draw_budget
from gap import FULL, FULL_LABELS, LONGER, SUPERVISED, TASKS, Row, budget, read, summary, write
from noisy_maps import write_noisy_maps
from runs import fit_words, metrics_of, run_folder, run_htt

from htt_lightning.data import SyntheticDataModule, SyntheticScenes

BLOCKS = {"tune": 1, "report": 2}
"""Seeds of the two collections of scenes; that of the demo is 0."""

SIZE = (64, 96)
"""Size of the scenes in pixels, that of synthetic.yaml."""
VALIDATION = 240
"""Number of validation scenes, more than in the demo for less noise."""

BACKBONES: dict[str, tuple[str, ...]] = {
    "pretrained": (),  # the one of synthetic.yaml
    "scratch": (
        *("--model.backbone", "resnet18", "--model.pretrained", "false"),
        *("--model.backbone_options", "{channels: [32, 64, 128, 256]}"),
    ),
}
"""Arguments of ``htt fit`` by backbone."""

PROTOCOLS = ["one-label", "random-label"]
"""Protocols by which ``htt`` draws masks of one collection of scenes."""
DISCOVERY, DISCOVERY_3N, RIVAL = "label discovery", "label discovery, 3N", "mean teacher"
MULTITASK = ("--model.network", "multitask")
AVERAGE = ("--discovery.teacher", "ema", "--discovery.ema_decay", "0.99", "--discovery.rampup_epochs", "N")
FEATURES = ("--discovery.loss_weights.feature_labeled", "1", "--discovery.loss_weights.feature_unlabeled", "1")
PUBLISHED = (*FEATURES, "--discovery.pseudo_label_weights", "{edges: 0.05}", "--discovery.target_type", "hard")
PUBLISHED += ("--discovery.student_init", "random", "--discovery.loss_weights.pseudo_label", "1")
DERIVED, DERIVE = "derived labels", ("--data.derive", "{normals: depth, edges: semseg}")
WEIGHTED = ("--data.origin_weights", "{outside: 3}")  # 0.9 with the recipe's 0.3 for discovered labels
OUTSIDE = {"outside, 5 % error": 0.05, "outside, 10 % error": 0.1, "outside, 20 % error": 0.2}
"""Relative errors of depth of another program, by row."""


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
        full: Whether training images keep all labels.
        outside: Error of the depth and normals that another program gives to images without these labels; 0 for none.
    """

    name: str
    words: tuple[str, ...] = ()
    stages: int = 1
    teacher: str = ""
    offline: bool = False
    single: bool = False
    full: bool = False
    outside: float = 0


METHODS = {
    method.name: method
    for method in (
        Method("single-task", MULTITASK, single=True),
        Method("multi-task baseline", MULTITASK),
        Method("multi-task baseline, 2N", MULTITASK, stages=2),
        Method(SUPERVISED),
        Method(LONGER, stages=2),
        Method("supervised, 3N", stages=3),
        Method("cross-task consistency", ("--model.consistency", "cross_task"), stages=2),
        Method("joint-task regularization", ("--model.consistency", "joint_task"), stages=2),
        Method("FixMatch", ("--model.consistency", "fixmatch"), stages=2),
        Method(RIVAL, AVERAGE, stages=2),
        Method("published recipe", PUBLISHED, teacher=SUPERVISED),
        Method(DISCOVERY, teacher=SUPERVISED),  # the recipe of synthetic.yaml
        Method(DISCOVERY_3N, teacher=DISCOVERY),
        Method("discovery, hard labels", ("--discovery.target_type", "hard"), teacher=SUPERVISED),
        Method("discovery, fresh student", ("--discovery.student_init", "random"), teacher=SUPERVISED),
        Method("discovery with features", FEATURES, teacher=SUPERVISED),
        Method("discovery, offline", teacher=SUPERVISED, offline=True),
        Method(DERIVED, DERIVE),
        Method("derived labels, 2N", DERIVE, stages=2),
        Method("derived labels and discovery", DERIVE, teacher=DERIVED),
        Method("derived labels and mean teacher", (*DERIVE, *AVERAGE), stages=2),
        *(Method(name, WEIGHTED, outside=level) for name, level in OUTSIDE.items()),
        *(Method(f"{name}, and discovery", WEIGHTED, teacher=name, outside=level) for name, level in OUTSIDE.items()),
        Method(FULL, full=True),
        Method("full labels, 2N", stages=2, full=True),
    )
}
MAIN = [SUPERVISED, LONGER, DISCOVERY, FULL]
"""Rows of every table, with five seeds instead of three in the first."""


@dataclass(frozen=True)
class Run:
    """A training run.

    Attributes:
        method: What is trained.
        labels: Protocol of the mask, or its entry in ``FULL_LABELS`` for the rows with all labels.
        seed: Of everything random but the scenes.
        backbone: Key of ``BACKBONES``.
        images: Number of training scenes.
        task: The only task of a single-task run.
    """

    method: Method
    labels: str
    seed: int
    backbone: str
    images: int
    task: str | None = None

    @property
    def key(self) -> str:
        """Return the name of its folder."""
        words = [self.method.name, *([self.task] if self.task else []), self.backbone, self.labels]
        return "-".join([*words, f"{self.images} images", f"seed {self.seed}"]).replace(" ", "_").replace(",", "")

    @property
    def columns(self) -> Row:
        """Return what tells it from the others in a table of results."""
        setting: Row = {"backbone": self.backbone, "images": self.images, "labels": self.labels}
        return setting | {"method": self.method.name, "seed": self.seed}

    @property
    def teacher(self) -> "Run | None":
        """Return the run of its teacher."""
        return replace(self, method=METHODS[self.method.teacher]) if self.method.teacher else None

    @property
    def turn(self) -> tuple[bool, int, int, int]:
        """Return the sort key: main rows and few images first, seed by seed, and teachers before their students."""
        taught = self.teacher.turn[-1] + 1 if self.teacher else 0
        return self.method.name not in MAIN, self.images, self.seed, taught


class Study:
    """All runs of a study, in a folder.

    Args:
        out: The folder.
        scenes: Seed of the collection of scenes.
        epochs: N.
        extra: Further arguments of every ``htt fit``.
    """

    def __init__(self, out: Path, scenes: int, epochs: int, extra: Sequence[str] = ()) -> None:
        self.out, self.scenes, self.epochs, self.extra = out, scenes, epochs, list(extra)

    def prepare(self, images: Sequence[int], protocols: Sequence[str], workers: int) -> None:
        """Render the scenes of the protocols, and write the masks that ``htt`` does not draw."""
        if {*protocols} & {*PROTOCOLS}:
            cache = {"scene_seed": self.scenes, "cache": str(self.out / "scenes"), "num_workers": workers}
            SyntheticDataModule(max(images), VALIDATION, SIZE, **cache).prepare_data()
        for count in images if BY_SOURCE in protocols else ():
            self.sources(count).prepare(workers)

    def sources(self, images: int) -> Sources:
        """Return the two collections of ``by-source`` with a number of training scenes."""
        return Sources(self.out, images, VALIDATION, SIZE, self.scenes)

    def folder(self, run: Run) -> Path:
        """Return the folder of a run."""
        return run_folder(self.out, run.key)

    def last(self, run: Run) -> Path:
        """Return the checkpoint of a run."""
        return self.folder(run) / "checkpoints" / "last.ckpt"

    def data_words(self, run: Run) -> list[str]:
        """Return the arguments of ``htt`` that give a run its images and labels."""
        shared = ["--data.num_workers", "0", "--seed_everything", str(run.seed)]
        if run.labels in (BY_SOURCE, FULL_LABELS[BY_SOURCE]):
            return [*self.sources(run.images).words(run.method.full), *shared]
        words = ["--data.val_images", str(VALIDATION), "--data.scene_seed", str(self.scenes)]
        words += ["--data.cache", str(self.out / "scenes"), "--data.train_images", str(run.images)]
        return [*words, "--data.labels", run.labels, *shared]

    def command(self, run: Run) -> list[str]:
        """Return the arguments of ``htt`` that train a run or resume it."""
        method = run.method
        words = [*fit_words(self.out, run.key), *self.data_words(run), *BACKBONES[run.backbone]]
        words += ["--trainer.limit_train_batches", "1.0"]
        words += ["--trainer.max_epochs", str(self.epochs * method.stages)]
        words += ["--trainer.check_val_every_n_epoch", str(self.epochs * method.stages)]
        words += ["--data.tasks", run.task] if run.task else []
        words += ["--data.pseudo_labels", str(self.discovered(run))] if method.offline or method.outside else []
        if run.teacher and not method.offline:
            words += ["--discovery.stages", "2", "--discovery.teacher", str(self.last(run.teacher))]
        else:
            words += ["--discovery.stages", "1"]
        words += [str(self.epochs) if word == "N" else word for word in method.words] + self.extra
        return [*words, "--ckpt_path", str(self.last(run))] if self.last(run).exists() else words

    def discovered(self, run: Run) -> Path:
        """Return the folder of the labels on disk that a run trains on; a student has those of its outside teacher."""
        key = run.teacher.key if run.method.outside and run.teacher else run.key
        return self.out / "discovered" / key

    def discover(self, run: Run) -> None:
        """Write the labels on disk for a run that trains on some, unless another run has them already."""
        method, goal = run.method, ["--out", str(self.discovered(run))]
        if method.offline and run.teacher:
            goal += ["--ckpt_path", str(self.last(run.teacher))]
        elif method.outside and not run.teacher:
            maps = self.out / "maps" / f"{method.outside}"
            scenes = SyntheticScenes("train", run.images, SIZE, self.scenes, self.out / "scenes")
            write_noisy_maps(maps, scenes, method.outside)
            teachers = f"{{depth: {{maps: {maps}/depth}}, normals: {{maps: {maps}/normals, axes: opengl}}}}"
            goal += ["--teachers", teachers]
        else:
            return
        run_htt(["discover", "--config", "synthetic.yaml", *self.data_words(run), *goal], self.out, run.key)

    def train(self, run: Run, teacher: "Future[None] | None" = None) -> None:
        """Train a run to its end after its teacher, unless it is done."""
        if teacher:
            teacher.result()
        if (self.folder(run) / "val_metrics.json").exists():
            return
        self.discover(run)
        run_htt(self.command(run), self.out, run.key)
        print("finished", run.key, flush=True)


def plan(given: argparse.Namespace) -> list[Run]:
    """List all runs in order.

    The main rows and the best rival alone have another backbone, protocol or number of images than the first.
    """
    runs = []
    for backbone, labels, images in itertools.product(given.backbones, given.labels, given.images):
        changes = (backbone != "pretrained") + (labels != "one-label") + (images != given.images[0])
        for method in METHODS.values():
            main = method.name in MAIN
            if method.name not in given.only or changes > (main or method.name == RIVAL) or (given.quick and not main):
                continue
            seeds = given.seeds or (1 if given.quick else 5 if main and not changes else 3)
            protocol = FULL_LABELS[labels] if method.full else labels
            tasks = TASKS if method.single else [None]
            runs += [Run(method, protocol, seed, backbone, images, task) for seed in range(seeds) for task in tasks]
    return sorted(dict.fromkeys(runs), key=attrgetter("turn"))


def main(words: Sequence[str] | None = None) -> None:
    """Train the missing runs, then write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="Folder of the study.")
    parser.add_argument("--quick", action="store_true", help="Main rows with one seed and few epochs.")
    parser.add_argument("--block", choices=BLOCKS, default="report", help="Collection of scenes.")
    parser.add_argument("--seeds", type=int, default=None, help="Number of seeds; 3, or 5 for the main rows.")
    parser.add_argument("--epochs", type=int, default=None, help="N; 40, or 8 if quick.")
    parser.add_argument("--images", type=int, nargs="+", default=[60], help="Numbers of training scenes.")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="Runs at a time, one thread each.")
    parser.add_argument("--only", nargs="+", choices=METHODS, default=list(METHODS), help="Rows to run, with teachers.")
    parser.add_argument("--labels", nargs="+", choices=FULL_LABELS, default=list(FULL_LABELS), help="Protocols to run.")
    parser.add_argument("--backbones", nargs="+", choices=BACKBONES, default=list(BACKBONES), help="Backbones to run.")
    parser.add_argument("--known", type=Path, help="Results (CSV) of earlier runs, which are not repeated.")
    parser.add_argument("--set", nargs=argparse.REMAINDER, default=[], help="Further arguments of every htt fit.")
    given = parser.parse_args(words)
    study = Study(given.out, BLOCKS[given.block], given.epochs or (8 if given.quick else 40), given.set)
    runs = plan(given)
    known = read(given.known) if given.known else []
    told = {(*setting_of(row), row["task"]) for row in known}
    wanted = {
        run
        for run in runs
        if not {(*setting_of(run.columns), task) for task in (run.task and [run.task]) or TASKS} <= told
    }
    while teachers := {run.teacher for run in wanted if run.teacher} - wanted:
        wanted |= teachers
    runs = sorted([*runs, *(wanted - {*runs})], key=attrgetter("turn"))
    study.prepare(given.images, given.labels, given.jobs)
    jobs: dict[Run, Future[None]] = {}
    with ThreadPoolExecutor(given.jobs) as pool:
        for run in runs:  # teachers come first, so no job waits for one that is not begun
            if run in wanted:
                jobs[run] = pool.submit(study.train, run, jobs[run.teacher] if run.teacher else None)
    for job in jobs.values():
        job.result()
    rows = [run.columns | row for run in runs for row in metrics_of(given.out, run.key)]
    own = {(*setting_of(row), row["task"]) for row in rows}
    rows += [row for row in known if (*setting_of(row), row["task"]) not in own]
    if rows:
        write(rows, given.out / "results.csv")
        table = summary(rows, list(METHODS))
        (given.out / "table.md").write_text(table, encoding="utf-8")
        draw(rows, list(METHODS), given.out / "figure.png")
        if curves := budget(rows, list(METHODS)):
            draw_budget(curves, given.out / "budget.png")
        print(table)


def setting_of(row: Row) -> tuple[str | float, ...]:
    """Return the columns of a row that tell runs apart."""
    return tuple(row[key] for key in ("backbone", "images", "labels", "method", "seed"))


if __name__ == "__main__":
    main()
