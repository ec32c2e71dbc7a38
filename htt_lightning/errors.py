"""Exceptions for bad input, and hints for their messages."""

import difflib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


class HTTError(Exception):
    """Base class of all errors about bad input: an option, file or argument.

    The command line prints the message without a traceback and exits with status 1.

    Args:
        message: Problem and next step; it names the file, option or argument.
        missing_path: File or folder that does not exist, if that is the problem.
        expected_layout: Folders and files of the dataset, shown below the message.
    """

    def __init__(self, message: str, missing_path: Path | None = None, expected_layout: str = "") -> None:
        super().__init__(message)
        self.missing_path, self.expected_layout = missing_path, expected_layout

    def __str__(self) -> str:
        layout = self.expected_layout
        return f"{self.message}\nExpected layout of the dataset:\n{layout}" if layout else self.message

    @property
    def message(self) -> str:
        """The message without the layout."""
        return str(self.args[0])

    @property
    def errors(self) -> tuple["HTTError", ...]:
        """The errors of a group, or the error alone."""
        return (self,)


class ConfigError(HTTError, ValueError):
    """An option or argument has a value that is not allowed."""


class DataError(HTTError):
    """A dataset, image, label or mask file is missing or corrupt."""


class CheckpointError(HTTError):
    """A checkpoint or weights file is missing, corrupt or does not fit."""


class DataErrorGroup(ExceptionGroup[HTTError], DataError):
    """Several errors at once; ``except HTTError`` and ``except*`` both catch it."""

    __str__ = HTTError.__str__

    def __init__(self, message: str, errors: Sequence[HTTError]) -> None:
        DataError.__init__(self, message)
        self.args = message, errors

    @property
    def errors(self) -> tuple[HTTError, ...]:
        """The errors of the group."""
        return tuple(error for error in self.exceptions if isinstance(error, HTTError))


@contextmanager
def collect_errors(errors: list[HTTError]) -> Iterator[None]:
    """Append an error of the block to ``errors``, and go on after the block."""
    try:
        yield
    except HTTError as error:
        errors.append(error)


def combine_errors(errors: Iterable[HTTError], shown: int | None = 3, expected_layout: str = "") -> HTTError:
    """Combine errors, each message once; a single error stays what it is.

    The combined message has the first ``shown`` messages (None: all). The layout is added if a file is missing.
    """
    given = list(errors)
    single = list({error.message: error for group in given for error in group.errors}.values())
    layouts = [expected_layout if any(error.missing_path for error in single) else ""]
    layouts += [error.expected_layout for error in given]
    lines = [error.message for error in single[:shown]]
    lines += [f"... and {len(single) - len(lines)} more"] if len(lines) < len(single) else []
    combined = single[0] if len(single) == 1 else DataErrorGroup("\n".join(lines), single)
    combined.expected_layout = "\n".join(filter(None, dict.fromkeys(layouts)))
    return combined


def did_you_mean(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """Return a hint, with a leading space, to the known name that is most similar; empty if none is similar enough."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f" Did you mean {close[0]!r}?" if close else ""


def missing_file(path: Path) -> DataError:
    """Return the error for a file of a dataset that does not exist."""
    return DataError(f"{path} is missing. Copy or unpack it again.", missing_path=path)


def missing_extra(needed_by: str, extra: str) -> HTTError:
    """Return the error for a package that is not installed; the message begins with who needs it."""
    return HTTError(f'{needed_by}, which cannot be imported: pip install "htt-lightning[{extra}]".')
