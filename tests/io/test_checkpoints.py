"""Atomic writes and verified reading of checkpoints."""

import zipfile

import pytest
import torch

from htt_lightning.errors import CheckpointError, HTTError
from htt_lightning.io.checkpoints import AtomicCheckpointIO, last_epoch, read_checkpoint
from htt_lightning.tasks import Depth


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("file write failed")])
def test_failed_save_keeps_old_checkpoint(error, tmp_path, monkeypatch):
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


def test_remote_checkpoint_is_left_to_lightning():
    path = "memory://folder/last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"epoch": 3}, path)
    assert AtomicCheckpointIO().load_checkpoint(path)["epoch"] == 3


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "last.ckpt"
    tasks = [Depth().to_config()]
    torch.save({"hyper_parameters": {"tasks": tasks}, "state_dict": {"weight": torch.ones(5000)}}, path)
    return path


def test_changed_byte_is_noticed(saved):
    read_checkpoint(saved, "--ckpt_path")
    content = bytearray(saved.read_bytes())
    with zipfile.ZipFile(saved) as archive:
        largest = max(archive.infolist(), key=lambda record: record.file_size)
    content[largest.header_offset + 1000] ^= 1
    saved.write_bytes(content)
    torch.load(saved, weights_only=True)  # does not notice
    with pytest.raises(CheckpointError, match=r"last\.ckpt is corrupt .*its record .*/data/\d+ has changed"):
        read_checkpoint(saved, "--ckpt_path")


@pytest.mark.parametrize(
    "change",
    [
        {"hyper_parameters": {"tasks": []}},
        {"hyper_parameters": {"tasks": [{"class_path": "htt_lightning.tasks.Depth", "init_args": {"name": "a-b"}}]}},
        {"hyper_parameters": {"tasks": [{"class_path": "no.Task", "init_args": {}}]}},
        {"state_dict": {"weight": torch.tensor([torch.nan])}},
        {"state_dict": {"weight": torch.zeros(1, dtype=torch.complex64)}},
    ],
    ids=["no task", "no identifier", "unknown class", "not finite", "complex"],
)
def test_invalid_content_is_rejected(change, saved):
    torch.save(torch.load(saved, weights_only=True) | change, saved)
    with pytest.raises(CheckpointError, match=r"^discovery\.teacher: .*last\.ckpt"):
        read_checkpoint(saved, "discovery.teacher")


def progress(started):
    return {"epoch": 5, "loops": {"fit_loop": {"epoch_progress": {"current": {"started": started}}}}}


@pytest.mark.parametrize(
    ("checkpoint", "epoch"), [(progress(5), 4), (progress(0), None), ({"epoch": 5}, 5), ({}, None)]
)
def test_last_epoch_is_that_of_training(checkpoint, epoch):
    assert last_epoch(checkpoint) == epoch


def test_missing_checkpoint_names_option(tmp_path):
    with pytest.raises(CheckpointError, match=r"--ckpt_path must be an existing checkpoint, got .*none\.ckpt"):
        read_checkpoint(tmp_path / "none.ckpt", "--ckpt_path")
