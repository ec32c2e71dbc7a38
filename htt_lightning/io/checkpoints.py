"""Checkpoints are written whole, and a run that was interrupted finds the newest one that is."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.fabric.utilities.cloud_io import _is_local_file_protocol
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from htt_lightning.errors import HTTError
from htt_lightning.io.files import atomic_path, read_checkpoint
from htt_lightning.seeding import run_seed

AUTO, LAST = "auto", "last"
"""What may stand for a checkpoint that is to be found: any of the run's, or one that is called so."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints beside their place and renames them; by then they are on the disk.

    Lightning writes into the system's temporary folder, and moving a file from there to another file system is copying:
    a process that is killed meanwhile leaves half a checkpoint in place of the last one.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint as a whole or not at all; what is not a local file is left to Lightning.

        Raises:
            HTTError: It cannot be written.
        """
        if storage_options is not None or not _is_local_file_protocol(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        with atomic_path(Path(path), durable=True) as partial, partial.open("wb") as file:
            try:
                torch.save(checkpoint, file)
            except RuntimeError as error:  # how PyTorch says that a disk is full
                raise OSError(str(error)) from error


def write_whole(trainer: L.Trainer) -> None:
    """Have a trainer write its checkpoints whole, unless it has a way of its own to write them."""
    if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
        trainer.strategy.checkpoint_io = AtomicCheckpointIO()


def is_requeued() -> bool:
    """Whether SLURM has started this job before."""
    return int(os.environ.get("SLURM_RESTART_COUNT", 0)) > 0


def newest_checkpoint(trainer: L.Trainer, model: L.LightningModule, name: str = AUTO) -> Path | None:
    """The newest checkpoint that a run can go on from; says which one it is, and which newer ones it is not, and why.

    It lies where the trainer's loggers keep their runs, is whole, holds more than weights, and is of the same seed and
    the same hyperparameters of the model. That its label mask is the same is seen to when it is loaded.

    Args:
        trainer: Knows where runs are kept.
        model: What is to be trained.
        name: ``last`` for one of the files that are called so; by default any.
    """
    pattern = "last*.ckpt" if name == LAST else "*.ckpt"
    found = {path for folder in _folders(trainer) for path in folder.glob(pattern) if path.is_file()}
    for path in sorted(found, key=lambda path: path.stat().st_mtime_ns, reverse=True):
        try:
            checkpoint = read_checkpoint(path, "--ckpt_path")
        except HTTError as error:
            rank_zero_warn(f"{error} It is left out.")
            continue
        if "optimizer_states" not in checkpoint:
            continue
        if differ := _differences(checkpoint, model):
            rank_zero_info(f"{path} is of another run: {', '.join(differ)} differ.")
            continue
        rank_zero_info(f"The run goes on from {path}.")
        return path
    places = ", ".join(str(folder) for folder in _roots(trainer))
    rank_zero_info(f"--ckpt_path {name}: below {places} is no checkpoint of this run; it begins from the start.")
    return None


def _roots(trainer: L.Trainer) -> list[Path]:
    kept = [Path(logger.save_dir, str(logger.name)) for logger in trainer.loggers if logger.save_dir is not None]
    return kept or [Path(trainer.default_root_dir)]


def _folders(trainer: L.Trainer) -> Iterable[Path]:
    """Where checkpoints of this run, and of those beside it, may lie."""
    for root in _roots(trainer):
        yield root / "checkpoints"
        yield from root.glob("*/checkpoints")
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.dirpath:
            yield Path(callback.dirpath)


def _differences(checkpoint: dict[str, Any], model: L.LightningModule) -> list[str]:
    """Names of what makes a checkpoint one of another run."""
    ours, theirs = _plain(model.hparams), _plain(checkpoint["hyper_parameters"])
    differ = [f"model.{key}" for key in ours if key in theirs and ours[key] != theirs[key]]
    return differ + (["seed_everything"] if checkpoint.get("seed", run_seed()) != run_seed() else [])


def _plain(values: Any) -> dict[str, str]:
    """Lists and tuples are the same to a config."""
    return {key: json.dumps(value, sort_keys=True, default=str) for key, value in dict(values).items()}
