"""Compare networks with task tokens with the same network without them: metrics, size, operations and time.

    python benchmarks/architecture.py --out runs/architecture                             # everything: some 8 hours
    python benchmarks/architecture.py --out runs/architecture --only "multi-task baseline" exchange --lengths short

Finished runs are not repeated and an interrupted one resumes at its last epoch, so the same command continues. Choices
are made on one block of scenes (``--block tune``), reported on another (``report``). Delta_m is the mean over tasks of
the relative gain over the multi-task baseline of the same seed, data and number of steps. Results: ``results.csv``,
``cost.csv``, ``table.md`` and ``figure.png``, which shows Delta_m against seconds of training.
"""

import argparse
import csv
import itertools
import os
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from cost import make_batch
from figures import draw_curve, save
from gap import TASKS, Row, cell, gain, read, write
from label_efficiency import BLOCKS, PROTOCOLS, SIZE, VALIDATION
from matplotlib.figure import Figure
from runs import fit_words, metrics_of, run_folder, run_htt
from torch.utils.flop_counter import FlopCounterMode

from htt_lightning import HTTModule, SyntheticDataModule
from htt_lightning.io.files import atomic_path

BASELINE, SINGLE = "multi-task baseline", "single-task"
NETWORKS: dict[str, dict[str, Any]] = {
    BASELINE: {"network": "multitask"},
    "exchange": {},
    "released": {"tokens": "released"},
    "exchange, no global tokens": {"use_global_tokens": False},
    "exchange, no token attention": {"use_token_attention": False},
    "exchange, no fine-grained tokens": {"use_fine_tokens": False},
    SINGLE: {"network": "multitask"},
}
"""Options of the model by row."""
MAIN = [BASELINE, "exchange"]
"""Rows of every table, with five seeds instead of three in the first."""

BACKBONES: dict[str, dict[str, Any]] = {
    "pretrained": {"backbone": "tf_efficientnet_lite0", "pretrained": True},
    "scratch": {"backbone": "resnet18", "backbone_options": {"channels": [32, 64, 128, 256]}, "pretrained": False},
}
LENGTHS = {"short": 4, "short, equal time": 5, "long": 16, "long, equal time": 20}
"""Number of epochs of 225 steps, batch 4. The baseline takes a quarter more in the time of steps with tokens."""
IMAGES, SHARE = 1500, 0.6
"""Number of training scenes, and the part of them that an epoch takes."""
SHARED: dict[str, Any] = {"token_dim": 48, "dilations": [3], "dropout": 0, "lr": 1e-3}


@dataclass(frozen=True, order=True)
class Run:
    """A training run.

    Attributes:
        length: Key of ``LENGTHS``.
        backbone: Key of ``BACKBONES``.
        labels: Protocol of the mask.
        seed: Of everything random but the scenes.
        network: Key of ``NETWORKS``.
        task: The only task of a single-task run.
    """

    length: str
    backbone: str
    labels: str
    seed: int
    network: str
    task: str = ""

    @property
    def key(self) -> str:
        """Return the name of its folder."""
        words = [self.network, self.task, self.backbone, self.labels, self.length, f"seed {self.seed}"]
        return "-".join(word for word in words if word).replace(" ", "_").replace(",", "")


def train(run: Run, out: Path, scenes: int, extra: Sequence[str] = ()) -> None:
    """Train a run to its end, with further arguments of ``htt fit``, unless it is done."""
    folder = run_folder(out, run.key)
    if (folder / "val_metrics.json").exists():
        return
    epochs = LENGTHS[run.length]
    model = SHARED | BACKBONES[run.backbone] | NETWORKS[run.network]
    data = {"train_images": IMAGES, "val_images": VALIDATION, "scene_seed": scenes, "cache": out / "scenes"}
    data |= {"labels": run.labels, "num_workers": 0} | ({"tasks": run.task} if run.task else {})
    trainer = {"max_epochs": epochs, "check_val_every_n_epoch": epochs, "limit_train_batches": SHARE}
    options = {"seed_everything": run.seed, "discovery.stages": 1}
    for group, values in {"model": model, "data": data, "trainer": trainer}.items():
        options |= {f"{group}.{key}": value for key, value in values.items()}
    words = [word for key, value in options.items() for word in (f"--{key}", _word(value))]
    last = folder / "checkpoints" / "last.ckpt"
    words += ["--ckpt_path", str(last)] if last.exists() else []
    run_htt([*fit_words(out, run.key), *words, *extra], out, run.key)
    print("finished", run.key, flush=True)


