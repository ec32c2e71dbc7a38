"""The smallest data, model and trainer that cover all features."""

import tempfile
from pathlib import Path
from typing import Any

import lightning as L

from htt_lightning import HTTModule, SyntheticDataModule
from htt_lightning.data import PartialLabelDataModule

SCENES = tempfile.TemporaryDirectory(prefix="scenes")
"""Folder of the scenes that this process has rendered."""

BACKBONE = "test_resnet"
"""timm's smallest residual network: strides 4 to 32, 0.4 M parameters."""


def tiny_data(**changes: Any) -> SyntheticDataModule:
    settings: dict[str, Any] = {"train_images": 12, "val_images": 4, "image_size": (32, 48), "batch_size": 4}
    settings |= {"num_workers": 0, "seed": 0, "cache": SCENES.name}
    return SyntheticDataModule(**(settings | changes))


def tiny_module(data: PartialLabelDataModule, **changes: Any) -> HTTModule:
    return HTTModule(data.tasks, **({"backbone": BACKBONE, "token_dim": 8, "lr": 1e-3} | changes))


def tiny_trainer(folder: Path, **changes: Any) -> L.Trainer:
    settings: dict[str, Any] = {
        "default_root_dir": folder,
        "accelerator": "cpu",
        "max_epochs": 1,
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 1,
    }
    return L.Trainer(**(settings | changes))


def tiny_checkpoint(folder: Path, **changes: Any) -> str:
    """Train on tiny data with all labels, and return the checkpoint."""
    data, trainer = tiny_data(labels="full", **changes), tiny_trainer(folder)
    trainer.fit(tiny_module(data), data)
    trainer.save_checkpoint(folder / "last.ckpt", weights_only=False)
    return str(folder / "last.ckpt")
