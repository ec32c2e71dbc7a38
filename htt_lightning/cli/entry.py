"""One program under three names: ``lightning``, ``htt`` and ``python -m htt_lightning``."""

import sys
from collections.abc import Callable, Iterator, Sequence
from importlib import resources
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, cast

import lightning as L
import yaml
from jsonargparse import Namespace
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_warn
from rich.console import Console

import htt_lightning.data
import htt_lightning.tasks  # noqa: F401  # so that a config may write class_path: Depth
from htt_lightning.callbacks import (
    DiscoveryPanel,
    LabelDiscovery,
    NonFiniteLossGuard,
    PredictionPanel,
    PredictionWriter,
    ResultsTable,
    RunRecord,
)
from htt_lightning.callbacks.save_config import SaveConfig
from htt_lightning.cli.parser import SuggestingParser
from htt_lightning.cli.user_errors import check_no_null, check_option_groups, find_user_error, named
from htt_lightning.commands.export import export
from htt_lightning.commands.info import info
from htt_lightning.commands.report import report
from htt_lightning.data.datamodule import PartialLabelDataModule
from htt_lightning.errors import HTTError, did_you_mean
from htt_lightning.io.checkpoints import read_hyperparameters
from htt_lightning.module import HTTModule
from htt_lightning.training.resume import AUTO, LAST
from htt_lightning.training.signals import exit_status
from htt_lightning.training.trainer import HTTTrainer

ALONE: dict[str, Callable[..., None]] = {"export": export, "report": report, "info": info}
"""Commands that need neither a model nor data, and draw no numbers."""
GIVEN: dict[str, dict[str, Any]] = {
    "report": {"folders": {"nargs": "+", "metavar": "DIR", "help": "Runs, or folders that hold runs, such as runs."}},
    "info": {"run": {"nargs": "?", "metavar": "RUN", "help": "Folder of a run, such as runs/version_0."}},
}
"""Their arguments that come without the name of an option."""
CALLBACKS: dict[str, type[L.Callback]] = {
    "discovery": LabelDiscovery,
    "guard": NonFiniteLossGuard,
    "checkpoint": ModelCheckpoint,
    "panel": PredictionPanel,
    "discovery_panel": DiscoveryPanel,
    "results": ResultsTable,
}
"""Those of every run, by what their options are called."""


