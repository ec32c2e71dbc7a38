"""Argument parser with suggestions for misspelled names, and checks that jsonargparse leaves out."""

import inspect
import json
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields, is_dataclass
from enum import Enum
from pkgutil import resolve_name
from typing import Any, NoReturn, get_args, get_type_hints

import yaml
from jsonargparse import Namespace, _typehints
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
UNBUILT = re.compile(
    r"class_path '(?P<path>(?:\w+\.)*(?P<cls>\w+))':\s+"
    r"(?:the following arguments are required: (?P<missing>\w+)|Option '(?P<refused>\w+)' is not accepted)"
)
"""jsonargparse on a class that lacks an option, or has none of that name."""
CHOICES = re.compile(r"Literal\[(?P<choices>[^]]*)\][\s\S]*?(?:Given|Got) value: (?P<value>\S+)")
"""Values that an option may have, and the one that it got."""
NO_LIST = re.compile(
    r"(?P<union>Errors:\s+- )?"
    r"Expected a (?:<class '(?:tuple|list|collections\.abc\.Sequence)'>|tuple with (?P<length>\d+) elements)"
    r"(?(union)\s+- Expected a <class 'NoneType'>\s+Given value type: .*\s+Given value: |\. Got value: )(?P<got>.+)"
)
"""jsonargparse on a single value for a list that may also be null, or on a list of another length."""
LONG_VALUE = re.compile(r"\n *Given value type: .*\n *Given value: .{200,}")
"""All options of a class at the end of a message, which hide what is wrong."""


# Defaults of Lightning may be enums, such as that of Timer.interval, which YAML cannot write.
yaml.SafeDumper.add_multi_representer(Enum, lambda dumper, value: dumper.represent_data(value.value))


class SuggestingParser(LightningArgumentParser):
    """Parser whose error messages suggest the most similar name."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print a message of jsonargparse with a suggestion and exit with status 2."""
        # A parser of a nested class knows only the end of an option's name.
        if not (text := self.explanation(message) if self.exit_on_error else ""):
            text = LONG_VALUE.sub("", message)
            text += "" if HINT in text else self.suggestion(text)
        super().error(text, ex)

    def print_usage(self, file: Any = None) -> None:
        """Print nothing: hundreds of lines of usage would hide the error."""

    def explanation(self, message: str) -> str:
        """Return a message for a list option without a list, or an option that is missing or unknown; else nothing."""
        if found := NO_LIST.search(message):
            option, got = ".".join(re.findall(r'Parser key "([\w.]+)"', message[: found.start()])), found["got"]
            if found["length"]:
                return f"{option} must be a list of {found['length']} values, got {got}."
            return f"{option} must be a list, got {got}. Write it in brackets, as in '[{got}, ...]'."
        found = UNBUILT.search(message)
        keys = re.findall(r'Parser key "([\w.]+)"', message[: found.start()]) if found else []
        if found and found["refused"] and is_dataclass(cls := resolve_name(found["path"])):
            name, known = found["refused"], [field.name for field in fields(cls) if field.init]
            if f"dict[str, {cls.__module__}.{found['cls']}]" in message:  # then the key is in the value alone
                keys += re.findall(rf"'(\w+)': {{[^{{}}]*'{name}'", message)[:1]
            hint = did_you_mean(name, known)
            return f"An option of {'.'.join(keys)} must be one of {', '.join(known)}, got {name!r}.{hint}"
        if not found or keys[:1] != ["data"]:
            return ""
        name = found["missing"] or found["refused"]
        option = ".".join([*keys, name])
        if found["missing"]:
            how = f", or give --{option}" if len(keys) == 1 else ""
            return f"{option} must be set for {found['cls']}, got none. Set it in the config{how}."
        if len(keys) == 1 and found["cls"] == "SyntheticDataModule" and option in set(self.known_names()):
            return (
                f"{option} must be an option of the dataset, which is SyntheticDataModule unless --config or --data "
                "names another. Name it, such as --config folder.yaml or --data ImageFolder, or leave the option out."
            )
        return ""

    def suggestion(self, message: str) -> str:
        """Return a line that suggests a value, or a name for the first unknown name in a message, or nothing."""
        if found := CHOICES.search(message):
            hint = did_you_mean(found["value"], re.findall(r"'([^']+)'", found["choices"]), MIN_SIMILARITY)
            return hint and f"\n{hint.strip()}"
        known = set(self.known_names())
        for name in re.findall(r"(?:'|--|: )([\w.]+)", message):
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
        classes: list[type[Any]] = [PartialLabelDataModule, Task, Logger, Callback]
        for cls in classes:
            classes += cls.__subclasses__()  # visited later by this loop
            yield cls.__name__
            for name in inspect.signature(cls.__init__).parameters:
                yield from (name, f"data.{name}")


@contextmanager
def replace_lists() -> Iterator[None]:
    """Replace lists of an earlier config by later ones, whatever they hold.

    jsonargparse takes two lists of classes or dicts of one length for the same entries: those of the second list keep
    the settings of the first ones that they do not name.
    """
    typehints: Any = _typehints  # private: the library has no option for it
    adapt = typehints.adapt_typehints

    def without_previous(value: Any, typehint: Any, *args: Any, **kwargs: Any) -> Any:
        is_new = type(value) in (list, tuple) and not kwargs.get("append")  # an option of a list is a named tuple
        return adapt(value, typehint, *args, **(kwargs | ({"prev_val": None} if is_new else {})))

    typehints.adapt_typehints = without_previous
    try:
        yield
    finally:
        typehints.adapt_typehints = adapt


def check_option_groups(options: Namespace, groups: Iterable[str]) -> None:
    """Check that groups of options hold options, not a single value, which jsonargparse accepts."""
    for group in sorted(groups):
        if not isinstance(value := options.get(group), Namespace):
            raise ConfigError(f"{group} must hold options, got {json.dumps(value)}. Write {group}: {{...}}.")


def check_no_null(cls: type[Any], options: Namespace | None, group: str) -> None:
    """Check that no option of a class is null unless its type allows it; jsonargparse accepts null for any."""
    hints: dict[str, Any] = {}
    for ancestor in reversed(cls.__mro__[:-1]):
        with suppress(NameError):  # an annotation may name an import of TYPE_CHECKING
            hints |= get_type_hints(vars(ancestor).get("__init__", object.__init__))
    for key, value in vars(options).items() if options else ():
        if value is None and key in hints and type(None) not in get_args(hints[key]):
            raise ConfigError(f"{group}.{key} must not be null. Leave it out for its default.")


def check_trainer_options(options: Namespace, command: str | None) -> None:
    """Check that limits and intervals leave a batch, where Lightning does nothing or divides by zero."""
    split = {"fit": "train", "validate": "val", "test": "test", "predict": "predict"}.get(command or "")
    if split and options[limit := f"limit_{split}_batches"] == 0:
        raise ConfigError(f"trainer.{limit} must be above 0 for {command}, got 0.")
    for key in ("check_val_every_n_epoch", "val_check_interval"):
        if isinstance(value := options[key], int | float) and value <= 0:
            raise ConfigError(f"trainer.{key} must be above 0, got {value}. For none, set limit_val_batches to 0.")
