"""User errors: one message instead of a traceback, and the exit status."""

import errno
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.exceptions import SIGTERMException

from htt_lightning.errors import CheckpointError, ConfigError, HTTError

USER_ERRNOS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR)
"""System errors that the user can fix."""


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
        if type(error).__module__.startswith("wandb.errors"):  # not imported: only its logger imports wandb
            return HTTError(
                f"Weights & Biases: {error}\nLog in with `wandb login`, or run without the server: "
                "--trainer.logger.offline true (or WANDB_MODE=offline). `wandb sync` uploads the run later."
            )
        error = error.__cause__ or error.__context__
    return None


def error_message(error: Exception) -> str:
    """Return the message of a user error, followed by those of its members if it is a group."""
    if isinstance(error, ExceptionGroup):
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
