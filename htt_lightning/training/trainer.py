"""The trainer of the library: a Lightning trainer whose runs can be interrupted and resumed."""

from pathlib import Path
from typing import Any

import lightning as L
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from htt_lightning.io.checkpoints import AtomicCheckpointIO
from htt_lightning.training.resume import AUTO, LAST, is_requeued, newest_checkpoint
from htt_lightning.training.signals import sync_sigterm_across_ranks


class HTTTrainer(L.Trainer):
    """Lightning trainer with atomic checkpoints, a search for the checkpoint to resume from, and clean SIGTERM in DDP.

    Args:
        **kwargs: Arguments of ``lightning.Trainer``.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if type(self.strategy.checkpoint_io) is TorchCheckpointIO:  # keep a plugin of the user
            self.strategy.checkpoint_io = AtomicCheckpointIO()
        sync_sigterm_across_ranks(self)
        self._search: str | None = None

    def fit(
        self,
        model: L.LightningModule,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
        datamodule: L.LightningDataModule | None = None,
        ckpt_path: str | Path | None = None,
        weights_only: bool | None = None,
    ) -> None:
        """Train a model, or resume an interrupted run.

        Args:
            model: Model to train.
            train_dataloaders: Training loaders, or a datamodule.
            val_dataloaders: Validation loaders.
            datamodule: Dataset with its label mask.
            ckpt_path: Checkpoint to resume from. ``auto`` searches for the newest intact one of this run, ``last`` for
                the newest whose name starts with "last"; without one, training starts from scratch. A job that SLURM
                has requeued searches by default.
            weights_only: As in ``torch.load``.
        """
        if ckpt_path is None and is_requeued():
            ckpt_path = AUTO
        self._search = str(ckpt_path) if ckpt_path in (AUTO, LAST) else None
        super().fit(
            model, train_dataloaders, val_dataloaders, datamodule, AUTO if self._search else ckpt_path, weights_only
        )

    def _run(self, model: L.LightningModule, ckpt_path: Any = None, weights_only: bool | None = None) -> Any:
        """Replace ``auto`` by a path, now that processes exist: rank 0 searches, so that all resume from one file."""
        if self._search is not None:
            self.strategy.setup_environment()  # which Lightning does next; the process group is made once
            found = newest_checkpoint(self, model, self._search) if self.is_global_zero else None
            ckpt_path, self._search = self.strategy.broadcast(found), None
        return super()._run(model, ckpt_path=ckpt_path, weights_only=weights_only)

    def save_checkpoint(
        self, filepath: str | Path, weights_only: bool | None = None, storage_options: Any = None
    ) -> None:
        """Save a checkpoint, except where SLURM's signal interrupts an epoch.

        Training cannot resume exactly inside an epoch, and Lightning would load that file in any later run there.
        """
        if not Path(filepath).name.startswith("hpc_ckpt_"):
            super().save_checkpoint(filepath, weights_only, storage_options)
