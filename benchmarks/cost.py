"""Measure the cost of a published recipe: parameters, operations per image, and memory of a step of stage 2.

    python benchmarks/cost.py                                   # every dataset, nothing is trained: seconds
    python benchmarks/cost.py --only nyud.yaml --images 1 2     # and the peak of a step with so many images: minutes
    python benchmarks/cost.py --only cityscapes.yaml --consistency 5   # and consistency losses, in so many rounds

Multiplications and additions are counted by PyTorch for one image in evaluation. A training step of the first stage is
taken as three forward passes, one of the second as four, the teacher's included. The peak is that of this process on a
CPU above what it holds before anything is built, with random images and one label per image. Steps with consistency
losses, on two images, take turns with the step without one. Times are those of the processor, so other programs matter
little.
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch
from speed import resident
from torch.utils.flop_counter import FlopCounterMode

from htt_lightning import CityscapesDataModule, HTTModule, NYUDDataModule, PASCALContextDataModule
from htt_lightning.data import PartialLabelDataModule
from htt_lightning.discovery import DiscoveryLossWeights, TeacherEnsemble
from htt_lightning.discovery.registry import CONSISTENCY_LOSSES
from htt_lightning.tasks import Task

RECIPES: dict[str, tuple[type[PartialLabelDataModule], tuple[int, int]]] = {
    "nyud.yaml": (NYUDDataModule, (288, 384)),
    "cityscapes.yaml": (CityscapesDataModule, (128, 256)),
    "pascal_context.yaml": (PASCALContextDataModule, (512, 512)),
}
"""Dataset and size of training images."""


def make_batch(tasks: Sequence[Task], size: tuple[int, int], images: int) -> dict[str, Any]:
    """Make random images, each labeled for one task in turn."""
    labeled = {task.name: torch.arange(images) % len(tasks) == k for k, task in enumerate(tasks)}
    batch: dict[str, Any] = {"image": torch.rand(images, 3, *size), "labeled": labeled}
    batch |= {"valid": torch.ones(images, *size, dtype=torch.bool), "id": [str(k) for k in range(images)]}
    for task in tasks:
        if task.field_channels is None:
            label = torch.randint(0, max(2, task.num_tokens), (images, *size))
        else:
            label = torch.nn.functional.normalize(torch.rand(images, task.field_channels, *size) + 0.1, dim=1)
        label[~labeled[task.name]] = 255 if task.field_channels is None else torch.nan
        batch[task.name] = label
    return batch


def step(tasks: Sequence[Task], batch: dict[str, Any]) -> None:
    """Return a function that makes a training step of stage 2."""
    module = HTTModule(tasks, tokens="released")
    module.epochs_per_stage = 1
    terms = DiscoveryLossWeights(feature_labeled=1, feature_unlabeled=1)
    teacher = HTTModule(tasks, tokens="released").net
    module.discovery = TeacherEnsemble([teacher], tasks, module.loss_weights, terms, torch.device("cpu"))
    optimizer: torch.optim.Optimizer = module.configure_optimizers()["optimizer"]  # type: ignore[index]
    module.train()
    module.training_step(batch, 0).backward()
    optimizer.step()


def compare_consistency(recipe: str, tasks: Sequence[Task], size: tuple[int, int], rounds: int) -> None:
    """Print parameters and time of a step of stage 1 with each consistency loss."""
    batch, names = make_batch(tasks, size, 2), [None, *CONSISTENCY_LOSSES]
    modules = [HTTModule(tasks, tokens="released", consistency=name).train() for name in names]  # type: ignore[arg-type]
    times: list[list[float]] = [[] for _ in modules]
    for _ in range(rounds + 1):
        for module, measured in zip(modules, times, strict=True):
            module.zero_grad()
            start = time.process_time()
            module.loss(batch)[0].backward()
            measured.append(time.process_time() - start)
    for name, module, measured in list(zip(names, modules, times, strict=True))[1:]:
        ratios = [one / other for one, other in zip(measured, times[0], strict=True)][1:]  # the first warms up
        millions = sum(x.numel() for x in module.parameters()) - sum(x.numel() for x in module.net.parameters())
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"{recipe}, {name}: {millions / 1e6:.2f} M further parameters, step {spread} times as long", flush=True)


def main(words: Sequence[str] | None = None) -> None:
    """Print a row per dataset."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=RECIPES, default=list(RECIPES), help="Recipes.")
    parser.add_argument("--images", nargs="*", type=int, default=[], help="Images of the steps whose peak is measured.")
    parser.add_argument("--consistency", type=int, default=0, help="Rounds of steps with each consistency loss.")
    given = parser.parse_args(words)
    for name in given.only:
        kind, size = RECIPES[name]
        tasks = kind(root=".").tasks  # type: ignore[call-arg]
        before = resident("VmRSS")
        for images in sorted(given.images):  # the peak of a process only rises
            step(tasks, make_batch(tasks, size, images))
            print(f"{name}, {images} images: {resident('VmHWM') - before:.0f} MiB", flush=True)
        if given.consistency:
            compare_consistency(name, tasks, size, given.consistency)
        module = HTTModule(tasks, tokens="released").eval()
        millions = sum(one.numel() for one in module.parameters()) / 1e6
        module.requires_grad_(False)
        with FlopCounterMode(display=False) as counter:
            module(torch.rand(1, 3, *size))
        print(f"{name}, {size[0]}x{size[1]}: {millions:.2f} M parameters, {counter.get_total_flops() / 1e9:.0f} GFLOP")


if __name__ == "__main__":
    main()
