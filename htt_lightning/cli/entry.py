"""Entry point of the program: dispatch of commands, packaged configs and shorthand arguments."""

import inspect
import json
import re
import sys
from collections.abc import Sequence
from importlib import resources
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch.cli import LightningCLI

from htt_lightning.cli.lightning_cli import COMMANDS, HTTCLI, built_objects, summary
from htt_lightning.cli.parser import SuggestingParser
from htt_lightning.cli.quiet import silence_foreign_messages
from htt_lightning.cli.user_errors import error_message, exit_status, find_user_error
from htt_lightning.errors import ConfigError, did_you_mean
from htt_lightning.io.run_directory import CONFIG, RUNS
from htt_lightning.training.results import load_mapping
from htt_lightning.training.resume import BEST, LAST, last_or_best_checkpoint, newest_checkpoint_dir

FIT_OPTIONS = {"ckpt_path", "weights_only"}
"""Options of ``fit`` beside those of trainer, model, data and callbacks, which are in the config of a run."""

POSITIONAL_ARGS: dict[str, dict[str, Any]] = {
    "report": {"folders": {"nargs": "+", "metavar": "DIR", "help": "Runs, or folders that hold runs, such as runs."}},
    "info": {"run": {"nargs": "?", "metavar": "RUN", "help": "Folder of a run, such as runs/version_0."}},
}
"""Parameters of commands that are given without the name of an option."""
CONFIG_SUFFIXES = (".yaml", ".yml", ".json")
"""Ends of the names of files with options."""
CONFIG_OPTION = re.compile(r"(--config=|-c=?)(.+)", re.DOTALL)
"""A config in one word with its option: ``--config=FILE``, ``-c=FILE`` or ``-cFILE``."""
NEGATIVE_POWER = re.compile(r"-[\d.]+e[-+]?\d+", re.IGNORECASE)
"""A negative number such as -1e-3, which argparse takes for an option and not for a value."""


def main(args: Sequence[str] | None = None) -> None:
    """Run a command. A user error ends with one message and status 1.

    Args:
        args: Command line; ``sys.argv`` by default.
    """
    silence_foreign_messages()
    words = sys.argv[1:] if args is None else [str(word) for word in args]
    try:
        words = normalize_args(words)
        if args is None:
            sys.argv[1:] = words  # DDP starts its processes with the same arguments
        if words and words[0] in COMMANDS:
            run_command(words[0], words[1:])
        else:
            HTTCLI(words)
    except (SystemExit, KeyboardInterrupt) as error:
        if (status := exit_status(error)) is None:
            raise
        if words[:1] == ["fit"]:
            print("To go on, run the same command with --ckpt_path auto.", file=sys.stderr)
        sys.exit(status)
    except Exception as error:
        if (user_error := find_user_error(error)) is None:
            raise
        sys.exit(f"error: {error_message(user_error)}")


def run_command(name: str, args: Sequence[str]) -> None:
    """Run a command of this library with the rest of the command line."""
    command, prog = COMMANDS[name], f"{Path(sys.argv[0]).name} {name}"
    if built_objects(command):
        HTTCLI(args, command, prog).run()
        return
    parser = SuggestingParser(prog=prog, description=summary(command))
    positional = POSITIONAL_ARGS.get(name, {})
    for argument, settings in positional.items():
        parser.add_argument(argument, type=str, **settings)
    parser.add_function_arguments(command, as_group=False, skip=set(positional))
    options = parser.parse_args(args).as_dict()
    if (keyword := options.get("ckpt_path")) in (LAST, BEST):
        options["ckpt_path"] = str(last_or_best_checkpoint(keyword, newest_checkpoint_dir(Path(RUNS))))
    command(**options)


def normalize_args(words: Sequence[str]) -> list[str]:
    """Complete a command line: paths of configs, the value of ``--overwrite``, -1e-3, and the default dataset.

    The embedded scenes are the default. As a default of the parser, their image and batch size would carry over to any
    other dataset.
    """
    command, commands = words[0] if words else "", [*LightningCLI.subcommands(), *COMMANDS]
    if command and not command.startswith("-") and command not in commands:
        hint = did_you_mean(command, commands)
        raise ConfigError(f"The command must be one of {', '.join(commands)}, got {command!r}.{hint}")
    full: list[str] = []
    for place, word in enumerate(words):
        if attached := CONFIG_OPTION.fullmatch(word):
            word = attached[1] + command_config(resolve_config(attached[2]), command)
        elif place and words[place - 1] in ("--config", "-c"):
            word = command_config(resolve_config(word), command)
        elif word == "--overwrite" and "".join(words[place + 1 : place + 2]).lower() not in ("true", "false"):
            word = "--overwrite=true"
        elif place > 1 and NEGATIVE_POWER.fullmatch(word) and full[-1].startswith("--"):
            word = f"{full.pop()}={word}"
        full.append(word)
    for word, following in pairwise([*words, ""]):
        option, _, value = word.partition("=")
        if option == "--teachers":
            check_teachers_file(value or following)
    needs_data = built_objects(COMMANDS[command]) if command in COMMANDS else command in LightningCLI.subcommands()
    return [command, default_dataset(full), *full[1:]] if needs_data and not specifies_dataset(full) else full


