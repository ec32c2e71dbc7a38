"""Folder of a run."""

from types import SimpleNamespace

from lightning.pytorch.loggers import CSVLogger, WandbLogger

from htt_lightning.io.run_directory import run_directory
from tests.tiny import tiny_trainer


def test_run_directory_is_that_of_logger(tmp_path):
    logger = CSVLogger(tmp_path / "runs", name="")
    assert run_directory(tiny_trainer(tmp_path, logger=logger)) == tmp_path / "runs" / "version_0"


def test_run_directory_has_name_of_wandb_run(tmp_path, logged_out):
    logger = WandbLogger(project="mine", offline=True, save_dir=tmp_path)
    folder = run_directory(tiny_trainer(tmp_path, logger=logger))
    assert folder == tmp_path / "mine" / logger.version
    logger.experiment.finish()


def test_run_directory_without_logger_is_root(tmp_path):
    assert run_directory(tiny_trainer(tmp_path)) == tmp_path


def test_trial_run_has_no_directory(tmp_path):
    assert run_directory(tiny_trainer(tmp_path, fast_dev_run=True)) is None


def test_trial_run_takes_part_in_broadcast():
    """Reading ``log_dir`` is a broadcast, which waits for all ranks."""
    asked = []

    class Trainer(SimpleNamespace):
        logger = None

        @property
        def log_dir(self):
            asked.append(True)

    assert run_directory(Trainer(fast_dev_run=True, default_root_dir="here")) is None
    assert asked