def _word(value: Any) -> str:
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else str(value)


def plan(given: argparse.Namespace) -> list[Run]:
    """List the runs in order; what differs from the first backbone and protocol has fewer of them."""
    runs = []
    for backbone, labels in itertools.product(given.backbones, given.labels):
        changes = (backbone != "pretrained") + (labels != "one-label")
        for length, name in itertools.product(given.lengths, given.only):
            if changes <= _changes_of(name, length):
                seeds = given.seeds or (5 if name in MAIN and not changes else 3)
                tasks = TASKS if name == SINGLE else [""]
                runs += [Run(length, backbone, labels, seed, name, task) for seed in range(seeds) for task in tasks]
    return runs


def _changes_of(name: str, length: str) -> int:
    """Return in how many of backbone and protocol a row may differ from the first ones; -1 if it is not run."""
    if "equal time" in length:
        return 0 if name == BASELINE else -1
    if name in MAIN:
        return 1
    if (name, length) == (SINGLE, "long"):
        return -1
    return int((name, length) == ("released", "short"))


def cost(name: str, backbone: str, rounds: int = 5) -> dict[str, float]:
    """Measure parameters in millions, GFLOP of an image, and a step's time relative to the baseline's."""
    tasks = SyntheticDataModule().tasks
    batch, steps = make_batch(tasks, SIZE, 4), {}
    for row in {BASELINE, name}:
        torch.manual_seed(0)
        module = HTTModule(tasks, **SHARED | BACKBONES[backbone] | NETWORKS[row] | {"pretrained": False}).train()
        steps[row] = module, torch.optim.Adam(module.parameters(), 1e-3, fused=True)
    seconds: dict[str, list[float]] = {row: [] for row in steps}
    for _ in range(rounds + 1):
        for row, (module, optimizer) in steps.items():
            start = time.process_time()
            optimizer.zero_grad()
            module.loss(batch)[0].backward()
            optimizer.step()
            seconds[row].append(time.process_time() - start)
    ratio = statistics.median(a / b for a, b in zip(seconds[name][1:], seconds[BASELINE][1:], strict=True))
    module = steps[name][0].eval().requires_grad_(False)
    with FlopCounterMode(display=False) as counter:
        module(torch.rand(1, 3, *SIZE))
    millions = sum(one.numel() for one in module.net.parameters()) / 1e6
    return {"parameters": millions, "gflop": counter.get_total_flops() / 1e9, "step": ratio}


