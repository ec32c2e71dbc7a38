"""Measure the cost of a published recipe: parameters, operations per image, and memory of a step of stage 2.

    python benchmarks/cost.py                                   # every dataset, nothing is trained: seconds
    python benchmarks/cost.py --only nyud.yaml --images 1 2     # and the peak of a step with so many images: minutes

Multiplications and additions are counted by PyTorch for one image in evaluation. A training step of the first stage is
taken as three forward passes, one of the second as four, the teacher's included. The peak is that of this process on a
CPU above what it holds before anything is built, with random images and one label per image.
"""

import argparse
from collections.abc import Sequence
from typing import Any

import torch
from speed import resident
from torch.utils.flop_counter import FlopCounterMode

from htt_lightning import CityscapesDataModule, HTTModule, NYUDDataModule, PASCALContextDataModule
from htt_lightning.data import PartialLabelDataModule
from htt_lightning.discovery import DiscoveryLossWeights, TeacherEnsemble
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
    batch["valid"] = torch.ones(images, *size, dtype=torch.bool)
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


def main(words: Sequence[str] | None = None) -> None:
    """Print a row per dataset."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=RECIPES, default=list(RECIPES), help="Recipes.")
    parser.add_argument("--images", nargs="*", type=int, default=[], help="Images of the steps whose peak is measured.")
    given = parser.parse_args(words)
    for name in given.only:
        kind, size = RECIPES[name]
        tasks = kind(root=".").tasks  # type: ignore[call-arg]
        before = resident("VmRSS")
        for images in sorted(given.images):  # the peak of a process only rises
            step(tasks, make_batch(tasks, size, images))
            print(f"{name}, {images} images: {resident('VmHWM') - before:.0f} MiB", flush=True)
        module = HTTModule(tasks, tokens="released").eval()
        millions = sum(one.numel() for one in module.parameters()) / 1e6
        module.requires_grad_(False)
        with FlopCounterMode(display=False) as counter:
            module(torch.rand(1, 3, *size))
        print(f"{name}, {size[0]}x{size[1]}: {millions:.2f} M parameters, {counter.get_total_flops() / 1e9:.0f} GFLOP")


if __name__ == "__main__":
    main()
