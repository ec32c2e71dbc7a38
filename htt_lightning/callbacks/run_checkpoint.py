"""A callback that keeps the last checkpoint of a run and the best ones."""

import json
import math
import os
from pathlib import Path
from typing import Any, Literal, cast

import lightning as L
from lightning.fabric.utilities.cloud_io import _is_local_file_protocol
from lightning.pytorch.callbacks import ModelCheckpoint

from htt_lightning.callbacks.monitors import resolve_monitors
from htt_lightning.errors import ConfigError
from htt_lightning.io.files import write_text
from htt_lightning.io.run_directory import BEST


class RunCheckpoint(ModelCheckpoint):
    """Save the last checkpoint of a run, and keep the best ones by a metric.

    ``last.ckpt`` is replaced after every epoch. Kept checkpoints are files of their own, and ``best.json`` beside them
    has their values. A resumed run compares its epochs with the checkpoints that it kept before.

    Args:
        monitor: Metric of the best checkpoints, such as ``val/delta_m``; None keeps the last one alone.
        save_top_k: Number of best checkpoints to keep; -1 keeps all, also without ``monitor``.
        mode: ``max`` or ``min``. By default the better direction of the metric; needed for metrics of your own alone.
        filename: Name of kept checkpoints without suffix, such as ``{epoch}-{val/delta_m:.1f}``. By default
            ``{epoch}-{step}``, which gives ``epoch=3-step=400.ckpt``.
        save_last: False writes no ``last.ckpt``.
        **kwargs: Arguments of Lightning's ``ModelCheckpoint``.

    Raises:
        ConfigError: An argument is out of its range, or (when training starts) ``monitor`` is no logged metric.
    """

    option_group = "checkpoint"

    def __init__(
        self,
        monitor: str | None = None,
        save_top_k: int = 1,
        mode: Literal["min", "max"] | None = None,
        filename: str | None = None,
        save_last: bool | None = True,
        **kwargs: Any,
    ) -> None:
        if save_top_k < -1:
            raise ConfigError(f"checkpoint.save_top_k must be at least -1, got {save_top_k}.")
        if monitor is None and save_top_k > 1:
            rule, step = "-1, 0 or 1 without checkpoint.monitor", "Add --checkpoint.monitor, such as val/delta_m."
            raise ConfigError(f"checkpoint.save_top_k must be {rule}, got {save_top_k}. {step}")
        if filename == self.CHECKPOINT_NAME_LAST and monitor is not None:
            raise ConfigError("checkpoint.filename must not be last, the name of the last checkpoint. Leave it out.")
        # The default name is unique, so that a repeated epoch replaces its file.
        super().__init__(
            monitor=monitor,
            save_top_k=save_top_k,
            mode=mode or "min",
            filename=filename,
            save_last=False,  # Lightning's would miss epochs that keep no other checkpoint
            save_on_train_epoch_end=None,
            enable_version_counter=filename is not None,
            **kwargs,
        )
        self.given_mode: str | None = mode
        self.writes_last = save_last is not False
        self._validated_epoch: int | None = None

    @property
    def state_key(self) -> str:
        """Key of the state in checkpoints. Lightning's depends on the metric, which ``test`` does not know."""
        return type(self).__qualname__

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Find the direction of the metric, and when it is known."""
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        resolve_monitors(trainer, pl_module, getattr(trainer, "datamodule", None))
        if self.monitor is not None and self.given_mode is None:
            raise ConfigError(f"checkpoint.mode must be min or max for your own metric {self.monitor}, got none.")
        self._validated_epoch = None
        by_epoch = self._every_n_epochs >= 1
        several_validations = getattr(trainer, "val_check_interval", None) != 1.0  # a time leaves it unset
        after_validation = self.monitor is not None and self.monitor.startswith("val/") and several_validations
        self._save_on_train_epoch_end = True if by_epoch and not after_validation else None

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note that metrics are new; keep a checkpoint if an epoch has several validations."""
        if not trainer.sanity_checking:
            self._validated_epoch = trainer.current_epoch
        super().on_validation_end(trainer, pl_module)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keep the epoch if it is among the best, and replace the last checkpoint."""
        if self._keeps_epoch(trainer):
            super().on_train_epoch_end(trainer, pl_module)
        if self.writes_last and not cast(Any, trainer).fast_dev_run:
            self.last_model_path = self.format_checkpoint_name({}, self.CHECKPOINT_NAME_LAST)
            self.best_model_path = self.best_model_path if self.monitor else self.last_model_path
            self._save_checkpoint(trainer, self.last_model_path)

    def _keeps_epoch(self, trainer: L.Trainer) -> bool:
        """Return True if a checkpoint of this epoch may be kept: its metric is not that of an earlier epoch."""
        if self.monitor is None:
            return self.save_top_k == -1
        is_new = not self.monitor.startswith("val/") or self._validated_epoch == trainer.current_epoch
        return is_new and self.monitor in trainer.callback_metrics

    def _save_checkpoint(self, trainer: L.Trainer, filepath: str) -> None:
        """Save a checkpoint, and the values of those that are kept."""
        super()._save_checkpoint(trainer, filepath)
        if self.monitor is not None and trainer.is_global_zero and _is_local_file_protocol(str(self.dirpath)):
            folder = Path(str(self.dirpath))
            values = {os.path.relpath(path, folder): float(value) for path, value in self.best_k_models.items()}
            content = {
                "monitor": self.monitor,
                "mode": self.mode,
                "best": os.path.relpath(self.best_model_path, folder) if self.best_model_path else None,
                "values": {name: value if math.isfinite(value) else None for name, value in values.items()},
            }
            write_text(folder / BEST, json.dumps(content, indent=2) + "\n")

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the kept checkpoints, also those in the folder of the run that is resumed."""
        if state_dict["monitor"] != self.monitor:  # another metric, or a command that keeps none
            return
        super().load_state_dict(state_dict | {"dirpath": self.dirpath})
        self.best_k_models = {path: value for path, value in self.best_k_models.items() if Path(path).is_file()}
        if self.monitor is not None and self.best_model_path not in self.best_k_models:
            choose = max if self.mode == "max" else min
            self.best_model_path = choose(self.best_k_models, key=self.best_k_models.__getitem__, default="")
            self.best_model_score = self.best_k_models.get(self.best_model_path)
