"""Configs in run directories and checkpoints."""

from functools import cached_property
from pathlib import Path
from typing import Any

import lightning as L
import yaml
from lightning.pytorch.cli import SaveConfigCallback

from htt_lightning.io.files import write_text
from htt_lightning.io.run_directory import CONFIG, TRAIN_CONFIG, run_directory
from htt_lightning.training.results import training_info


class SaveConfig(SaveConfigCallback):
    """Write ``config.yaml`` into the run directory and into every checkpoint.

    ``test`` also writes ``train_config.yaml``: the config of the tested network, with the provenance of its label mask.
    Lightning's own callback writes into ``log_dir``, which may be a folder of the user.
    """

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Find the run directory on all ranks, and save the config."""
        self.save_to_log_dir, self._folder = False, run_directory(trainer)
        super().setup(trainer, pl_module, stage)

    def save_config(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Write the files on rank 0."""
        if not self._folder:
            return
        write_text(self._folder / CONFIG, self._text)
        checkpoint = self.config.get("ckpt_path")
        if stage == "test" and checkpoint and Path(checkpoint).is_file():  # not a keyword such as "last"
            write_text(self._folder / TRAIN_CONFIG, yaml.safe_dump(training_info(checkpoint), sort_keys=False))

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the config and the provenance of the label mask."""
        mask = getattr(getattr(trainer, "datamodule", None), "mask", None)
        checkpoint["training"] = {"config": self._text, "labels": mask and mask.provenance}

    @cached_property
    def _text(self) -> str:
        text: str = self.parser.dump(self.config, skip_none=False)
        return text
