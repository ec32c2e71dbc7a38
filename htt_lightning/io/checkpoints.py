"""Reading and writing of checkpoints."""

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.fabric.utilities.cloud_io import _is_local_file_protocol

from htt_lightning.errors import CheckpointError, HTTError
from htt_lightning.io.files import atomic_path
from htt_lightning.io.weights import check_finite, safe_torch_load
from htt_lightning.tasks import Task


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write checkpoints beside their destination, flush them to the disk, and rename them.

    Lightning writes into the system's temporary folder and moves the file. A move to another file system is a copy, so
    a process that is killed meanwhile leaves half a checkpoint in place of the last one
    (https://github.com/Lightning-AI/pytorch-lightning/issues/21253).
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint atomically. Remote paths are left to Lightning."""
        if storage_options is not None or not _is_local_file_protocol(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        with atomic_path(Path(path), durable=True) as partial, partial.open("wb") as file:
            try:
                torch.save(checkpoint, file)
            except RuntimeError as error:  # torch reports a full disk this way
                raise OSError(str(error)) from error


def read_checkpoint(path: str | Path, option: str) -> dict[str, Any]:
    """Read and verify a checkpoint of this library; nothing in the file is executed.

    The weights are memory-mapped. A file that is read again is not verified again, so do not modify the result.

    Args:
        path: Checkpoint file.
        option: Option that named the file, for messages.

    Raises:
        CheckpointError: The file is missing, corrupt or not a checkpoint of this library.
    """
    try:
        status = Path(path).stat()
        return _read_verified(str(path), (status.st_mtime_ns, status.st_ctime_ns, status.st_size))
    except FileNotFoundError:
        raise CheckpointError(f"{option} must be an existing checkpoint, got {path}.") from None
    except HTTError as error:
        raise CheckpointError(f"{option}: {path}: {error}") from error
    except Exception as error:  # the type depends on which byte is corrupt
        raise CheckpointError(f"{option}: {path} is corrupt or no checkpoint of htt_lightning ({error}).") from error


def last_epoch(checkpoint: Mapping[str, Any]) -> int | None:
    """Return the epoch, from 0, that the weights of a checkpoint were last trained in; None if untrained or unknown.

    The entry ``epoch`` of Lightning counts one more in a checkpoint that is saved between two epochs.
    """
    if (loops := checkpoint.get("loops")) is None:
        return checkpoint.get("epoch")
    started: int = loops["fit_loop"]["epoch_progress"]["current"]["started"]
    return started - 1 if started else None


@lru_cache(maxsize=1)
def _read_verified(path: str, version: tuple[int, ...]) -> dict[str, Any]:
    """Read a version of a file, identified by its times and size."""
    checkpoint: dict[str, Any] = safe_torch_load(path, mmap=True)
    tasks = [Task.from_config(config) for config in checkpoint["hyper_parameters"]["tasks"]]
    if not tasks or any(task.num_tokens < 1 for task in tasks):
        raise ValueError("it has no valid tasks")
    check_finite(checkpoint["state_dict"])
    return checkpoint
