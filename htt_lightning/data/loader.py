"""Loaders with the settings that reproducible runs need, and their processes."""

import signal
from typing import Any

import cv2
import torch
from torch.utils.data import DataLoader, Dataset

from htt_lightning.data.batch import Batch


def build_loader(
    dataset: Dataset[Batch], batch_size: int, num_workers: int, seed: int, **arguments: Any
) -> DataLoader[Batch]:
    """Build a loader of batches, with further arguments of ``DataLoader``."""
    return DataLoader(
        dataset=dataset,
        batch_size=batch_size,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=worker_init,
        generator=torch.Generator().manual_seed(seed),  # the default draws from the global state
        **arguments,
    )


def worker_init(_: int) -> None:
    """Prepare a loader process: no OpenCV threads, and no reaction to signals."""
    cv2.setNumThreads(0)
    # A terminal signals all processes of a run; the main one ends its loaders itself, and fails if one dies first.
    for name in ("SIGINT", "SIGTERM", "SIGUSR1"):
        if hasattr(signal, name):  # Windows has no SIGUSR1
            signal.signal(getattr(signal, name), signal.SIG_IGN)
