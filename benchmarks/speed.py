"""Compare time and memory with a plain transcription of the method, with equal weights and outputs.

    python benchmarks/speed.py                             # NYUD-v2, 288x384, batch 4, two threads: some 20 minutes
    python benchmarks/speed.py --size 64 96 --rounds 3     # a glance

The plain one is ``plain.py``; tests compare outputs, losses and gradients of both. The rows of a table take turns, and
each is compared with the first, round by round. Peak memory is that of a fresh process, above what was resident just
before the first forward pass. Tables go to the screen, as Markdown to where ``--out`` and drawn to where ``--figure``
says.
"""

import argparse
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from plain import TASKS, PlainHTTNet, plain_loss
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from htt_lightning import HTTModule
from htt_lightning.discovery import DiscoveryLossWeights, TeacherEnsemble
from htt_lightning.io.files import atomic_path

Work = Callable[[], object]
WARM_UP = 3
"""Rounds that do not count, because the system first allocates memory for large maps."""


def make_batch(size: tuple[int, int], images: int) -> dict[str, Any]:
    """Make random images, each labeled for one task in turn (one-label)."""
    torch.manual_seed(0)
    height, width = size
    labeled = {task.name: torch.arange(images) % len(TASKS) == k for k, task in enumerate(TASKS)}
    batch = {
        "image": torch.rand(images, 3, height, width),
        "semseg": torch.randint(0, 13, (images, height, width)),
        "depth": torch.rand(images, 1, height, width) * 9 + 0.7,
        "normals": torch.nn.functional.normalize(torch.randn(images, 3, height, width), dim=1),
        "valid": torch.ones(images, height, width, dtype=torch.bool),
        "labeled": labeled,
    }
    for task in TASKS:
        hidden = 255 if task.field_channels is None else torch.nan
        batch[task.name][~labeled[task.name]] = hidden
    return batch


class Fast:
    """The library's module, as in a training run.

    Args:
        batch: What to train on.
        backbone: A timm model.
        labels: Where labels of unlabelled images come from: nowhere, a teacher, or the batch.
        features: Whether a teacher teaches its features as well, for which it has to look at every image.
        precision: What the teacher computes in.
        gradient_checkpointing: See ``HTTModule``.
    """

    def __init__(
        self,
        batch: Mapping[str, Any],
        backbone: str,
        labels: str = "",
        features: bool = True,
        precision: str | None = None,
        gradient_checkpointing: bool = False,
    ) -> None:
        torch.manual_seed(0)
        self.batch = dict(batch)
        self.module = HTTModule(
            TASKS, backbone=backbone, tokens="released", gradient_checkpointing=gradient_checkpointing
        )
        self.module.epochs_per_stage = 1
        if labels:
            known = (
                TASKS,
                self.module.loss_weights,
                DiscoveryLossWeights(feature_labeled=features, feature_unlabeled=features),
                torch.device("cpu"),
            )
            self.module.discovery = TeacherEnsemble(
                [HTTModule(TASKS, backbone=backbone, tokens="released").net], *known, teacher_precision=precision
            )
            if labels == "stored":
                self.batch["pseudo_labels"] = self.module.discovery.pseudo_labels(batch)
                self.module.discovery = TeacherEnsemble([], *known)
        configured: Any = self.module.configure_optimizers()
        self.optimizer: torch.optim.Optimizer = configured["optimizer"]

    def forward(self) -> object:
        """Decode the maps of a batch."""
        self.module.eval()
        with torch.inference_mode():
            return self.module.decode(self.batch["image"])

    def loss(self) -> Tensor:
        """Compute the loss of a training step."""
        return self.module.training_step(self.batch, 0)

    def step(self) -> None:
        """Make a step of the published recipe, with Adam and gradients clipped at 10."""
        self.module.train()
        self.optimizer.zero_grad()
        self.loss().backward()
        torch.nn.utils.clip_grad_norm_(self.module.parameters(), 10)
        self.optimizer.step()


