"""Search for checkpoints: to resume a run from, or the last or best one of a run."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from htt_lightning.errors import CheckpointError, HTTError
from htt_lightning.io.checkpoints import read_checkpoint
from htt_lightning.io.run_directory import BEST as BEST_FILE
from htt_lightning.io.run_directory import CHECKPOINTS
from htt_lightning.seeding import run_seed
from htt_lightning.training.results import load_mapping

AUTO, LAST, BEST = "auto", "last", "best"
"""Values of ``--ckpt_path`` that search.

``fit`` searches for any checkpoint of the run (``auto``), or for one whose name starts with "last". Other commands
take the last or the best checkpoint of a run.
"""


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


def newest_checkpoint_dir(root: Path) -> Path:
    """Find the folder of checkpoints that was written to last, among the runs below a folder."""
    found = [path for depth in ("", "*/", "*/*/") for path in root.glob(f"{depth}{CHECKPOINTS}/*.ckpt")]
    if not found:
        raise CheckpointError(f"--ckpt_path must name a checkpoint, as no run below {root} has one. Run htt fit first.")
    return max(found, key=lambda path: path.stat().st_mtime_ns).parent


def last_or_best_checkpoint(name: str, folder: Path) -> Path:
    """Return the last or the best checkpoint in the ``checkpoints`` of a run.

    Raises:
        CheckpointError: The run has none.
    """
    if name == LAST:
        path = folder / "last.ckpt"
    elif not (folder / BEST_FILE).is_file():
        step = "Train with --checkpoint.monitor, such as val/delta_m, or use --ckpt_path last."
        raise CheckpointError(f"--ckpt_path best needs a run with checkpoint.monitor, got {folder.parent}. {step}")
    else:
        best = load_mapping(folder / BEST_FILE).get("best")
        if not isinstance(best, str):
            raise CheckpointError(f"{folder / BEST_FILE} must name a checkpoint, got {best}. Use --ckpt_path last.")
        path = Path(os.path.normpath(folder / best))
    if not path.is_file():
        raise CheckpointError(f"--ckpt_path {name} must be a checkpoint of {folder.parent}, got no {path}.")
    return path
