"""Command ``info``: describe the installation, or a run directory."""

import os
import re
from collections.abc import Iterator
from importlib.metadata import requires
from pathlib import Path

import torch
from rich.console import Console

from htt_lightning.errors import ConfigError, HTTError, collect_errors, combine_errors
from htt_lightning.io.checkpoints import last_epoch, read_checkpoint
from htt_lightning.io.run_directory import CONFIG, RESULTS, RUN_RECORD
from htt_lightning.training import results
from htt_lightning.training.environment import package_version, versions
from htt_lightning.training.results import flatten, load_mapping, task_names

SUMMARY_OPTIONS = (
    *("data", "data.root", "data.labels", "data.tasks", "data.image_size", "data.batch_size", "data.pseudo_labels"),
    *("model.network", "model.backbone", "model.pretrained", "model.token_dim", "model.lr", "model.image_weighting"),
    "model.consistency",
    *("discovery.stages", "discovery.teacher", "discovery.student_init", "discovery.target_type"),
    *("trainer.max_epochs", "trainer.devices", "trainer.precision", "seed_everything", "ckpt_path"),
)
"""Options that summarize a run."""


def info(run: str | None = None) -> None:
    """Describe the installation: versions, devices and extras.

    Args:
        run: Run directory, such as ``runs/version_0``, to describe its config, provenance, checkpoints and metrics.

    Raises:
        ConfigError: The folder is no run directory.
        DataError: Some files of the run are corrupt. The rest is printed first.
    """
    console, errors = Console(soft_wrap=True), list[HTTError]()
    rows = [*(installation() if run is None else describe_run(Path(run), errors))]
    width = max(len(title) for title, _ in rows)
    for title, text in rows:
        console.out(f"{title:<{width}} {text}".rstrip(), highlight=False)
    if errors:
        raise combine_errors(errors, shown=None)


def installation() -> Iterator[tuple[str, str]]:
    """Yield titles and texts on versions, devices and extras."""
    yield from versions().items()
    yield "processors", f"{os.cpu_count()}; PyTorch uses {torch.get_num_threads()} threads"
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        yield f"cuda:{index}", f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB"
    if torch.backends.mps.is_available():
        yield "mps", "available"
    elif not torch.cuda.is_available():
        yield "accelerators", "none: PyTorch finds neither CUDA nor MPS"
    for extra, packages in extra_packages().items():
        missing = ", ".join(package for package in packages if not package_version(package))
        yield f"extra {extra}", f'lacks {missing}: pip install "htt-lightning[{extra}]"' if missing else "installed"


def extra_packages() -> dict[str, list[str]]:
    """Return the packages that each extra adds itself."""
    extras: dict[str, list[str]] = {}
    for requirement in requires("htt-lightning") or []:
        match = re.match(r"([\w.-]+)(?!.*\[).*extra == ['\"]([\w-]+)['\"]", requirement)
        if match and match[1] != "htt-lightning":
            extras.setdefault(match[2], []).append(match[1])
    return extras


def describe_run(folder: Path, errors: list[HTTError]) -> Iterator[tuple[str, str]]:
    """Yield titles and texts on a run; ``errors`` receives an error per corrupt file."""
    if not (folder / CONFIG).is_file():
        nested = sorted(folder.rglob(CONFIG), key=lambda path: path.stat().st_mtime)
        hint = f"Did you mean {nested[-1].parent}?" if nested else "Name a folder such as runs/version_0."
        raise ConfigError(f"RUN must be a folder with a {CONFIG}, got {folder}. {hint}")
    yield "run", str(folder)
    metrics = dict[str, dict[str, results.MetricValue]]()
    for split, name in RESULTS.items():
        with collect_errors(errors):
            metrics |= {split: results.read_metrics(folder / name)} if (folder / name).is_file() else {}
    with collect_errors(errors):
        options = flatten(load_mapping(folder / CONFIG))
        settings = options | results.comparable_settings(options, next(map(task_names, metrics.values()), ()))
        settings["data.tasks"] = settings["data.tasks"] or options.get("data.tasks") or "all of the dataset"
        yield from ((key, str(settings[key])) for key in SUMMARY_OPTIONS if settings.get(key) is not None)
    if (folder / RUN_RECORD).is_file():
        with collect_errors(errors):
            record = flatten(load_mapping(folder / RUN_RECORD))
            yield from ((key, str(value)) for key, value in record.items() if value is not None)
    for path in sorted(folder.glob("checkpoints/*.ckpt"), key=lambda path: (path.name == "last.ckpt", path.name)):
        with collect_errors(errors):
            yield path.name, _describe_checkpoint(path)
    for path in sorted(folder.iterdir()):
        is_file = path.is_file()
        yield path.name, f"{path.stat().st_size / 1024:.0f} KiB" if is_file else f"{len(list(path.iterdir()))} files"
    for split, values in metrics.items():
        for key, metric in values.items():
            yield f"{split}/{key}", f"{metric.spec.format(metric.value)} {metric.spec.unit}".rstrip()


def _describe_checkpoint(path: Path) -> str:
    checkpoint, size = read_checkpoint(path, "RUN"), path.stat().st_size / 2**20
    stage = checkpoint.get("callbacks", {}).get("LabelDiscovery", {}).get("stage")
    where = "" if stage is None else f", in stage {stage + 1}"
    return f"{checkpoint['global_step']} steps, epoch {last_epoch(checkpoint)}{where}, {size:.0f} MiB"