def table(rows: Sequence[Row], costs: dict[tuple[str, str], dict[str, float]]) -> str:
    """Make a Markdown table per backbone, protocol and length."""
    lines: list[str] = []
    for setting in dict.fromkeys((row["backbone"], row["labels"], row["length"]) for row in rows):
        mine = [row for row in rows if (row["backbone"], row["labels"], row["length"]) == setting]
        head = ["network", "seeds", *TASKS, "Delta_m %", "at equal time %", "M parameters", "GFLOP", "step"]
        lines += [f"### {', '.join(map(str, setting))}", "", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
        base = [row for row in mine if row["network"] == BASELINE]
        equal = (*setting[:2], f"{setting[2]}, equal time")
        longer = [row for row in rows if (row["backbone"], row["labels"], row["length"]) == equal]
        for name in NETWORKS:
            own = [row for row in mine if row["network"] == name]
            if own:
                cells = [cell([float(row["value"]) for row in own if row["task"] == task]) for task in TASKS]
                gains = [cell(gain(own, base)) if name != BASELINE else "0", cell(gain(own, longer))]
                spent = costs.get((name, str(setting[0])))
                size = [f"{spent['parameters']:.2f}", f"{spent['gflop']:.2f}", f"{spent['step']:.2f}"] if spent else []
                seeds = len({row["seed"] for row in own})
                lines.append(f"| {' | '.join([name, str(seeds), *cells, *gains, *(size or [''] * 3)])} |")
        lines.append("")
    return "\n".join(lines)


def draw(rows: Sequence[Row], costs: dict[tuple[str, str], dict[str, float]], path: Path) -> None:
    """Draw Delta_m over the short baseline against time in units of the short baseline's training."""
    settings = list(dict.fromkeys((row["backbone"], row["labels"]) for row in rows))
    figure = Figure(figsize=(5 * len(settings), 4))
    axes = figure.subplots(1, len(settings), squeeze=False)
    for axis, setting in zip(axes[0], settings, strict=True):
        mine = [row for row in rows if (row["backbone"], row["labels"]) == setting]
        base = [row for row in mine if row["network"] == BASELINE and row["length"] == "short"]
        for name in NETWORKS:
            points: dict[float, list[float]] = {}
            for length, epochs in LENGTHS.items():
                gains = gain([row for row in mine if (row["network"], row["length"]) == (name, length)], base)
                if gains and (name, setting[0]) in costs:
                    points[costs[name, str(setting[0])]["step"] * epochs / LENGTHS["short"]] = gains
            if points:
                draw_curve(axis, points, name)
        axis.set_title(", ".join(map(str, setting)), fontsize=9)
        axis.set_xlabel("time of training, short baseline = 1")
        axis.set_ylabel("Delta_m over the short baseline, %")
        axis.grid(alpha=0.3)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=7)
    save(figure, path)


def main(words: Sequence[str] | None = None) -> None:
    """Train the missing runs, then write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="Folder of the study.")
    parser.add_argument("--block", choices=BLOCKS, default="report", help="Collection of scenes.")
    parser.add_argument("--only", nargs="+", choices=NETWORKS, default=list(NETWORKS), help="Rows to run.")
    parser.add_argument("--lengths", nargs="+", choices=LENGTHS, default=list(LENGTHS), help="Lengths to run.")
    parser.add_argument("--labels", nargs="+", choices=PROTOCOLS, default=PROTOCOLS, help="Protocols to run.")
    parser.add_argument("--backbones", nargs="+", choices=BACKBONES, default=list(BACKBONES), help="Backbones to run.")
    parser.add_argument("--seeds", type=int, help="Number of seeds; 3, or 5 for two rows.")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="Runs at a time, one thread each.")
    parser.add_argument("--known", type=Path, help="Results (CSV) of earlier runs, which are not repeated.")
    parser.add_argument("--set", nargs=argparse.REMAINDER, default=[], help="Further arguments of every htt fit.")
    given = parser.parse_args(words)
    known = read(given.known) if given.known else []
    done = {(row["network"], row["backbone"], row["labels"], row["length"], row["seed"]) for row in known}
    runs = [run for run in plan(given) if (run.network, run.backbone, run.labels, run.length, run.seed) not in done]
    scenes = BLOCKS[given.block]
    cache = {"scene_seed": scenes, "cache": str(given.out / "scenes"), "num_workers": given.jobs}
    SyntheticDataModule(IMAGES, VALIDATION, **cache).prepare_data()
    with ThreadPoolExecutor(given.jobs) as pool:
        for job in [pool.submit(train, run, given.out, scenes, given.set) for run in runs]:
            job.result()
    rows: list[Row] = list(known)
    for run in runs:
        own = {"network": run.network, "backbone": run.backbone, "labels": run.labels, "length": run.length}
        rows += [{**own, "seed": run.seed, **row} for row in metrics_of(given.out, run.key)]
    pairs = dict.fromkeys((str(row["network"]), str(row["backbone"])) for row in rows)
    costs = {pair: cost(*pair) for pair in pairs if pair[0] != SINGLE}
    write(rows, given.out / "results.csv")
    with atomic_path(given.out / "cost.csv") as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["network", "backbone", "parameters", "gflop", "step"])
        writer.writerows([*pair, *values.values()] for pair, values in costs.items())
    text = table(rows, costs)
    (given.out / "table.md").write_text(text, encoding="utf-8")
    draw(rows, costs, given.out / "figure.png")
    print(text)


if __name__ == "__main__":
    main()
