"""Write the page of all options from the parser, when the site is built."""

import argparse
import re
import sys
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

from jsonargparse import ArgumentParser, capture_parser
from mkdocs.structure.files import File, Files

import htt_lightning
from htt_lightning import PartialLabelDataModule, Task, tasks
from htt_lightning.cli import main
from htt_lightning.cli.lightning_cli import COMMANDS
from htt_lightning.data import AugmentConfig, HubRepo, LabelFiles

GROUPS = ("model", "discovery", "guard", "panel", "discovery_panel", "results", "checkpoint", "trainer")
"""Groups of options that every command of Lightning has, besides ``data``."""

INTRO = """\
# Configuration

Generated from the parser. Set an option on the command line, `--model.lr 1e-4`, or in a YAML file, where dots are
levels:

```yaml
model:
  lr: 1.0e-4
```

Options and `--config` files override what comes before them. A config that is not in the working directory is taken
from the package. `htt fit --print_config` prints the whole config of a run, and a run saves it as `config.yaml`. A
class is named by its `class_path`, for the package's own the bare name, and gets its settings as `init_args`. Of
Lightning's options (commands, `checkpoint`, `trainer`) only the first sentence is shown; see
[Lightning's documentation](https://lightning.ai/docs/pytorch/stable/).
"""

DATA = """\
## data

`--data NAME` chooses the dataset, `SyntheticDataModule` by default. `--data.root DIR` is short for
`--data.init_args.root DIR`, and so are all settings below.
"""

TASKS = """\
## data.tasks

A list of names, `[semseg, depth]`. `--data.task_overrides '{edges: {thin_predictions: true}}'` overrides settings of
the dataset's tasks. A class with settings, `{class_path: Depth, init_args: {num_bins: 50}}`, replaces a task; its
defaults are those below.
"""


def command_parsers() -> dict[str, ArgumentParser]:
    """Return the parser of each command, without running one."""

    def captured(*words: str) -> ArgumentParser:
        with patch.object(sys, "argv", ["htt", *words]):
            return capture_parser(main)

    (commands,) = (action for action in captured()._actions if isinstance(action, argparse._SubParsersAction))
    return dict(commands.choices) | {name: captured(name) for name in COMMANDS}


def first_sentence(text: str) -> str:
    """Return the first sentence of a text."""
    return re.split(r"(?<=\.)\s+(?=[A-Z`])", text, maxsplit=1)[0]


def described(parser: ArgumentParser, action: argparse.Action, name: str, brief: bool = False) -> str:
    """Describe an option with its type and default; return "" for one without a value of its own."""
    text = " ".join(parser._get_formatter()._expand_help(action).split())
    found = re.fullmatch(r"(.*?) ?\(((?:required, )?type: .*)\)", text)
    if not found:
        return ""
    words = re.sub(r"^Defaults to ``\w+``\. ", "", found[1])
    words = re.sub(r":\w+:`~?\.?([^`<]*)[^`]*`", r"`\1`", words)  # roles of Sphinx, in Lightning's docstrings
    kind = re.sub(r"<class '(.*?)'>", r"\1", re.sub(r", known subclasses: .*", "", found[2]))
    return f"`{name}`\n:   {first_sentence(words) if brief else words}\n\n    `` {kind} ``\n\n"


def options(parser: ArgumentParser, group: str = "") -> str:
    """Describe the options of a group, or those that belong to none."""
    others, found = (*GROUPS, "data", "predictions", "help", "print_config"), []
    for action in parser._actions:
        mine = action.dest.startswith(f"{group}.") if group else action.dest.partition(".")[0] not in others
        if mine and action.help != argparse.SUPPRESS:
            brief = group in ("", "checkpoint", "trainer")
            name = f"--{action.dest}" if action.option_strings else str(action.metavar)
            found.append(described(parser, action, name, brief))
    return "".join(found)


def classes(base: type) -> Iterator[type]:
    """Iterate over the package's datamodules or tasks."""
    for name in [*htt_lightning.__all__, *tasks.__all__]:
        found = getattr(htt_lightning, name, None) or getattr(tasks, name)
        if isinstance(found, type) and issubclass(found, base) and not getattr(found, "__abstractmethods__", None):
            yield found


def settings(kind: type) -> str:
    """Describe the settings of a class."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(kind, as_group=False, fail_untyped=False)
    own = [action for action in parser._actions if action.dest != "help" and action.help != argparse.SUPPRESS]
    return f"### {kind.__name__}\n\n" + "".join(described(parser, action, action.dest) for action in own)


def reference() -> str:
    """Return the page as Markdown."""
    commands = command_parsers()
    parts = [INTRO, "## Commands\n"]
    parts += [
        f"### {name}\n\n{first_sentence(parser.description)}\n\n{options(parser)}" for name, parser in commands.items()
    ]
    parts += ["### predictions\n\nOptions of `predict`.\n", options(commands["predict"], "predictions"), DATA]
    parts += [settings(kind) for kind in (*classes(PartialLabelDataModule), AugmentConfig, LabelFiles, HubRepo)]
    parts += [TASKS, *(settings(kind) for kind in classes(Task))]
    parts += [f"## {group}\n\n{options(commands['fit'], group)}" for group in GROUPS]
    return "\n".join(parts)


def on_files(files: Files, config: Any) -> Files:
    """Add the page to the site."""
    files.append(File.generated(config, "configuration.md", content=reference()))
    return files
