"""Checkpoints are whole, and the newest one that a run can go on from is found."""

import logging
import os
import shutil

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from htt_lightning.errors import HTTError
from htt_lightning.io.checkpoints import AtomicCheckpointIO
from htt_lightning.training.resume import LAST, newest_checkpoint
from htt_lightning.training.trainer import HTTTrainer
from tests.tiny import tiny_data, tiny_module, tiny_trainer

FEW = {"tasks": "semseg,depth", "labels": "one-label"}
QUIET = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of two epochs that keeps both checkpoints, epoch=0.ckpt the older."""
    folder = tmp_path_factory.mktemp("trained")
    keep = ModelCheckpoint(save_top_k=-1, filename="{epoch}")
    logger = CSVLogger(folder / "runs", name="")
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
    return HTTTrainer(
        logger=CSVLogger(tmp_path / "runs", name=""), callbacks=[ModelCheckpoint()], max_epochs=3, **QUIET
    )


def model(**changes):
    return tiny_module(tiny_data(**FEW), **changes)


@pytest.fixture
def notes(caplog):
    caplog.set_level(logging.INFO, logger="lightning.pytorch.utilities.rank_zero")
    return lambda: "\n".join(record.getMessage() for record in caplog.records)


def cut(path):
    os.truncate(path, path.stat().st_size // 2)


def zero(path):
    """As a file system may leave a page of a file after a loss of power."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(bytes(512))


def test_the_newest_is_taken(runs, trainer, notes):
    assert newest_checkpoint(trainer, model()) == runs / "epoch=1.ckpt"
    os.utime(runs / "epoch=0.ckpt")
    assert newest_checkpoint(trainer, model()) == runs / "epoch=0.ckpt"
    assert f"Resuming from {runs / 'epoch=0.ckpt'}" in notes()


@pytest.mark.parametrize("harm", [cut, zero])
def test_one_that_is_damaged_is_left_out_and_named(harm, runs, trainer):
    harm(runs / "epoch=1.ckpt")
    with pytest.warns(UserWarning, match=r"Skipping .*epoch=1\.ckpt is corrupt"):
        assert newest_checkpoint(trainer, model()) == runs / "epoch=0.ckpt"


def test_one_called_last_is_asked_for_by_that_name(runs, trainer):
    shutil.copy2(runs / "epoch=0.ckpt", runs / "last.ckpt")
    assert newest_checkpoint(trainer, model(), LAST) == runs / "last.ckpt"
    cut(runs / "last.ckpt")
    shutil.copy2(runs / "epoch=0.ckpt", runs / "last-v1.ckpt")
    with pytest.warns(UserWarning, match=r"last\.ckpt is corrupt"):
        assert newest_checkpoint(trainer, model(), LAST) == runs / "last-v1.ckpt"


def test_weights_alone_and_what_is_no_checkpoint_of_ours_are_left_out(runs, trainer):
    stored = torch.load(runs / "epoch=1.ckpt", weights_only=True)
    torch.save({key: value for key, value in stored.items() if key != "optimizer_states"}, runs / "stage_1.ckpt")
    torch.save({"hyper_parameters": {}}, runs / "foreign.ckpt")
    with pytest.warns(UserWarning, match=r"foreign\.ckpt is corrupt or no checkpoint of htt_lightning"):
        assert newest_checkpoint(trainer, model()) == runs / "epoch=1.ckpt"


def test_another_model_or_seed_is_another_run(runs, trainer, notes, monkeypatch):
    assert newest_checkpoint(trainer, model(lr=1e-4)) is None
    assert "epoch=1.ckpt: hyperparameters differ (model.lr)" in notes()
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    assert newest_checkpoint(trainer, model()) is None
    assert "differ (seed_everything)" in notes()


def test_where_there_is_none_the_run_begins_and_says_so(trainer, notes, tmp_path):
    data = tiny_data(**FEW)
    trainer.fit(model(), data, ckpt_path="auto")
    assert trainer.current_epoch == 3
    assert f"found no checkpoint of this run below {tmp_path / 'runs'}" in notes()


@pytest.mark.parametrize("how", [{"ckpt_path": "auto"}, {}])
def test_a_run_goes_on_from_it_and_so_does_a_requeued_job(how, runs, trainer, notes, monkeypatch):
    if not how:
        monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    trainer.fit(model(), tiny_data(**FEW), **how)
    assert "Restored all states from the checkpoint at" in notes()
    assert trainer.global_step == 3
    assert trainer.fit_loop.epoch_progress.total.ready == 3


def test_runs_without_a_logger_are_found_where_they_are(trained, tmp_path):
    shutil.copytree(trained / "runs" / "version_0" / "checkpoints", tmp_path / "checkpoints")
    bare = HTTTrainer(logger=False, default_root_dir=tmp_path, **QUIET)
    assert newest_checkpoint(bare, model()) == tmp_path / "checkpoints" / "epoch=1.ckpt"
    (tmp_path / "checkpoints").rename(tmp_path / "mine")
    named = HTTTrainer(logger=False, callbacks=[ModelCheckpoint(dirpath=tmp_path / "mine")], **QUIET)
    assert newest_checkpoint(named, model()) == tmp_path / "mine" / "epoch=1.ckpt"


def test_the_trainer_writes_whole_checkpoints(tmp_path, monkeypatch):
    def save(self, checkpoint, path, storage_options=None):
        written.append(path)

    written = []
    monkeypatch.setattr(AtomicCheckpointIO, "save_checkpoint", save)
    trainer = HTTTrainer(default_root_dir=tmp_path, logger=False, callbacks=[ModelCheckpoint()], max_epochs=1, **QUIET)
    trainer.fit(model(), tiny_data(**FEW))
    assert len(written) == 1


@pytest.mark.parametrize(
    ("error", "raised"),
    [(OSError(28, "No space left on device"), HTTError), (RuntimeError("file write failed"), HTTError)],
)
def test_a_checkpoint_that_cannot_be_written_leaves_the_old_one(error, raised, tmp_path, monkeypatch):
    def failing(state, file):
        file.write(b"half")
        raise error

    path = tmp_path / "last.ckpt"
    path.write_text("old")
    monkeypatch.setattr(torch, "save", failing)
    with pytest.raises(HTTError, match=r"Cannot write .*last\.ckpt"):
        AtomicCheckpointIO().save_checkpoint({}, path)
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]
    assert path.read_text() == "old"
