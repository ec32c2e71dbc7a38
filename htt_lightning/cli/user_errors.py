"""User errors: one message instead of a traceback, and the exit status."""

import errno
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.exceptions import SIGTERMException

from htt_lightning.errors import CheckpointError, ConfigError, HTTError

USER_ERRNOS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR)
"""System errors that the user can fix."""
LIGHTNING_MESSAGES = {
    r"You requested to check (?P<got>\S+) of .* \* (?P<count>\d+) < 1.*`(?P<option>limit_\w+)` argument": (
        "trainer.{option} must leave at least one of {count} batches, got {got}."
    ),
    r"`val_check_interval` \((?P<got>\d+)\) must be less than .* training batches \((?P<count>\d+)\)": (
        "trainer.val_check_interval must be at most {count}, the number of training batches, got {got}. "
        "To count them across epochs, set trainer.check_val_every_n_epoch to null."
    ),
    r"Trainer was configured with `enable_checkpointing=(?P<got>False)`": (
        "trainer.enable_checkpointing must be true, got {got}. For no checkpoint, set checkpoint.save_last to false."
    ),
    r"Early stopping conditioned on metric `(?P<got>.*?)` which is not available": (
        "EarlyStopping.monitor must be a metric that every validation logs, got {got}."
    ),
    r"Providing log_model=(?P<got>\w+) and offline=True": (
        "trainer.logger.log_model must be false with trainer.logger.offline true, as nothing is uploaded, got {got}."
    ),
    r"Requirement '(?P<got>[^']+)' not met": "trainer: needs {got}, which is not installed: pip install '{got}'.",
}
"""Our messages for those of Lightning, by a pattern at their beginning."""


@contextmanager
def blame_option(option: str) -> Iterator[None]:
    """Turn errors of Lightning or jsonargparse in a block into a ``ConfigError`` that names an option or group."""
    try:
        yield
    except (ValueError, TypeError, ImportError, MisconfigurationException) as error:
        if find_user_error(error):
            raise
        raise ConfigError(f"{option}: {error}") from error


def find_user_error(error: BaseException | None) -> Exception | None:
    """Find the error that the user can fix in the cause chain of an exception.

    jsonargparse wraps exceptions raised in constructors. Errors of Weights & Biases, weights that do not fit and paths
    that cannot be used become an ``HTTError`` with the next step. The result is None for a fault of the program.
    """
    built_from_options = str(error).startswith("Does not validate against any of the Union subtypes")
    while error:
        if isinstance(error, HTTError):
            return error
        if isinstance(error, ExceptionGroup) and all(find_user_error(member) for member in error.exceptions):
            return error
        if isinstance(error, OSError) and error.filename and error.errno in USER_ERRNOS:
            return HTTError(f"Cannot use {error.filename}: {error.strerror}. Choose another path, or fix this one.")
        if isinstance(error, RuntimeError) and str(error).startswith("Error(s) in loading state_dict"):
            first_words = " ".join(str(error).split()[:40])
            return CheckpointError(f"The weights of the checkpoint do not fit its hyperparameters: {first_words} ...")
        if (message := lightning_message(error)) is not None:
            return ConfigError(message)
        if type(error).__module__.startswith("wandb.errors"):  # not imported: only its logger imports wandb
            return HTTError(
                f"Weights & Biases: {error}\nLog in with `wandb login`, or run without the server: "
                "--trainer.logger.offline true (or WANDB_MODE=offline). `wandb sync` uploads the run later."
            )
        if built_from_options and type(error).__module__ != "builtins" and not error.__cause__:
            return ConfigError(" ".join(str(error).split()))  # of another library, such as MLflow
        error = error.__cause__ or error.__context__
    return None


def lightning_message(error: BaseException) -> str | None:
    """Return our message for an error of Lightning about options, or None for any other error."""
    text = " ".join(str(error).split())
    if isinstance(error, ValueError | RuntimeError | ImportError | MisconfigurationException):
        for pattern, message in LIGHTNING_MESSAGES.items():
            if found := re.match(pattern, text):
                return message.format(**found.groupdict())
    return f"trainer: {text}" if isinstance(error, MisconfigurationException) else None


def error_message(error: Exception) -> str:
    """Return the message of a user error, followed by those of its members if it is a group."""
    if isinstance(error, ExceptionGroup) and not isinstance(error, HTTError):  # ours name their members themselves
        return "\n".join([error.message, *(error_message(member) for member in error.exceptions)])
    # A loader process puts its traceback in front of the message.
    return str(error).rpartition(f"{type(error).__name__}: ")[2].strip()


def exit_status(error: BaseException) -> int | None:
    """Return the exit status of a program that a signal has ended, 128 plus its number, as shells do; else None.

    Lightning turns SIGTERM into an exit with status 0, and Ctrl-C into one with status 1.
    """
    if isinstance(error, SIGTERMException):
        return 128 + signal.SIGTERM
    if isinstance(error, KeyboardInterrupt) or isinstance(error.__context__, KeyboardInterrupt):
        return 128 + signal.SIGINT
    return None
