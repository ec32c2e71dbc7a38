"""Search for the checkpoint that a run resumes from."""

import logging
import os
import shutil

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from htt_lightning.training import trainer as trainer_module
from htt_lightning.training.resume import LAST, newest_checkpoint
from htt_lightning.training.trainer import HTTTrainer
from tests.tiny import tiny_data, tiny_module, tiny_trainer

FEW = {"tasks": "semseg,depth", "labels": "one-label"}
QUIET = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of two epochs that keeps both checkpoints, epoch=0.ckpt the older."""
    folder = tmp_path_factory.mktemp("trained")
    keep, logger = ModelCheckpoint(save_top_k=-1, filename="{epoch}"), CSVLogger(folder / "runs", name="")
    trainer = tiny_trainer(folder, logger=logger, callbacks=[keep], enable_checkpointing=True, max_epochs=2)
    data = tiny_data(**FEW)
    torch.manual_seed(0)
    trainer.fit(tiny_module(data), data)
    return folder


@pytest.fixture
def runs(trained, tmp_path):
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)  # with the times of its files
    return tmp_path / "runs" / "version_0" / "checkpoints"


@pytest.fixture
def trainer(tmp_path):
    logger = CSVLogger(tmp_path / "runs", name="")
    return HTTTrainer(logger=logger, callbacks=[ModelCheckpoint()], max_epochs=3, **QUIET)


def model(**changes):
    return tiny_module(tiny_data(**FEW), **changes)


@pytest.fixture
def log(caplog):
    caplog.set_level(logging.INFO, logger="lightning.pytorch.utilities.rank_zero")
    return lambda: "\n".join(record.getMessage() for record in caplog.records)


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def zero_page(path):
    """Zero a page of a file, as a file system may after a loss of power."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(bytes(512))


def test_newest_checkpoint_is_found(runs, trainer, log):
    assert newest_checkpoint(trainer, model()) == runs / "epoch=1.ckpt"
    os.utime(runs / "epoch=0.ckpt")
    assert newest_checkpoint(trainer, model()) == runs / "epoch=0.ckpt"
    assert f"Resuming from {runs / 'epoch=0.ckpt'}" in log()


@pytest.mark.parametrize("damage", [truncate, zero_page])
def test_corrupt_checkpoint_is_skipped(damage, runs, trainer):
    damage(runs / "epoch=1.ckpt")
    with pytest.warns(UserWarning, match=r"Skipping .*epoch=1\.ckpt is corrupt"):
        assert newest_checkpoint(trainer, model()) == runs / "epoch=0.ckpt"


def test_last_considers_files_of_that_name(runs, trainer):
    shutil.copy2(runs / "epoch=0.ckpt", runs / "last.ckpt")
    assert newest_checkpoint(trainer, model(), LAST) == runs / "last.ckpt"
    truncate(runs / "last.ckpt")
    shutil.copy2(runs / "epoch=0.ckpt", runs / "last-v1.ckpt")
    with pytest.warns(UserWarning, match=r"last\.ckpt is corrupt"):
        assert newest_checkpoint(trainer, model(), LAST) == runs / "last-v1.ckpt"


def test_weights_and_foreign_files_are_skipped(runs, trainer):
    stored = torch.load(runs / "epoch=1.ckpt", weights_only=True)
    torch.save({key: value for key, value in stored.items() if key != "optimizer_states"}, runs / "stage_1.ckpt")
    torch.save({"hyper_parameters": {}}, runs / "foreign.ckpt")
    with pytest.warns(UserWarning, match=r"foreign\.ckpt is corrupt or no checkpoint"):
        assert newest_checkpoint(trainer, model()) == runs / "epoch=1.ckpt"


def test_checkpoint_of_other_model_or_seed_is_skipped(runs, trainer, log, monkeypatch):
    assert newest_checkpoint(trainer, model(lr=1e-4)) is None
    assert "epoch=1.ckpt: hyperparameters differ (model.lr)" in log()
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    assert newest_checkpoint(trainer, model()) is None
    assert "differ (seed_everything)" in log()


def test_search_covers_folders_without_logger(trained, tmp_path):
    shutil.copytree(trained / "runs" / "version_0" / "checkpoints", tmp_path / "checkpoints")
    bare = HTTTrainer(logger=False, default_root_dir=tmp_path, **QUIET)
    assert newest_checkpoint(bare, model()) == tmp_path / "checkpoints" / "epoch=1.ckpt"
    (tmp_path / "checkpoints").rename(tmp_path / "mine")
    named = HTTTrainer(logger=False, callbacks=[ModelCheckpoint(dirpath=tmp_path / "mine")], **QUIET)
    assert newest_checkpoint(named, model()) == tmp_path / "mine" / "epoch=1.ckpt"


def test_fit_starts_from_scratch_without_checkpoint(trainer, log, tmp_path):
    trainer.fit(model(), tiny_data(**FEW), ckpt_path="auto")
    assert trainer.current_epoch == 3
    assert f"found no checkpoint of this run below {tmp_path / 'runs'}" in log()


@pytest.mark.parametrize("options", [{"ckpt_path": "auto"}, {}], ids=["auto", "requeued"])
def test_fit_resumes_from_newest_checkpoint(options, runs, trainer, log, monkeypatch):
    if not options:
        monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    trainer.fit(model(), tiny_data(**FEW), **options)
    assert "Restored all states from the checkpoint at" in log()
    assert trainer.global_step == 3
    assert trainer.fit_loop.epoch_progress.total.ready == 3


def test_rank_zero_chooses_checkpoint_for_all_ranks(runs, trainer, log, monkeypatch):
    """This process is another rank, whose own search would find a newer checkpoint."""
    monkeypatch.setattr(HTTTrainer, "is_global_zero", property(lambda self: False))
    monkeypatch.setattr(trainer_module, "newest_checkpoint", lambda *_: pytest.fail("searched"))
    chosen = runs / "epoch=0.ckpt"
    monkeypatch.setattr(trainer.strategy, "broadcast", lambda value, src=0: chosen if value is None else value)
    trainer.fit(model(), tiny_data(**FEW), ckpt_path="auto")
    assert f"Restored all states from the checkpoint at {chosen}" in log()


def test_user_checkpoint_plugin_is_kept():
    plugin = type("Plugin", (trainer_module.AtomicCheckpointIO,), {})()
    assert HTTTrainer(logger=False, plugins=[plugin], **QUIET).strategy.checkpoint_io is plugin
    default = HTTTrainer(logger=False, **QUIET).strategy.checkpoint_io
    assert type(default) is trainer_module.AtomicCheckpointIO
