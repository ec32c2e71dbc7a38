"""What a run was told to do, beside it and in its checkpoints."""

from functools import cached_property
from pathlib import Path
from typing import Any

import lightning as L
import yaml
from lightning.pytorch.cli import SaveConfigCallback

from htt_lightning.io.files import atomic_path
from htt_lightning.io.run_directory import CONFIG, TRAIN_CONFIG, run_directory
from htt_lightning.training.results import training_info


class SaveConfig(SaveConfigCallback):
    """Writes ``config.yaml`` into the run directory, whatever the logger; Lightning's may hit a user's own file.

    Every checkpoint carries it, too, with how its labels were drawn: a test leaves both beside its figures
    (``train_config.yaml``), as its own config says little of how the network was trained.
    """

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Find the run directory, which all ranks have to ask for together."""
        self.save_to_log_dir, self._folder = False, run_directory(trainer)
        super().setup(trainer, pl_module, stage)

    def save_config(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Write the files, on the first rank alone."""
        if not self._folder:
            return
        with atomic_path(self._folder / CONFIG) as partial:
            partial.write_text(self._text, encoding="utf-8")
        given = self.config.get("ckpt_path")
        if stage == "test" and given and Path(given).is_file():  # Lightning also knows words such as "last"
            with atomic_path(self._folder / TRAIN_CONFIG) as partial:
                partial.write_text(yaml.safe_dump(training_info(given), sort_keys=False), encoding="utf-8")

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the config, and how the label mask was drawn."""
        mask = getattr(getattr(trainer, "datamodule", None), "mask", None)
        checkpoint["training"] = {"config": self._text, "labels": mask and mask.provenance}

    @cached_property
    def _text(self) -> str:
        text: str = self.parser.dump(self.config, skip_none=False)
        return text