class Plain(Fast):
    """Module with the networks and losses of ``plain.py``, and plain Adam."""

    def __init__(self, batch: Mapping[str, Any], backbone: str, labels: str = "") -> None:
        super().__init__(batch, backbone, labels)
        self.net = plain_copy(self.module.net, backbone)
        discovery = self.module.discovery
        self.teacher = plain_copy(discovery.teachers[0], backbone).eval() if discovery and discovery.teachers else None
        self.module.net, self.module.discovery = self.net, None
        self.optimizer = torch.optim.Adam(self.module.parameters(), lr=2e-5, weight_decay=1e-6)

    def loss(self) -> Tensor:
        """Compute the loss as in ``plain.py``."""
        taught = None
        if self.teacher:
            with torch.no_grad():
                taught = self.teacher(self.batch["image"])
        return plain_loss(TASKS, self.net(self.batch["image"]), self.batch, taught)


def plain_copy(net: torch.nn.Module, backbone: str) -> PlainHTTNet:
    """Return a network of ``plain.py`` with the weights of another."""
    copy = PlainHTTNet({task.name: task.num_tokens for task in TASKS}, backbone=backbone, tokens="released")
    copy.load_state_dict(net.state_dict())
    return copy


class Candidate(NamedTuple):
    """A row of a table."""

    name: str
    maker: type[Fast]
    options: dict[str, Any] = {}  # noqa: RUF012  # never changed


TABLES: dict[str, list[Candidate]] = {
    "forward pass in evaluation": [Candidate("plain", Plain), Candidate("htt_lightning", Fast)],
    "step of stage 1": [
        Candidate("plain", Plain),
        Candidate("htt_lightning", Fast),
        Candidate("htt_lightning, gradient checkpointing", Fast, {"gradient_checkpointing": True}),
    ],
    "step of stage 2": [
        Candidate("htt_lightning, stage 1", Fast),
        Candidate("htt_lightning, labels stored", Fast, {"labels": "stored"}),
        Candidate("htt_lightning, teacher of labels", Fast, {"labels": "teacher", "features": False}),
        Candidate("htt_lightning, teacher of both", Fast, {"labels": "teacher"}),
        Candidate("htt_lightning, that in bf16", Fast, {"labels": "teacher", "precision": "bf16-mixed"}),
    ],
}
FORWARD = next(iter(TABLES))


def work_of(table: str, name: str, batch: Mapping[str, Any], backbone: str) -> Work:
    """Return the function that a row times."""
    row = next(row for row in TABLES[table] if row.name == name)
    made = row.maker(batch, backbone, **row.options)
    return made.forward if table == FORWARD else made.step


def timed(work: Work) -> tuple[float, float]:
    """Measure wall and CPU seconds of a call."""
    clock, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - clock, time.process_time() - cpu


def resident(key: str) -> float:
    """Read ``VmRSS`` (memory in use) or ``VmHWM`` (peak memory) in MiB."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) / 1024


def peak(work: Work) -> float:
    """Measure the peak memory of a first call in MiB, above that before it."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forget the peak so far
    before = resident("VmRSS")
    work()
    return resident("VmHWM") - before


def throughput() -> float:
    """Measure the best GFLOP/s of a matrix product on this machine."""
    a = torch.rand(2048, 2048)
    return 2 * 2.048**3 / min(timed(lambda: a @ a)[0] for _ in range(8))


def gigaflops(size: tuple[int, int], backbone: str) -> float:
    """Count GFLOP of the plain forward pass of one image, including products with class tokens."""
    net = PlainHTTNet({task.name: task.num_tokens for task in TASKS}, backbone=backbone, tokens="released")
    net.eval().requires_grad_(False)
    with FlopCounterMode(display=False) as counter:
        net(torch.rand(1, 3, *size))
    cells = size[0] * size[1] / 16
    return counter.get_total_flops() / 1e9 + sum(task.num_tokens for task in TASKS) * 2 * 256 * cells / 1e9


def ratio(others: Sequence[float], own: Sequence[float]) -> str:
    """Return median, minimum and maximum of the quotients by round."""
    each = [other / mine for other, mine in zip(others, own, strict=True)]
    return f"{statistics.median(each):.2f} ({min(each):.2f} to {max(each):.2f})"


class Cost(NamedTuple):
    """Return time by round and memory of a row, relative to the first row."""

    times: list[float]
    memory: float


