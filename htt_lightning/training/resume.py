"""Search for the checkpoint that a run resumes from."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from htt_lightning.errors import HTTError
from htt_lightning.io.checkpoints import read_checkpoint
from htt_lightning.seeding import run_seed

AUTO, LAST = "auto", "last"
"""Values of ``--ckpt_path`` that search: for any checkpoint of the run, or for one whose name starts with "last"."""


def is_requeued() -> bool:
    """Return True if SLURM has started this job before."""
    return int(os.environ.get("SLURM_RESTART_COUNT", 0)) > 0


def newest_checkpoint(trainer: L.Trainer, model: L.LightningModule, name: str = AUTO) -> Path | None:
    """Find the newest checkpoint that a run can resume from, and log the choice.

    The search covers the folders where the trainer's loggers keep runs; with ``name`` ``last`` only ``last*.ckpt``.
    A checkpoint qualifies if it is intact, holds an optimizer state, and has the seed and the hyperparameters of this
    run. Its label mask is checked on loading.
    """
    pattern = "last*.ckpt" if name == LAST else "*.ckpt"
    found = {path for folder in _checkpoint_dirs(trainer) for path in folder.glob(pattern) if path.is_file()}
    for path in sorted(found, key=lambda path: path.stat().st_mtime_ns, reverse=True):
        try:
            checkpoint = read_checkpoint(path, "--ckpt_path")
        except HTTError as error:
            rank_zero_warn(f"Skipping a checkpoint. {error}")
            continue
        if "optimizer_states" not in checkpoint:
            continue
        if changed := _changed_hparams(checkpoint, model):
            rank_zero_info(f"Skipping {path}: hyperparameters differ ({', '.join(changed)}).")
            continue
        rank_zero_info(f"Resuming from {path}.")
        return path
    roots = ", ".join(str(folder) for folder in _log_roots(trainer))
    rank_zero_info(f"--ckpt_path {name}: found no checkpoint of this run below {roots}. Training starts from scratch.")
    return None


def _log_roots(trainer: L.Trainer) -> list[Path]:
    roots = [Path(logger.save_dir, str(logger.name)) for logger in trainer.loggers if logger.save_dir is not None]
    return roots or [Path(trainer.default_root_dir)]


def _checkpoint_dirs(trainer: L.Trainer) -> Iterable[Path]:
    """Yield the folders that may hold checkpoints of this run or of its predecessors."""
    for root in _log_roots(trainer):
        yield root / "checkpoints"
        yield from root.glob("*/checkpoints")
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.dirpath:
            yield Path(callback.dirpath)


def _changed_hparams(checkpoint: dict[str, Any], model: L.LightningModule) -> list[str]:
    """List the options in which a checkpoint differs from this run."""
    ours, theirs = _to_json(model.hparams), _to_json(checkpoint["hyper_parameters"])
    changed = [f"model.{key}" for key in ours if key in theirs and ours[key] != theirs[key]]
    return changed + (["seed_everything"] if checkpoint.get("seed", run_seed()) != run_seed() else [])


def _to_json(values: Any) -> dict[str, str]:
    """Serialize values to JSON, so that lists and tuples compare equal."""
    return {key: json.dumps(value, sort_keys=True, default=str) for key, value in dict(values).items()}
