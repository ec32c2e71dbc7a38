"""Provenance of a run: command, versions, commit, data and times."""

import hashlib
import json
import shlex
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import lightning as L
import torch
import yaml
from lightning.pytorch.callbacks import Callback

from htt_lightning.callbacks.label_discovery import LabelDiscovery
from htt_lightning.data.dataset import PartialLabelDataset
from htt_lightning.io.files import write_text
from htt_lightning.io.run_directory import RUN_RECORD, run_directory
from htt_lightning.training.environment import versions


class RunRecord(Callback):
    """Write ``run_record.yaml`` into the run directory of ``fit`` and ``test``.

    The record holds the command, package versions, the device, and the git commit with the number of changed files. It
    also holds fingerprints of images and label mask, and the times of stages and the end. ``htt info RUN`` prints it.
    """

    def __init__(self) -> None:
        self._folder: Path | None = None
        self._record: dict[str, Any] = {}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Begin the record; all ranks find the run directory together."""
        self._folder = run_directory(trainer) if stage in ("fit", "test") else None
        if self._folder is None or not trainer.is_global_zero:
            return
        data: Any = getattr(trainer, "datamodule", None)
        names = {"train": "train", "val": "val"} if stage == "fit" else {getattr(data, "test_split", "test"): "test"}
        splits = {split: getattr(data, name, None) for split, name in names.items()}
        self._record = {
            "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            "versions": versions(),
            "device": device(trainer),
            "git": git_state(),
            "data": {k: split_fingerprint(v) for k, v in splits.items() if isinstance(v, PartialLabelDataset)},
            "labels": data.mask.fingerprint if stage == "fit" and getattr(data, "mask", None) else None,
            "began": timestamp(),
            "stages": {},
            "ended": None,  # still running, or killed
        }
        self._write()

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Record the start or resumption of a stage."""
        callbacks: list[Callback] = cast(Any, trainer).callbacks
        stage = 1 + next((callback.stage for callback in callbacks if isinstance(callback, LabelDiscovery)), 0)
        if self._record and str(stage) not in self._record["stages"]:
            start = f"from epoch {trainer.current_epoch}, step {trainer.global_step}, {timestamp()}"
            self._record["stages"][str(stage)] = start
            self._write()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Record the exception that ended the run."""
        self._end(f"{timestamp()}, by {type(exception).__name__}")

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Record the end of the run."""
        self._end(timestamp())

    def _end(self, text: str) -> None:
        if self._record:
            self._record["ended"] = text
            self._write()
        self._record = {}

    def _write(self) -> None:
        if self._folder:
            write_text(self._folder / RUN_RECORD, yaml.safe_dump(self._record, sort_keys=False, width=1000))


def timestamp() -> str:
    """Return the current UTC time in ISO format."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def device(trainer: L.Trainer) -> str:
    """Describe the device and the number of processes of a run."""
    root, count = trainer.strategy.root_device, trainer.world_size
    cpu = f"{root.type}, {torch.get_num_threads()} threads"
    name = torch.cuda.get_device_name(root) if root.type == "cuda" else cpu
    return f"{count} process{'es' if count > 1 else ''} on {name}"


def split_fingerprint(split: PartialLabelDataset) -> dict[str, Any]:
    """Return image count, and hashes of image names and some pixels."""
    names = hashlib.sha256(json.dumps(split.dataset.ids).encode()).hexdigest()
    return {"images": len(split), "names": names, "pixels": split.dataset.content_hash()}


def git_state() -> dict[str, Any] | None:
    """Return commit, branch and number of changed files; None without git."""
    if (git := shutil.which("git")) is None:
        return None
    command = [git, "status", "--porcelain=v2", "--branch", "--untracked-files=no"]
    try:
        text = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout
    except (OSError, subprocess.SubprocessError):  # no repository
        return None
    changed = [line for line in text.splitlines() if not line.startswith("#")]
    head = dict(line.split()[1:3] for line in text.splitlines() if line.startswith("#"))
    return {"commit": head["branch.oid"], "branch": head["branch.head"], "changed": len(changed)}
