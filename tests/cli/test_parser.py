import errno
import sys
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from jsonargparse import capture_parser
from torch import nn

from htt_lightning.cli.entry import main, normalize_args
from htt_lightning.cli.user_errors import find_user_error
from htt_lightning.errors import HTTError


@pytest.fixture(scope="module")
def parser():
    with patch.object(sys, "argv", ["htt", "fit"]):
        return capture_parser(main)


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["--model.lrr", "3"], "model.lr"),
        (["--modle.lr", "3"], "model.lr"),
        (["--data=SyntheticDataModule", "--data.lables", "full"], "labels"),
        (["--data", "NYUDataModul", "--data.root", "."], "NYUDDataModule"),
        (["--data=SyntheticDataModule", "--trainer.logger", "WandBLogger"], "WandbLogger"),
        (["--data=SyntheticDataModule", "--data.tasks", "[{class_path: Dept}]"], "Depth"),
        (["--config", "mine.yaml"], "max_epochs"),
    ],
)
def test_what_nobody_knows_comes_with_what_is_nearest(parser, words, meant, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("data: SyntheticDataModule\ntrainer: {max_epoch: 3}\n")
    with pytest.raises(SystemExit) as stop:
        parser.parse_args(["fit", *words])
    assert stop.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    hints = [line.strip() for line in lines if "Did you mean" in line]
    assert len(hints) == 1
    assert hints[0] in (f"Did you mean '{meant}'?", f"Did you mean 'trainer.{meant}'?")
    assert len(lines) < 30  # usage alone has hundreds


def test_a_message_about_known_names_has_no_hint(parser):
    assert parser.hint("Parser key 'model.lr': Expected a <class 'float'>. Given value: quick") == ""


def test_commands_and_configs_that_do_not_exist_come_with_what_is_nearest(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for words, meant in (
        (["fitt"], "fit"),
        (["fit", "--config", "nyd.yaml"], "nyud.yaml"),
        (["fit", "--config=loggers/wandbb.yaml"], "loggers/wandb.yaml"),
    ):
        with pytest.raises(HTTError, match=f"Did you mean '{meant}'"):
            normalize_args(words)
    with pytest.raises(SystemExit, match=r"error: There is no command 'fitt', only fit, .*report, info\."):
        main(["fitt"])


def test_what_may_be_left_out_is_filled_in():
    assert normalize_args(["report", "runs", "--overwrite"]) == ["report", "runs", "--overwrite=true"]
    assert normalize_args(["report", "--overwrite", "runs"]) == ["report", "--overwrite=true", "runs"]
    assert normalize_args(["report", "--overwrite", "false", "runs"]) == ["report", "--overwrite", "false", "runs"]
    assert normalize_args(["fit", "--model.lr", "1"]) == ["fit", "--data=SyntheticDataModule", "--model.lr", "1"]
    assert normalize_args(["info"]) == ["info"]
    assert normalize_args([]) == []


def test_a_place_that_the_system_does_not_let_a_run_use_is_one_message():
    wrapped = RuntimeError("a library's own words")
    wrapped.__cause__ = PermissionError(errno.EACCES, "Permission denied", "/runs/version_0")
    assert str(find_user_error(wrapped)).startswith("/runs/version_0: Permission denied; choose another place")
    assert find_user_error(OSError(errno.EIO, "Input/output error", "/runs")) is None
    assert find_user_error(RuntimeError("a fault of ours")) is None


def test_weights_of_another_version_are_one_message():
    with pytest.raises(RuntimeError) as error:
        nn.Linear(2, 2).load_state_dict({"other": torch.zeros(1)})
    message = str(find_user_error(error.value))
    assert message.startswith("The weights of the checkpoint do not fit the network it describes: Error(s)")
    assert '"weight", "bias"' in message