def compare(table: str, given: argparse.Namespace) -> tuple[str, dict[str, Cost]]:
    """Time the rows of a table in turn and measure their memory; return Markdown, and values for the figure."""
    batch = make_batch(tuple(given.size), given.batch)
    works = {row.name: work_of(table, row.name, batch, given.backbone) for row in TABLES[table]}
    clock: dict[str, list[float]] = {name: [] for name in works}
    cpu: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(WARM_UP + given.rounds):
        for name, work in works.items():
            seconds = timed(work)
            if turn >= WARM_UP:
                clock[name].append(seconds[0])
                cpu[name].append(seconds[1])
    works.clear()
    first = TABLES[table][0].name
    memory = {name: memory_of(table, name, given) for name in clock}
    head = [f"{table}, batch {given.batch}", "s", "CPU s", "times the first's time", "MiB", "times the first's"]
    if first == "plain":
        head[3] = "times as fast as plain"
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name in clock:
        pair = (clock[first], clock[name]) if first == "plain" else (clock[name], clock[first])
        cells = [name, f"{statistics.median(clock[name]):.2f}", f"{statistics.median(cpu[name]):.1f}", ratio(*pair)]
        cells += [f"{memory[name]:.0f}", f"{memory[name] / memory[first]:.2f}"]
        lines.append(f"| {' | '.join(cells)} |")
    costs = {
        name: Cost([a / b for a, b in zip(clock[name], clock[first], strict=True)], memory[name] / memory[first])
        for name in clock
    }
    return "\n".join(lines), costs


def draw(costs: Mapping[str, Mapping[str, Cost]], path: Path) -> None:
    """Draw bars of time, with minimum and maximum over rounds, and of memory."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(costs), figsize=(4.2 * len(costs), 2.6), squeeze=False)
    for axis, (table, rows) in zip(axes[0], costs.items(), strict=True):
        places = range(len(rows), 0, -1)
        middle = [statistics.median(cost.times) for cost in rows.values()]
        reach = [
            [value - min(cost.times) for value, cost in zip(middle, rows.values(), strict=True)],
            [max(cost.times) - value for value, cost in zip(middle, rows.values(), strict=True)],
        ]
        axis.barh([place + 0.2 for place in places], middle, 0.36, xerr=reach, capsize=2, label="time")
        axis.barh([place - 0.2 for place in places], [cost.memory for cost in rows.values()], 0.36, label="memory")
        axis.set_yticks(list(places), [name.removeprefix("htt_lightning, ") for name in rows])
        axis.axvline(1, color="black", linewidth=0.8)
        axis.set_title(f"{table}, share of the first row's", fontsize=9)
        axis.grid(axis="x", alpha=0.3)
    axes[0][0].legend(fontsize=8)
    figure.tight_layout()
    with atomic_path(path) as partial:
        figure.savefig(partial, format="png", dpi=110)


def memory_of(table: str, name: str, given: argparse.Namespace, images: int | None = None) -> float:
    """Run ``peak`` in a new process."""
    words = ["--memory-of", table, name, "--size", *map(str, given.size), "--batch", str(images or given.batch)]
    words += ["--backbone", given.backbone, "--threads", str(given.threads)]
    done = subprocess.run([sys.executable, __file__, *words], check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1])


def main() -> None:
    """Print the tables and write the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=2, default=[288, 384])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES))
    parser.add_argument("--out", type=Path, help="Markdown file for the tables.")
    parser.add_argument("--figure", type=Path, help="PNG file for a figure of them.")
    parser.add_argument("--memory-of", nargs=2, metavar=("TABLE", "ROW"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(given.threads)
    size = (given.size[0], given.size[1])
    if given.memory_of:
        print(peak(work_of(*given.memory_of, make_batch(size, given.batch), given.backbone)))
        return
    products, count = throughput(), gigaflops(size, given.backbone)
    parts = [
        f"{size[0]}x{size[1]}, {given.backbone}, {given.threads} threads, torch {torch.__version__}. The plain forward "
        f"pass counts {count:.0f} GFLOP an image; matrix products run at {products:.0f} GFLOP/s here."
    ]
    print(parts[0], flush=True)
    costs: dict[str, dict[str, Cost]] = {}
    for table in given.tables:
        text, costs[table] = compare(table, given)
        parts.append(text)
        print(text, flush=True)
    plain, fast = (memory_of(FORWARD, row.name, given, images=1) for row in TABLES[FORWARD])
    parts.append(
        f"Peak of a forward pass, batch 1: plain {plain:.0f} MiB, htt_lightning {fast:.0f}, {fast / plain:.2f} of it."
    )
    print(parts[-1])
    if given.out:
        with atomic_path(given.out) as partial:
            partial.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    if given.figure:
        draw(costs, given.figure)


if __name__ == "__main__":
    main()
