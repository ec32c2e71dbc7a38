"""Measure how a training step grows with tasks, image side, bins and batch; print a table and draw a figure.

    python benchmarks/scaling.py --out scaling.png      # some 10 minutes on two cores

One thing is varied at a time around three tasks, 128x128 pixels, 30 bins of depth and a batch of 2, with ResNet-18 and
the published width of 256. Every point is a process of its own; peak memory is above what was resident before the first
forward pass, and includes gradients and the moments of Adam.
"""

import argparse
import json
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from speed import peak, timed

from htt_lightning import HTTModule, SyntheticDataModule
from htt_lightning.io.files import atomic_path
from htt_lightning.tasks import Depth, Task

BASE = {"tasks": 3, "side": 128, "bins": 30, "batch": 2}
VARIED = {
    "tasks": [1, 2, 3, 4, 5, 6],
    "side": [64, 128, 256, 512],
    "bins": [10, 30, 90, 270],
    "batch": [1, 2, 4, 8],
}
ORDER = ("depth", "semseg", "normals", "edges", "saliency", "human_parts")


def chosen_tasks(count: int, bins: int) -> list[Task]:
    """Return the first tasks of the scenes."""
    known = {task.name: task for task in SyntheticDataModule().tasks}
    found = [known[name] for name in ORDER[:count]]
    return [replace(task, num_bins=bins) if isinstance(task, Depth) else task for task in found]


def measured(tasks: int, side: int, bins: int, batch: int, rounds: int) -> dict[str, float]:
    """Measure median seconds of a step with every label, and peak memory in MiB."""
    torch.manual_seed(0)
    chosen = chosen_tasks(tasks, bins)
    module = HTTModule(chosen, dilations=(12, 24, 36)).train()
    module.epochs_per_stage = 1
    configured: Any = module.configure_optimizers()
    data: dict[str, Any] = {"image": torch.rand(batch, 3, side, side)}
    for task in chosen:
        if task.field_channels is None:
            data[task.name] = torch.randint(0, max(task.num_tokens, 2), (batch, side, side))
        else:
            field = torch.rand(batch, task.field_channels, side, side) + 0.7
            data[task.name] = F.normalize(field, dim=1) if task.field_channels == 3 else field
    data["labeled"] = {task.name: torch.ones(batch, dtype=torch.bool) for task in chosen}

    def step() -> None:
        configured["optimizer"].zero_grad()
        module.training_step(data, 0).backward()
        configured["optimizer"].step()

    memory = peak(step)
    return {"seconds": statistics.median(timed(step)[0] for _ in range(rounds)), "mib": memory}


def point(key: str, value: int, given: argparse.Namespace) -> dict[str, float]:
    """Run ``measured`` in its own process."""
    settings = json.dumps(BASE | {key: value})
    words = ["--point", settings, "--threads", str(given.threads), "--rounds", str(given.rounds)]
    done = subprocess.run([sys.executable, __file__, *words], check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def draw(found: dict[str, list[dict[str, float]]], path: Path) -> None:
    """Draw time and memory against each varied size."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(found), figsize=(3.2 * len(found), 2.8))
    for axis, (key, points) in zip(axes, found.items(), strict=True):
        axis.plot(VARIED[key], [each["seconds"] for each in points], "o-", label="seconds")
        axis.plot(VARIED[key], [each["mib"] / 1024 for each in points], "s--", label="GiB")
        axis.set_xlabel(key)
        axis.set_xticks(VARIED[key])
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.tight_layout()
    with atomic_path(path) as partial:
        figure.savefig(partial, format="png", dpi=110)


def main() -> None:
    """Measure all points."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--vary", nargs="+", choices=VARIED, default=list(VARIED))
    parser.add_argument("--out", type=Path, help="PNG file for the figure.")
    parser.add_argument("--point", help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.point:
        print(json.dumps(measured(**json.loads(given.point), rounds=given.rounds)))
        return
    found = {}
    print("| varied | " + " | ".join(["value", "s", "peak MiB"]) + " |\n|---|---|---|---|")
    for key in given.vary:
        found[key] = [point(key, value, given) for value in VARIED[key]]
        for value, each in zip(VARIED[key], found[key], strict=True):
            print(f"| {key} | {value} | {each['seconds']:.2f} | {each['mib']:.0f} |", flush=True)
    if given.out:
        draw(found, given.out)


if __name__ == "__main__":
    main()
