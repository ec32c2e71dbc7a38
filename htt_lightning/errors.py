"""The one exception for everything a user can mend, naming several faults at once, and hints in messages."""

import difflib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path


class HTTError(Exception):
    """Bad input: the message names the file, key or argument at fault and says what to do.

    The command line prints the message alone and exits with status 1.

    Args:
        message: What is wrong.
        faults: Each of several faults, where the message names only some of them.
        missing: The file or folder that is not there, if that is what is wrong.
        trees: The expected folders and files of the datasets at fault, shown below the message.

    Attributes:
        message: The message without the trees.
    """

    def __init__(
        self,
        message: str,
        faults: Sequence["HTTError"] = (),
        missing: Path | None = None,
        trees: Iterable[str] = (),
    ) -> None:
        self.message, self.missing, self.trees = message, missing, tuple(trees)
        super().__init__("\n".join([message, *(f"The dataset must read:\n{tree}" for tree in self.trees)]))
        self._faults = tuple(faults)

    @property
    def faults(self) -> tuple["HTTError", ...]:
        """All of them, or the error alone."""
        return self._faults or (self,)


class ConfigError(HTTError, ValueError):
    """An option or argument has a value that is not allowed."""


class DataError(HTTError):
    """A dataset, image, label or mask file is missing or corrupt."""


class CheckpointError(HTTError):
    """A checkpoint or weights file is missing, corrupt or does not fit."""


def several(errors: Sequence[HTTError], shown: int | None = 3, tree: str = "") -> HTTError:
    """One error for all that is at fault.

    Args:
        errors: At least one.
        shown: So many faults are in its message; None for all.
        tree: The expected folders and files; shown where some are missing, as are those of the errors themselves.
    """
    faults = list({fault.message: fault for error in errors for fault in error.faults}.values())
    lines = [fault.message for fault in faults[:shown]]
    more = len(faults) - len(lines)
    trees = [tree] if tree and any(fault.missing for fault in faults) else []
    return HTTError(
        "\n".join([*lines, *([f"... and {more} more"] if more else [])]),
        faults if len(faults) > 1 else (),
        faults[0].missing if len(faults) == 1 else None,
        dict.fromkeys([*trees, *(found for error in errors for found in error.trees)]),
    )


def did_you_mean(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """A sentence for the end of a message, with a space before it, that names what is nearest to an unknown name.

    Args:
        name: What was given.
        known: What could have been.
        cutoff: How alike they have to be, from 0 to 1.

    Returns:
        Nothing where nothing is alike.
    """
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f" Did you mean {close[0]!r}?" if close else ""


def missing_extra(what: str, extra: str) -> HTTError:
    """The error for a package that is not installed.

    Args:
        what: Beginning of the message: who needs which package.
        extra: Of this library, that the package belongs to.
    """
    return HTTError(f'{what}, which cannot be imported: pip install "htt-lightning[{extra}]".')


@contextmanager
def collected() -> Iterator[list[HTTError]]:
    """Collects what ``raise_or_collect`` is told inside the block: who opens a dataset there goes on with the rest."""
    errors: list[HTTError] = []
    token = _collected.set(errors)
    try:
        yield errors
    finally:
        _collected.reset(token)


_collected: ContextVar[list[HTTError] | None] = ContextVar("errors", default=None)


def raise_or_collect(error: HTTError) -> None:
    """Raise an error, unless errors are collected."""
    if (errors := _collected.get()) is None:
        raise error
    errors.append(error)


@contextmanager
def tolerated() -> Iterator[None]:
    """Where errors are collected, one that is raised inside the block ends only the block."""
    try:
        yield
    except HTTError as error:
        raise_or_collect(error)


def sound() -> bool:
    """Whether nothing has been collected: only then is what was opened complete."""
    return not _collected.get()
