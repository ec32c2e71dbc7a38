"""The folder of a run and the names of its files."""

from pathlib import Path
from typing import Any

RUNS = "runs"
"""The folder of runs, unless a logger has another one."""
CONFIG, TRAIN_CONFIG = "config.yaml", "train_config.yaml"
"""The config of the run, and the training config of the checkpoint that ``test`` scored."""
RUN_RECORD = "run_record.yaml"
"""The provenance of the run: versions, commit, data fingerprint and stages."""
CHECKPOINTS, BEST = "checkpoints", "best.json"
"""The folder of checkpoints, and the file in it that names the best ones with their values."""
RESULTS = {"val": "val_metrics.json", "test": "test_metrics.json"}
"""The metrics that ``fit`` and ``test`` write, by split."""


def run_directory(trainer: Any) -> Path | None:
    """Return the folder of a run, such as ``runs/version_0``; None for ``fast_dev_run``, which writes no files.

    All ranks must call this function together, because it broadcasts.
    """
    folder, logger = Path(trainer.log_dir or trainer.default_root_dir), trainer.logger
    if logger is not None and not logger.log_dir:
        # Weights & Biases has no directory per run, so runs would overwrite each other's files.
        _ = logger.experiment  # the version is unknown until the run has started
        folder = Path(trainer.strategy.broadcast(str(folder / str(logger.name) / str(logger.version))))
    return None if trainer.fast_dev_run else folder