class HTTCLI(LightningCLI):
    """LightningCLI with the data's tasks linked to the model, and the callbacks every run has."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Link what two places need, and set up the callbacks of every run under keys of their own."""
        parser.link_arguments("data.tasks", "model.tasks", apply_on="instantiate")
        for key, kind in CALLBACKS.items():
            parser.add_lightning_class_args(kind, key)
        # The last epoch is what is reported (contracts.md, Stages): one file, replaced after every epoch.
        parser.set_defaults({"checkpoint.filename": "last", "checkpoint.enable_version_counter": False})

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Lightning's commands and ours, with the arguments that need no option."""
        own = {"discover": {"model", "datamodule"}, "check": {"datamodule"}}
        return {**LightningCLI.subcommands(), **own, **{name: set(GIVEN.get(name, ())) for name in ALONE}}

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        """Where ``predict`` writes to; and the commands that need neither a model nor data."""
        if subcommand in ALONE:
            given = GIVEN.get(subcommand, {})
            parser = self.init_parser(**kwargs)
            parser.add_function_arguments(ALONE[subcommand], skip=set(given))
            for name, settings in given.items():
                parser.add_argument(name, type=str, **settings)
            return parser
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand == "predict":
            parser.add_lightning_class_args(PredictionWriter, "predictions")
            parser.add_argument("--out", type=str | None, help="Folder for predictions; by default in the run's.")
            parser.add_argument("--overwrite", type=bool, default=False, help="Replace predictions there.")
            parser.link_arguments("out", "predictions.folder")
            parser.link_arguments("overwrite", "predictions.overwrite")
        return parser

    def _parse_ckpt_path(self) -> None:
        """Let a checkpoint's hyperparameters describe the model, and say where they override what was asked for.

        Lightning does this silently, and stumbles over hyperparameters that are linked.
        """
        command = self.config.get("subcommand")
        path = self.config[command].get("ckpt_path") if command and command not in ALONE else None
        if not path or path in ("best", LAST, "hpc", "registry") or (path == AUTO and command == "fit"):
            return
        stored = read_hyperparameters(path, "--ckpt_path")
        asked = self.config[command].model
        known = {
            key: value
            for key, value in stored.items()
            if key in asked and key not in ("tasks", "single_task_baselines")
        }
        defaults = self._parser(command).get_defaults().model
        for key, value in known.items():
            given = asked[key] != defaults[key] or any(word.startswith(f"--model.{key}") for word in self.words)
            if given and asked[key] != value:
                rank_zero_warn(f"model.{key}={asked[key]} gives way to {value!r} of the checkpoint {path}.")
        self.config = self.parser.parse_object({command: {"model": known}}, self.config)

    def _set_seed(self) -> None:
        """Seed whatever draws numbers."""
        if self.subcommand not in ALONE:
            with named("seed_everything"):
                super()._set_seed()

    def before_instantiate_classes(self) -> None:
        """Leave the settings of tasks that nobody has given to the dataset; images alone get the checkpoint's."""
        config = self.config[str(self.subcommand)]
        data = config.get("data", {})
        if "checkpoint" in (arguments := data.get("init_args", {})):
            arguments.checkpoint = arguments.checkpoint or config.get("ckpt_path")
        tasks = list(described_tasks(data))
        if tasks:
            given = self.parser.parse_args(self.words, defaults=False)[str(self.subcommand)].data
            for task, own in zip(tasks, described_tasks(given), strict=True):
                task.pop("init_args", None)
                task.update(own)

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """Lightning's, without a progress bar where nobody looks, unless one is asked for."""
        asked = self._get(self.config, "trainer.enable_progress_bar")
        if asked is None and not Console().is_terminal:
            kwargs["enable_progress_bar"] = False
        with named("trainer"):
            return super().instantiate_trainer(**kwargs)

    def instantiate_classes(self) -> None:
        """Build everything, but for ``check`` and others that fetch no weights and ask for no device."""
        if self.subcommand not in ("check", *ALONE):
            super().instantiate_classes()

    def _run_subcommand(self, subcommand: str) -> None:
        """Run a command; ``check`` on the data alone, whatever its config describes."""
        config = self.config[subcommand]
        if subcommand in ALONE:
            ALONE[subcommand](**{key: value for key, value in config.items() if key != "config"})
            return
        if subcommand != "check":
            super()._run_subcommand(subcommand)
            return
        built = self._parser(subcommand).instantiate_classes({"data": config.data}, instantiate_groups=False)
        HTTTrainer.check(built.data, config.out, config.overwrite, config.images)

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse, keep the words of the command line, and refuse what the parser lets pass to stumble upon it later."""
        self.words = sys.argv[1:] if args is None else [str(word) for word in cast(Sequence[str], args)]
        with named("--config or an option"):
            super().parse_arguments(parser, args)
        if (command := self.config.get("subcommand")) and command not in ALONE:
            given, groups = self.config[command], set(self._parser(command).groups or ()) - {command, "data"}
            check_option_groups(given, groups)
            for key, kind in ({"model": HTTModule} | CALLBACKS).items():
                check_no_null(kind, given.get(key), key)
            if isinstance(data := given.get("data"), Namespace):
                check_no_null(resolve_name(data.class_path), data.get("init_args"), "data")


def described_tasks(data: Namespace) -> Iterator[Namespace]:
    """The tasks in a dataset's config, parts of a mixture included, that are described rather than only named.

    Where the parser fills in defaults, they are those of the task's class, which would replace the dataset's.
    """
    arguments = data.get("init_args", {})
    tasks, parts = arguments.get("tasks"), arguments.get("parts")
    yield from (task for task in tasks if isinstance(task, Namespace)) if isinstance(tasks, list) else ()
    for part in parts if isinstance(parts, list) else ():
        yield from described_tasks(part)


def packaged_config(name: str) -> str:
    """A config's path: the file itself, or the one of that name that comes with the package.

    Args:
        name: What was given to ``--config``.

    Returns:
        ``name`` where such a file exists or the package has none of that name.
    """
    if Path(name).exists() or Path(name).is_absolute():
        return name
    return next((str(folder / name) for folder in config_folders() if (folder / name).is_file()), name)


def config_folders() -> tuple[Path, Path]:
    """Where the package's configs may be: a wheel's place, and a checkout's."""
    package = Path(str(resources.files("htt_lightning")))
    return package / "configs", package.parent / "configs"


