"""What is nearest to a name on the command line or in a config that nobody knows."""

import inspect
import re
from collections.abc import Iterator
from typing import Any, NoReturn

from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.loggers import Logger

from htt_lightning.data import PartialLabelDataModule
from htt_lightning.errors import did_you_mean
from htt_lightning.tasks import Task

HINT = "Did you mean"
"""How a hint begins: parsers of parts have added theirs to the message of the whole."""
ALIKE = 0.75
"""How alike a name has to be to one that the parser's message holds."""


class SuggestingParser(LightningArgumentParser):
    """A parser that ends its message with what is nearest to a name that it does not know."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """See jsonargparse: prints the message and exits with status 2."""
        super().error(message if HINT in message else message + self.hint(message), ex)

    def print_usage(self, file: Any = None) -> None:
        """Nothing: an error would be lost below the hundreds of lines of a command, and says where to read them."""

    def hint(self, message: str) -> str:
        """What a name in a message may have been meant to be; nothing where all of them are known, or unlike any."""
        known = set(self.names())
        said = re.findall(r"(?:'|--|: )([\w.]+)", message)
        for name in dict.fromkeys(said):
            if name not in known and (found := did_you_mean(name, known, ALIKE)):
                return f"\n{found.strip()}"
        return ""

    def names(self) -> Iterator[str]:
        """Options of this command or, for the program, of all of them; settings of datasets and tasks; classes."""
        for parser in (self, *self._subcommand_parsers()):
            for action in parser._actions:
                yield action.dest
                yield action.dest.partition(".")[2]
        bases: tuple[type[Any], ...] = (PartialLabelDataModule, Task, Logger, Callback)
        for base in bases:
            for kind in below(base):
                yield kind.__name__
                for name in arguments(kind):
                    yield from (name, f"data.{name}")

    def _subcommand_parsers(self) -> list[Any]:
        action = self._subcommands_action
        return list(action.choices.values()) if action else []


def below(base: type[Any]) -> Iterator[type[Any]]:
    """A class and all that are derived from it."""
    yield base
    for kind in base.__subclasses__():
        yield from below(kind)


def arguments(kind: type[Any]) -> Iterator[str]:
    """Names that a class and those it is derived from are made with."""
    for ancestor in kind.__mro__[:-1]:
        if made := vars(ancestor).get("__init__"):
            yield from inspect.signature(made).parameters
