"""The command ``info``: what is installed and can be computed with, or what a run's folder holds."""

import os
import platform
import re
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import torch
from rich.console import Console

from htt_lightning.data.datamodule import LABEL_MASK
from htt_lightning.errors import HTTError, combine_errors
from htt_lightning.io.checkpoints import read_checkpoint
from htt_lightning.io.run_directory import CONFIG, RUN_RECORD, TRAIN_CONFIG
from htt_lightning.training.results import (
    Split,
    comparable_settings,
    find_results,
    flat,
    read_metrics,
    read_yaml,
    tasks_of,
)

PACKAGES = ("torch", "lightning", "torchmetrics", "timm", "jsonargparse", "numpy", "albumentations", "wandb")
"""Whose versions a report of a fault should name."""
SUMMED_UP = (
    *("data", "data.root", "data.labels", "data.tasks", "data.image_size", "data.batch_size", "data.pseudo_label"),
    *("model.network", "model.backbone", "model.pretrained", "model.token_dim", "model.lr", "model.image_weighting"),
    *("discovery.stages", "discovery.teacher", "discovery.student_init", "discovery.target_type"),
    *("trainer.max_epochs", "trainer.devices", "trainer.precision", "seed_everything", "ckpt_path"),
)
"""The options of a run that say most about it."""


def info(run: str | None = None) -> None:
    """Describe this installation: versions, devices and extras; or a run: config, origin, stages and figures.

    Args:
        run: Folder of a run, such as ``runs/version_0``.

    Raises:
        HTTError: The folder is none of a run, or files in it are damaged: then what is sound is shown.
    """
    console, faults = Console(soft_wrap=True), list[HTTError]()
    for title, text in described_run(Path(run), faults) if run is not None else installation():
        console.out(f"{title:<20} {text}".rstrip(), highlight=False)
    if faults:
        raise combine_errors(faults, shown=None)


def installation() -> Iterator[tuple[str, str]]:
    """Titles and texts about what is installed."""
    yield from versions().items()
    yield "processors", f"{os.cpu_count()}; PyTorch uses {torch.get_num_threads()} threads"
    for index in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(index)
        yield f"cuda:{index}", f"{found.name}, {found.total_memory / 2**30:.0f} GiB"
    if torch.backends.mps.is_available():
        yield "mps", "available"
    elif not torch.cuda.is_available():
        yield "accelerators", "none: PyTorch finds neither CUDA nor MPS"
    for extra, packages in extras().items():
        absent = [package for package in packages if not installed(package)]
        remedy = f'lacks {", ".join(absent)}: pip install "htt-lightning[{extra}]"'
        yield f"extra {extra}", remedy if absent else "installed"


def versions() -> dict[str, str]:
    """What runs here, by package."""
    found = {"htt-lightning": version("htt-lightning")}
    found["python"] = f"{platform.python_version()} on {platform.platform()}"
    return found | {package: installed(package) or "not installed" for package in PACKAGES}


def installed(package: str) -> str | None:
    """The version of a package."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def extras() -> dict[str, list[str]]:
    """Packages that each extra of this library adds, without those that it takes from other extras."""
    found: dict[str, list[str]] = {}
    for requirement in requires("htt-lightning") or []:
        matched = re.match(r"([\w.-]+)(?!.*\[).*extra == ['\"]([\w-]+)['\"]", requirement)
        if matched and matched[1] != "htt-lightning":
            found.setdefault(matched[2], []).append(matched[1])
    return found


def described_run(folder: Path, faults: list[HTTError]) -> Iterator[tuple[str, str]]:
    """Titles and texts about a run; what is damaged in it is added to ``faults``."""
    if not (folder / CONFIG).is_file():
        nested = [path.parent for path in sorted(folder.rglob(CONFIG))] if folder.is_dir() else []
        hint = f" Did you mean {nested[-1]}?" if nested else " Name a folder such as runs/version_0."
        raise HTTError(f"{folder} is no folder of a run: there is no {CONFIG} in it.{hint}")
    yield "run", str(folder)
    values = {}
    for path, split in of_this(folder):
        try:
            values[split] = read_metrics(path)
        except HTTError as error:
            faults.append(error)
    try:
        options = flat(read_yaml(folder / CONFIG, folder))
        tasks = next(map(tasks_of, values.values()), ())
        known = options | comparable_settings(options, tasks)
        known["data.tasks"] = known["data.tasks"] or options.get("data.tasks") or "all of the dataset's"
        yield from ((key, str(known[key])) for key in SUMMED_UP if known.get(key) is not None)
    except HTTError as error:
        faults.append(error)
    try:
        record = read_yaml(folder / RUN_RECORD, folder) if (folder / RUN_RECORD).is_file() else {}
        yield from ((key, str(value)) for key, value in flat(record).items() if value is not None)
    except HTTError as error:
        faults.append(error)
    for path in sorted(folder.glob("checkpoints/*.ckpt"), key=lambda path: (path.name == "last.ckpt", path.name)):
        try:
            stored = read_checkpoint(path, "info")
        except HTTError as error:
            faults.append(error)
            continue
        stage = stored.get("callbacks", {}).get("LabelDiscovery", {}).get("stage")
        where = f", in stage {stage + 1}" if stage is not None else ""
        size = path.stat().st_size / 2**20
        yield path.name, f"{stored['global_step']} steps, epoch {stored['epoch']}{where}, {size:.0f} MiB"
    for name in (LABEL_MASK, TRAIN_CONFIG, "metrics.csv"):
        if (folder / name).is_file():
            yield name, f"{(folder / name).stat().st_size / 1024:.0f} KiB"
    for name in ("panels", "discovery", "affinity", "predictions"):
        if files := list(folder.glob(f"{name}/*")):
            yield f"{name}/", f"{len(files)} files"
    for split, figures in values.items():
        for key, figure in figures.items():
            yield f"{split}/{key}", f"{figure.kind.format(figure.value)} {figure.kind.unit}".rstrip()


def of_this(folder: Path) -> Iterator[tuple[Path, Split]]:
    """The files of figures of this run, not of those below it."""
    return ((path, split) for path, split in find_results(folder) if path.parent == folder)