def resolve_config(name: str) -> str:
    """A config's path, see ``packaged_config``.

    Raises:
        HTTError: It names a file that is neither here nor in the package.
    """
    path = packaged_config(name)
    if Path(name).suffix in (".yaml", ".yml", ".json") and not Path(path).is_file():
        known = [str(one.relative_to(top)) for top in (Path(), *config_folders()) for one in top.glob("*.yaml")]
        known += [str(one.relative_to(top)) for top in config_folders() for one in top.glob("*/*.yaml")]
        hint = did_you_mean(name, known)
        raise HTTError(f"--config: there is no file {name}, neither here nor in the package.{hint}")
    return path


def specifies_dataset(words: Sequence[str]) -> bool:
    """Whether words of the command line, or a config among them, say which dataset to use.

    The embedded scenes are what is used otherwise. They cannot simply be the parser's default, as it would carry
    their image and batch size over to any other dataset.
    """
    for place, word in enumerate(words):
        key, _, value = word.partition("=")
        if key in ("--data", "--data.class_path"):
            return True
        if key in ("--config", "-c"):
            try:
                data = yaml.safe_load(Path(value or words[place + 1]).read_text())["data"]
            except UnicodeDecodeError as error:  # which the parser would raise bare
                raise HTTError(f"--config {value or words[place + 1]} is no text ({error}).") from error
            except (OSError, IndexError, TypeError, KeyError, ValueError, RecursionError, yaml.YAMLError):
                continue  # if anything is wrong with it, the parser will say so
            if isinstance(data, str) or (isinstance(data, dict) and "class_path" in data):
                return True
    return False


def normalize_args(words: Sequence[str]) -> list[str]:
    """Words of the command line with what may be left out: where a config lies, ``true``, and the embedded scenes.

    Raises:
        HTTError: There is no such command or config.
    """
    command, commands = words[0] if words else "", HTTCLI.subcommands()
    if command and not command.startswith("-") and command not in commands:
        raise HTTError(f"There is no command {command!r}, only {', '.join(commands)}.{did_you_mean(command, commands)}")
    full: list[str] = []
    for place, word in enumerate(words):
        if word.startswith("--config="):
            word = "--config=" + resolve_config(word.removeprefix("--config="))
        elif place and words[place - 1] in ("--config", "-c"):
            word = resolve_config(word)
        elif word == "--overwrite" and "".join(words[place + 1 : place + 2]).lower() not in ("true", "false"):
            word = "--overwrite=true"
        full.append(word)
    return [command, "--data=SyntheticDataModule", *full[1:]] if needs_data(full) else full


def needs_data(words: Sequence[str]) -> bool:
    """Whether a command of ours or Lightning's works on a dataset, and none is named."""
    return bool(words) and words[0] in HTTCLI.subcommands() and words[0] not in ALONE and not specifies_dataset(words)


def main(args: Sequence[str] | None = None) -> None:
    """Run a command; bad input ends with one message and status 1.

    Args:
        args: Words of the command line; ``sys.argv`` by default.
    """
    try:
        words = normalize_args(sys.argv[1:] if args is None else [str(word) for word in args])
        if args is None:
            sys.argv[1:] = words  # processes that DDP starts get the same words
        HTTCLI(
            HTTModule,
            PartialLabelDataModule,
            subclass_mode_data=True,
            auto_configure_optimizers=False,  # one way to set the learning rate: model.lr
            trainer_class=HTTTrainer,
            parser_class=SuggestingParser,
            seed_everything_default=0,
            save_config_callback=SaveConfig,
            trainer_defaults={
                "logger": {"class_path": "CSVLogger", "init_args": {"save_dir": "runs", "name": ""}},
                "callbacks": RunRecord(),
            },
            parser_kwargs={"description": "Multi-task dense prediction from partial labels."},
            args=None if args is None else words,
        )
    except (SystemExit, KeyboardInterrupt) as error:
        if (status := exit_status(error)) is None:
            raise
        sys.exit(status)
    except Exception as error:
        culprit = find_user_error(error)
        if culprit is None:
            raise
        # A loader process wraps the message in its traceback; the last line that names the error begins the message.
        sys.exit("error: " + str(culprit).rpartition("HTTError: ")[2].strip())
