"""What the command line refuses in one message: its parser or Lightning would pass over it, or show a traceback."""

import errno
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, get_args, get_type_hints

from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException

from htt_lightning.errors import HTTError

USER_ERRNOS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR)
"""Of system errors, those that whoever runs a command can mend."""


@contextmanager
def named(option: str) -> Iterator[None]:
    """Blame an option, or a group of them, for what Lightning has to say of its values."""
    try:
        yield
    except (ValueError, TypeError, ImportError, MisconfigurationException) as error:
        if find_user_error(error):
            raise
        raise HTTError(f"{option}: {error}") from error


def check_option_groups(options: Namespace, groups: Iterable[str]) -> None:
    """Raise an ``HTTError`` for a group of options that is a single value, which the parser lets pass.

    Args:
        options: Of a command.
        groups: What may only hold options.
    """
    for group in sorted(groups):
        if not isinstance(value := options.get(group), Namespace):
            raise HTTError(f"{group} is {json.dumps(value)}; give it options, {group}: {{...}}, or leave it out.")


def check_no_null(kind: type[Any], options: Namespace | None, group: str) -> None:
    """Raise an ``HTTError`` for an option that is null and may not be: the parser lets null pass for any of a class.

    Args:
        kind: The class that is made of the options.
        options: Its options.
        group: What they are called.
    """
    hints: dict[str, Any] = {}
    for ancestor in reversed(kind.__mro__[:-1]):
        with suppress(NameError):  # an annotation may name what is imported for type checkers alone
            hints |= get_type_hints(vars(ancestor).get("__init__", object.__init__))
    for key, value in vars(options).items() if options else ():
        if value is None and key in hints and type(None) not in get_args(hints[key]):
            raise HTTError(f"{group}.{key} cannot be null: leave it out for its default.")


def find_user_error(error: BaseException | None) -> HTTError | None:
    """The error of ours that an exception comes from: the parser wraps those of the classes it builds.

    Weights & Biases' own, as when nobody is logged in or its server cannot be reached, become one that says what to do;
    and so do weights that do not fit, as those of another version, and a place that the system does not let a run use.
    """
    while error:
        if isinstance(error, HTTError):
            return error
        if isinstance(error, OSError) and error.filename and error.errno in USER_ERRNOS:
            return HTTError(
                f"{error.filename}: {error.strerror}; choose another place, or make room or permission there."
            )
        if isinstance(error, RuntimeError) and str(error).startswith("Error(s) in loading state_dict"):
            first = " ".join(str(error).split()[:40])
            return HTTError(f"The weights of the checkpoint do not fit the network it describes: {first} ...")
        if type(error).__module__.startswith("wandb.errors"):  # by name: the package is imported by its logger alone
            return HTTError(
                f"Weights & Biases: {error}\nLog in with `wandb login`, or go without its server: "
                "--trainer.logger.offline true (or WANDB_MODE=offline), and `wandb sync` uploads the run later."
            )
        error = error.__cause__ or error.__context__
    return None
