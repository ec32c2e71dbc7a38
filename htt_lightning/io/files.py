"""Where files go, and writing them so that a reader never meets half of one."""

import os
import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any
from zipfile import BadZipFile, ZipFile, is_zipfile

import torch
from torch import Tensor

from htt_lightning.errors import HTTError
from htt_lightning.tasks import Task

CONFIG, TRAIN_CONFIG = "config.yaml", "train_config.yaml"
"""Names of what a run was told to do, and of how the network was trained that a test has scored."""
RUN_RECORD = "run_record.yaml"
"""Name of where a run has come from: versions, commit, fingerprint of the data, and when its stages began."""
RESULTS = {"val": "val_metrics.json", "test": "test_metrics.json"}
"""Names of the figures that ``fit`` and ``test`` leave in the folder of a run, by split."""


def run_directory(trainer: Any) -> Path | None:
    """Where a run keeps its files, such as ``runs/version_0``.

    Args:
        trainer: A Lightning trainer. All its processes have to ask together.

    Returns:
        None for a trial run (``fast_dev_run``), which keeps nothing.
    """
    folder, logger = Path(trainer.log_dir or trainer.default_root_dir), trainer.logger
    if logger is not None and not logger.log_dir:
        # Loggers without a directory per run, such as Weights & Biases, would have runs overwrite each other.
        _ = logger.experiment  # only a run that has begun has a version
        folder = Path(trainer.strategy.broadcast(str(folder / str(logger.name) / str(logger.version))))
    return None if trainer.fast_dev_run else folder


def check_output_dir(folder: Path, overwrite: bool) -> None:
    """Refuse to write into a folder that holds something already (contracts.md, Commands).

    Args:
        folder: Where a command is to write.
        overwrite: Whether what is there may be replaced.

    Raises:
        HTTError: The folder is not empty, or a file.
    """
    if folder.is_file():
        raise HTTError(f"--out {folder} is a file; name a folder.")
    if not overwrite and folder.is_dir() and any(folder.iterdir()):
        raise HTTError(f"{folder} is not empty; choose another folder with --out, or give --overwrite true.")


PARTIAL = ".partial"
"""End of the names of files that are being written; where it stays, their process was killed."""


@contextmanager
def atomic_path(path: Path, durable: bool = False) -> Iterator[Path]:
    """A temporary path beside ``path`` that takes its place when the block ends, and vanishes when it fails.

    A process may be killed at any moment: ``path`` is the old file or the new one. When a machine loses power, a file
    that was renamed before its content reached the disk may be empty, unless it is ``durable``. That takes time, and
    only a checkpoint replaces what nothing else could bring back.

    Args:
        path: The file to write; its folder is made.
        durable: Whether the content has to be on the disk before the file takes its place.

    Raises:
        HTTError: The file cannot be written; the message names it.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
            if durable:
                with partial.open("r+b") as file:
                    os.fsync(file.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise HTTError(f"Cannot write {path}: {error.strerror or error}.") from error


def is_outside(path: Path, root: Path) -> bool:
    """Whether a path that a file names is not inside a folder, links followed; such a file may come from anyone."""
    try:
        return not path.resolve().is_relative_to(root.resolve())
    except (OSError, ValueError, RuntimeError):  # links in a circle, characters that no path has
        return True


def remove_partial_files(folder: Path) -> None:
    """Delete what killed processes have left half written in a folder and below; nobody may be writing there."""
    for path in folder.rglob(f".*{PARTIAL}"):
        path.unlink(missing_ok=True)


def verify_zip_checksums(file: str | Path | IO[bytes]) -> None:
    """Compare the checksums in a file of ``torch.save``, as torch itself never does; older forms have none.

    Raises:
        BadZipFile: A byte of it has changed.
    """
    if is_zipfile(file):
        with ZipFile(file) as archive:
            if (record := archive.testzip()) is not None:
                raise BadZipFile(f"its record {record} has changed since it was written")


def safe_torch_load(file: str | Path | IO[bytes], **options: Any) -> Any:
    """What a file of ``torch.save`` holds, as far as it is weights and plain values; nothing in it is executed.

    Args:
        file: The file.
        **options: Further ones of ``torch.load``.

    Raises:
        Exception: It is missing, damaged or of another kind, which shows in many ways.
    """
    verify_zip_checksums(file)
    if not isinstance(file, str | Path):
        file.seek(0)
    try:
        return torch.load(file, map_location="cpu", weights_only=True, **options)
    except pickle.UnpicklingError as error:  # its text would have the file trusted
        raise ValueError("it holds more than weights and plain values, which is never run, or is broken") from error


def check_finite(state: Mapping[str, Tensor]) -> None:
    """Raise a ``ValueError`` that names a weight which is not finite, or no real number."""
    for name, weight in state.items():
        if weight.is_complex() or not weight.isfinite().all():
            raise ValueError(f"its weight {name} is not finite")


def refuse_lost(hyperparameters: Mapping[str, Any]) -> None:
    """Raise an ``HTTError`` where one of the network's is missing that weights may fit whatever it is."""
    for key in ("backbone", "backbone_options", "dilations"):
        if key not in hyperparameters:
            raise HTTError(f"it is damaged: its hyperparameter {key} is lost, and weights do not tell it")


def read_checkpoint(path: str | Path, argument: str) -> dict[str, Any]:
    """A checkpoint of this library, with tasks that can be built and finite weights, which stay on disk.

    Args:
        path: The checkpoint.
        argument: What it was given as, for messages.

    Raises:
        HTTError: The file is missing, damaged, or no checkpoint of this library.
    """
    if not Path(path).is_file():
        raise HTTError(f"{argument}: there is no checkpoint {path}.")
    try:
        checkpoint: dict[str, Any] = safe_torch_load(path, mmap=True)
        tasks = checkpoint["hyper_parameters"]["tasks"]
        for task in (Task.from_config(described) for described in tasks):
            if not task.name.isidentifier() or task.num_tokens < 1:
                raise ValueError(f"its task {task.name!r} has no name, class or bin")
        if not tasks or not all(described["init_args"]["name"] for described in tasks):
            raise KeyError("tasks")
        refuse_lost(checkpoint["hyper_parameters"])
        check_finite(checkpoint["state_dict"])
    except HTTError as error:
        raise HTTError(f"{argument}: {path}: {error}") from error
    except Exception as error:  # a damaged archive fails in many ways
        raise HTTError(f"{argument}: {path} is damaged or no checkpoint of htt_lightning ({error}).") from error
    return checkpoint


def read_hyperparameters(path: str, argument: str) -> dict[str, Any]:
    """The hyperparameters in a checkpoint, all of which is looked at; see ``read_checkpoint``."""
    hyperparameters: dict[str, Any] = read_checkpoint(path, argument)["hyper_parameters"]
    return hyperparameters
