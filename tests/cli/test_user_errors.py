"""Errors that the user can fix, and exit statuses."""

import errno
import re

import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import nn

from htt_lightning.callbacks import RunCheckpoint
from htt_lightning.cli.user_errors import error_message, exit_status, find_user_error
from htt_lightning.errors import ConfigError, DataError, HTTError
from tests.tiny import tiny_data, tiny_module, tiny_trainer


def test_unusable_path_is_user_error():
    wrapped = RuntimeError("words of a library")
    wrapped.__cause__ = PermissionError(errno.EACCES, "Permission denied", "/runs/version_0")
    assert "/runs/version_0: Permission denied" in str(find_user_error(wrapped))
    assert find_user_error(OSError(errno.EIO, "Input/output error", "/runs")) is None
    assert find_user_error(RuntimeError("a fault of the program")) is None


def test_weights_that_do_not_fit_are_user_error():
    with pytest.raises(RuntimeError) as error:
        nn.Linear(2, 2).load_state_dict({"other": torch.zeros(1)})
    assert '"weight", "bias"' in str(find_user_error(error.value))


def test_group_of_user_errors_is_one_message():
    inner = ExceptionGroup("2 problems in b", [DataError("b/1.png is corrupt."), HTTError("b/2.png is missing.")])
    group = ExceptionGroup("3 problems", [ConfigError("data.root must exist."), inner])
    wrapped = ValueError("words of a parser")
    wrapped.__cause__ = group
    lines = ["3 problems", "data.root must exist.", "2 problems in b", "b/1.png is corrupt.", "b/2.png is missing."]
    assert error_message(find_user_error(wrapped)).splitlines() == lines
    assert find_user_error(ExceptionGroup("mixed", [HTTError("ours"), KeyError("a fault")])) is None


@pytest.mark.parametrize("cls", [HTTError, DataError])
def test_message_leaves_out_traceback_of_loader(cls):
    text = (
        f"Caught {cls.__name__} in worker 0.\nTraceback:\n  File x\nhtt_lightning.errors.{cls.__name__}: a is corrupt."
    )
    assert error_message(cls(text)) == "a is corrupt."


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"limit_train_batches": 0.1}, "trainer.limit_train_batches must leave at least one of 2 batches, got 0.1."),
        ({"limit_val_batches": 0.1}, "trainer.limit_val_batches must leave at least one of 1 batches, got 0.1."),
        (
            {"val_check_interval": 3},
            "trainer.val_check_interval must be at most 2, the number of training batches, got",
        ),
        (
            {"callbacks": RunCheckpoint()},
            "trainer.enable_checkpointing must be true, got False. .*checkpoint.save_last",
        ),
        ({"callbacks": EarlyStopping("val/loss")}, "EarlyStopping.monitor must be .*, got val/loss."),
        ({"gradient_clip_algorithm": "nrom", "gradient_clip_val": 1.0}, "trainer: .*nrom"),
    ],
    ids=lambda value: "" if isinstance(value, str) else next(iter(value)),
)
def test_error_of_lightning_about_options_is_one_line(options, message, tmp_path):
    data = tiny_data(tasks="depth", labels="full", train_images=4, val_images=2, batch_size=2)
    with pytest.raises(Exception, match=r"\w") as error:
        tiny_trainer(tmp_path, **options).fit(tiny_module(data), data)
    found = find_user_error(error.value)
    assert isinstance(found, ConfigError)
    assert re.match(message, str(found))
    assert "\n" not in str(found)


def test_missing_package_of_a_logger_is_one_line():
    wrapped = ValueError("words of a parser")
    wrapped.__cause__ = ModuleNotFoundError("Requirement 'mlflow>=1.0.0' not met. HINT: Try running ...")
    assert (
        str(find_user_error(wrapped))
        == "trainer: needs mlflow>=1.0.0, which is not installed: pip install 'mlflow>=1.0.0'."
    )


def test_error_of_a_class_in_the_options_is_one_line():
    class ForeignError(Exception):
        pass

    wrapped = ValueError("Does not validate against any of the Union subtypes\nSubtypes: ...")
    wrapped.__cause__ = ForeignError("The file store is\n in maintenance mode.")
    assert str(find_user_error(wrapped)) == "The file store is in maintenance mode."
    wrapped.__cause__ = TypeError("a fault of the program")
    assert find_user_error(wrapped) is None


def test_exit_status_is_that_of_shells():
    assert exit_status(SIGTERMException()) == 143
    assert exit_status(KeyboardInterrupt()) == 130
    assert exit_status(ValueError()) is None
