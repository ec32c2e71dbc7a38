"""Where a run has come from, and when its stages began."""

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
from htt_lightning.commands.info import versions
from htt_lightning.data.dataset import PartialLabelDataset
from htt_lightning.io.files import atomic_path
from htt_lightning.io.run_directory import RUN_RECORD, run_directory

PATIENCE = 10
"""Seconds that git may take."""


class RunRecord(Callback):
    """Writes ``run_record.yaml`` into the directory of a training run or a test, beside its config, mask and results.

    It holds the command, the versions of packages, the device, the commit that the current folder is on, how many files
    differ from it, a fingerprint of the images (their names, and the pixels of three) and of the label mask, and when
    the run, each of its stages, and its end were reached. ``htt info RUN`` shows it.
    """

    def __init__(self) -> None:
        self._folder: Path | None = None
        self._record: dict[str, Any] = {}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Look around; the run directory is what all ranks have to ask for together."""
        self._folder = run_directory(trainer) if stage in ("fit", "test") else None
        if self._folder is None or not trainer.is_global_zero:
            return
        data: Any = getattr(trainer, "datamodule", None)
        splits = {name: getattr(data, name, None) for name in ("train", "val") if stage == "fit" or name == "val"}
        self._record = {
            "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            "versions": versions(),
            "device": device(trainer),
            "git": git_state(),
            "data": {
                name: fingerprint(split) for name, split in splits.items() if isinstance(split, PartialLabelDataset)
            },
            "labels": data.mask.fingerprint if stage == "fit" and getattr(data, "mask", None) else None,
            "began": now(),
            "stages": {},
            "ended": None,  # still running, or killed
        }
        self._write(self._folder)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note that a stage has begun, or is gone on with."""
        callbacks: list[Callback] = cast(Any, trainer).callbacks
        stage = 1 + next((callback.stage for callback in callbacks if isinstance(callback, LabelDiscovery)), 0)
        if self._folder and self._record and str(stage) not in self._record["stages"]:
            begun = f"from epoch {trainer.current_epoch}, step {trainer.global_step}, {now()}"
            self._record["stages"][str(stage)] = begun
            self._write(self._folder)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Note what has ended the run."""
        self._end(f"{now()}, by {type(exception).__name__}")

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Note the end."""
        self._end(now())

    def _end(self, how: str) -> None:
        if self._folder and self._record:  # the first process alone has one
            self._record["ended"] = how
            self._write(self._folder)
        self._record = {}

    def _write(self, folder: Path) -> None:
        with atomic_path(folder / RUN_RECORD) as partial:
            partial.write_text(yaml.safe_dump(self._record, sort_keys=False, width=1000), encoding="utf-8")


def now() -> str:
    """The time with its zone."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def device(trainer: L.Trainer) -> str:
    """What a run computes on, in words."""
    kind, count = trainer.strategy.root_device, f"{trainer.world_size} process{'es' if trainer.world_size > 1 else ''}"
    name = (
        torch.cuda.get_device_name(kind) if kind.type == "cuda" else f"{kind.type}, {torch.get_num_threads()} threads"
    )
    return f"{count} on {name}"


def fingerprint(split: PartialLabelDataset) -> dict[str, Any]:
    """How many images a split has, SHA-256 over their names, and over the pixels of three."""
    names = hashlib.sha256(json.dumps(split.dataset.ids).encode()).hexdigest()
    return {"images": len(split), "names": names, "pixels": split.dataset.content_hash()}


def git_state() -> dict[str, Any] | None:
    """Commit and branch of the current folder, and how many tracked files differ; None outside a repository."""
    if (git := shutil.which("git")) is None:
        return None
    asked = ("rev-parse", "HEAD"), ("rev-parse", "--abbrev-ref", "HEAD"), ("status", "--porcelain", "-uno")
    try:
        commit, branch, changed = (
            subprocess.run([git, *words], capture_output=True, text=True, check=True, timeout=PATIENCE).stdout.strip()
            for words in asked
        )
    except (OSError, subprocess.SubprocessError):  # no repository, or no commit in it
        return None
    return {"commit": commit, "branch": branch, "changed": len(changed.splitlines())}
