"""Measure the cost of a recipe: parameters, operations per image, memory of a step of stage 2, and times of steps.

    python benchmarks/cost.py                                   # every dataset, nothing is trained: seconds
    python benchmarks/cost.py --only nyud.yaml --images 1 2     # and the peak of a step with so many images: minutes
    python benchmarks/cost.py --only cityscapes.yaml --steps 5  # and consistency losses and teachers, in so many rounds

Multiplications and additions are counted by PyTorch for one image in evaluation. A training step of the first stage is
taken as three forward passes, one of the second as four, the teacher's included. The peak is that of this process on a
CPU above what it holds before anything is built, with random images and one label per image. Steps with consistency
losses or with soft targets of a teacher, on two images (four of 64x96), take turns with the step without. Times are
those of the processor, so other programs matter little.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from speed import resident
from torch.utils.flop_counter import FlopCounterMode

from htt_lightning import (
    CityscapesDataModule,
    HTTModule,
    NYUDDataModule,
    PASCALContextDataModule,
    SyntheticDataModule,
)
from htt_lightning.discovery import DiscoveryLossWeights, TeacherEnsemble
from htt_lightning.discovery.registry import CONSISTENCY_LOSSES
from htt_lightning.models import cpu_kernels
from htt_lightning.tasks import Task

RECIPES: dict[str, tuple[Callable[[], Sequence[Task]], tuple[int, int], dict[str, Any]]] = {
    "nyud.yaml": (lambda: NYUDDataModule(root=".").tasks, (288, 384), {"tokens": "released"}),
    "cityscapes.yaml": (lambda: CityscapesDataModule(root=".").tasks, (128, 256), {"tokens": "released"}),
    "pascal_context.yaml": (lambda: PASCALContextDataModule(root=".").tasks, (512, 512), {"tokens": "released"}),
    "synthetic.yaml": (
        lambda: SyntheticDataModule().tasks,
        (64, 96),
        {"backbone": "tf_efficientnet_lite0", "token_dim": 48, "dilations": [3], "dropout": 0},
    ),
}
"""Tasks, size of training images and options of the model."""


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


def step(tasks: Sequence[Task], batch: dict[str, Any], options: dict[str, Any]) -> None:
    """Make a training step of stage 2."""
    module = HTTModule(tasks, **options)
    module.epochs_per_stage = 1
    terms = DiscoveryLossWeights(feature_labeled=1, feature_unlabeled=1)
    teacher = HTTModule(tasks, **options).net
    module.discovery = TeacherEnsemble([teacher], tasks, module.loss_weights, terms, torch.device("cpu"))
    optimizer: torch.optim.Optimizer = module.configure_optimizers()["optimizer"]  # type: ignore[index]
    module.train()
    module.training_step(batch, 0).backward()
    optimizer.step()


def compare_steps(
    recipe: str, tasks: Sequence[Task], size: tuple[int, int], options: dict[str, Any], rounds: int
) -> None:
    """Print parameters and time of a step with each consistency loss, and with soft targets of a teacher."""
    batch = make_batch(tasks, size, 4 if size == (64, 96) else 2)
    names: list[Any] = [None, *CONSISTENCY_LOSSES]
    modules = {name: HTTModule(tasks, **options, consistency=name).train() for name in names}
    for target_type in ("soft", "soft_tta"):
        student, teacher = HTTModule(tasks, **options).train(), HTTModule(tasks, **options).net
        weights, device = DiscoveryLossWeights(), torch.device("cpu")
        student.discovery = TeacherEnsemble([teacher], tasks, student.loss_weights, weights, device, target_type)
        modules[target_type] = student
    times: dict[str | None, list[float]] = {name: [] for name in modules}
    for _ in range(rounds + 1):
        for name, module in modules.items():
            module.zero_grad()
            start = time.process_time()
            module.loss(batch)[0].backward()
            times[name].append(time.process_time() - start)
    for name, module in list(modules.items())[1:]:
        ratios = [one / other for one, other in zip(times[name], times[None], strict=True)][1:]  # the first warms up
        millions = sum(x.numel() for x in module.parameters()) - sum(x.numel() for x in module.net.parameters())
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"{recipe}, {name}: {millions / 1e6:.2f} M further parameters, step {spread} times as long", flush=True)


def main(words: Sequence[str] | None = None) -> None:
    """Print a row per dataset."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=RECIPES, default=list(RECIPES), help="Recipes.")
    parser.add_argument("--images", nargs="*", type=int, default=[], help="Images of the steps whose peak is measured.")
    parser.add_argument("--steps", type=int, default=0, help="Rounds of steps with each further loss.")
    given = parser.parse_args(words)
    for name in given.only:
        make_tasks, size, options = RECIPES[name]
        tasks = make_tasks()
        before = resident("VmRSS")
        for images in sorted(given.images):  # the peak of a process only rises
            step(tasks, make_batch(tasks, size, images), options)
            print(f"{name}, {images} images: {resident('VmHWM') - before:.0f} MiB", flush=True)
        if given.steps:
            compare_steps(name, tasks, size, options, given.steps)
        cpu_kernels.set_enabled(False)  # operations are those of the plain form, as on a GPU
        module = HTTModule(tasks, **options).eval()
        millions = sum(one.numel() for one in module.parameters()) / 1e6
        module.requires_grad_(False)
        with FlopCounterMode(display=False) as counter:
            module(torch.rand(1, 3, *size))
        cpu_kernels.set_enabled(None)
        print(f"{name}, {size[0]}x{size[1]}: {millions:.2f} M parameters, {counter.get_total_flops() / 1e9:.0f} GFLOP")


if __name__ == "__main__":
    main()
