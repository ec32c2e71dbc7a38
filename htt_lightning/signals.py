"""Signals: which process answers them, and the status that a program returns when one has ended it."""

import signal

from lightning.pytorch.utilities.exceptions import SIGTERMException


def leave_signals_to_main() -> None:
    """Ignore, in a loader's process, what a terminal or a scheduler sends to all processes of a run.

    The main process ends its loaders itself. They would die first, which is an error to it, or have inherited its own
    way to answer.
    """
    for name in ("SIGINT", "SIGTERM", "SIGUSR1"):
        if hasattr(signal, name):  # Windows has not all of them
            signal.signal(getattr(signal, name), signal.SIG_IGN)


def status_of(error: BaseException) -> int | None:
    """The exit status of a program that a signal has ended, 128 and its number as in shells; None if none has.

    Args:
        error: What reached the end of the program. Lightning makes an exit with status 0 of SIGTERM, and one with 1 of
            Ctrl-C.
    """
    if isinstance(error, SIGTERMException):
        return 128 + signal.SIGTERM
    if isinstance(error, KeyboardInterrupt) or isinstance(error.__context__, KeyboardInterrupt):
        return 128 + signal.SIGINT
    return None