def default_dataset(words: Sequence[str]) -> str:
    """Return the option for the dataset of a command line without one: that of ``app --run DIR``, else the scenes."""
    for word, following in pairwise([*words, ""]):
        key, _, value = word.partition("=")
        path = Path(value or following) / CONFIG
        if words[0] == "app" and key == "--run" and path.is_file():  # the command itself reports a missing one
            config = load_mapping(path)
            # The label mask depends on the seed.
            return "--config=" + json.dumps({key: config[key] for key in ("seed_everything", "data") if key in config})
    return "--data=SyntheticDataModule"


def command_config(name: str, command: str) -> str:
    """Return the config of a run without the options of ``fit`` alone, as text, for a command of this library.

    So the ``config.yaml`` of a run serves ``check`` and ``discover``. Other configs stay as they are named.
    """
    if command not in COMMANDS or not is_file(name) or not FIT_OPTIONS & (config := read_config(name)).keys():
        return name
    known = inspect.signature(COMMANDS[command]).parameters
    kept = {key: value for key, value in config.items() if key not in FIT_OPTIONS or (key in known and value)}
    return json.dumps(kept)


def is_file(name: str) -> bool:
    """Return whether a config is a file. Other processes get it as text, which may be too long for a name."""
    try:
        return Path(name).is_file()
    except OSError:
        return False


def check_teachers_file(name: str) -> None:
    """Check that a file with teachers, if the value of ``--teachers`` is one, exists and is valid YAML."""
    if Path(name).suffix in CONFIG_SUFFIXES and not is_file(name):
        raise ConfigError(f"--teachers must be a file that exists or options by task, got {name}.")
    read_config(name, "--teachers")


def read_config(name: str, option: str = "--config") -> dict[str, Any]:
    """Read a config, a file or text; empty if it is no mapping, which the parser reports.

    Raises:
        ConfigError: The file is binary, or its syntax is wrong; the parser would not name the file.
    """
    try:
        with Path(name).open(encoding="utf-8") if is_file(name) else StringIO(name) as file:
            config = yaml.safe_load(file)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{option} must be a text file, got {name} ({error}).") from error
    except yaml.YAMLError as error:  # its message has the name of the file and the line
        step = "Indent with spaces, close every bracket and quotation mark, and use no tags (!)."
        raise ConfigError(f"{option} must be valid YAML, got: {' '.join(str(error).split())}. {step}") from error
    except (OSError, ValueError, RecursionError):
        return {}
    return config if isinstance(config, dict) else {}


def specifies_dataset(words: Sequence[str]) -> bool:
    """Return True if a command line, or a config that it names, specifies the dataset; every config is read."""
    found = False
    for word, following in pairwise([*words, ""]):
        found |= word.partition("=")[0] in ("--data", "--data.class_path")
        attached = CONFIG_OPTION.fullmatch(word)
        if attached or word in ("--config", "-c"):
            data = read_config(attached[2] if attached else following).get("data")
            found |= isinstance(data, str) or (isinstance(data, dict) and "class_path" in data)
    return found


def resolve_config(name: str) -> str:
    """Return the path of a config in the working directory or the package; a config given as text stays.

    Raises:
        ConfigError: There is no such file.
    """
    if Path(name).suffix not in CONFIG_SUFFIXES or Path(name).is_file():
        return name
    package = Path(str(resources.files("htt_lightning")))
    folders = (package / "configs", package.parent / "configs")  # of a wheel, of a checkout
    for folder in folders:
        if (folder / name).is_file():
            return str(folder / name)
    files = (
        (file, top) for top in (Path(), *folders) for pattern in ("*.yaml", "*/*.yaml") for file in top.glob(pattern)
    )
    hint = did_you_mean(name, [str(file.relative_to(top)) for file, top in files])
    raise ConfigError(f"--config must be a file in the working directory or the package, got {name}.{hint}")
