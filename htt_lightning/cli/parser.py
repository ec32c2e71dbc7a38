"""Argument parser with suggestions for misspelled names, and checks that jsonargparse leaves out."""

import inspect
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any, NoReturn, get_args, get_type_hints

from jsonargparse import Namespace
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.loggers import Logger

from htt_lightning.data import PartialLabelDataModule
from htt_lightning.errors import ConfigError, did_you_mean
from htt_lightning.tasks import Task

HINT = "Did you mean"
"""Start of a suggestion. A nested parser may have added one to the message."""
MIN_SIMILARITY = 0.75
"""Similarity, from 0 to 1, that a suggestion must have with the unknown name."""


class SuggestingParser(LightningArgumentParser):
    """Parser whose error messages suggest the most similar name."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print a message with a suggestion and exit with status 2.

        Args:
            message: Message of jsonargparse.
            ex: Exception behind the message.
        """
        super().error(message if HINT in message else message + self.suggestion(message), ex)

    def print_usage(self, file: Any = None) -> None:
        """Print nothing: hundreds of lines of usage would hide the error."""

    def suggestion(self, message: str) -> str:
        """Suggest a name for the first unknown name in a message.

        Args:
            message: Message of jsonargparse.

        Returns:
            A line, or an empty string if all names are known or nothing is similar.
        """
        known = set(self.known_names())
        mentioned = re.findall(r"(?:'|--|: )([\w.]+)", message)
        for name in dict.fromkeys(mentioned):
            if name not in known and (hint := did_you_mean(name, known, MIN_SIMILARITY)):
                return f"\n{hint.strip()}"
        return ""

    def known_names(self) -> Iterator[str]:
        """Yield the names of options, of the settings of datasets and tasks, and of classes."""
        subcommands = self._subcommands_action.choices.values() if self._subcommands_action else ()
        for parser in (self, *subcommands):
            for action in parser._actions:
                yield action.dest
                yield action.dest.partition(".")[2]
        bases: tuple[type[Any], ...] = (PartialLabelDataModule, Task, Logger, Callback)
        for base in bases:
            for cls in all_subclasses(base):
                yield cls.__name__
                for name in init_parameters(cls):
                    yield from (name, f"data.{name}")


def all_subclasses(cls: type[Any]) -> Iterator[type[Any]]:
    """Yield a class and everything derived from it."""
    yield cls
    for subclass in cls.__subclasses__():
        yield from all_subclasses(subclass)


def init_parameters(cls: type[Any]) -> Iterator[str]:
    """Yield the names of the constructor arguments of a class and its bases."""
    for ancestor in cls.__mro__[:-1]:
        if init := vars(ancestor).get("__init__"):
            yield from inspect.signature(init).parameters


def check_option_groups(options: Namespace, groups: Iterable[str]) -> None:
    """Check that groups of options hold options, not a single value, which jsonargparse accepts.

    Args:
        options: Options of a command.
        groups: Names of the groups.

    Raises:
        ConfigError: A group is a single value.
    """
    for group in sorted(groups):
        if not isinstance(value := options.get(group), Namespace):
            raise ConfigError(f"{group} must hold options, got {json.dumps(value)}. Write {group}: {{...}}.")


def check_no_null(cls: type[Any], options: Namespace | None, group: str) -> None:
    """Check that options which must not be null are not, because jsonargparse accepts null for any of a class.

    Args:
        cls: Class that is built from the options.
        options: Options of the group.
        group: Name of the group.

    Raises:
        ConfigError: An option is null.
    """
    hints: dict[str, Any] = {}
    for ancestor in reversed(cls.__mro__[:-1]):
        with suppress(NameError):  # an annotation may name an import of TYPE_CHECKING
            hints |= get_type_hints(vars(ancestor).get("__init__", object.__init__))
    for key, value in vars(options).items() if options else ():
        if value is None and key in hints and type(None) not in get_args(hints[key]):
            raise ConfigError(f"{group}.{key} must not be null. Leave it out for its default.")
