"""One program under three names: ``lightning``, ``htt`` and ``python -m htt_lightning``."""

import sys
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, cast

import lightning as L
import yaml
from jsonargparse import Namespace
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.utilities import rank_zero_warn

import htt_lightning.data
import htt_lightning.tasks  # noqa: F401  # so that a config may write class_path: Depth
from htt_lightning.callbacks import DiscoveryPanel, LabelDiscovery, PredictionPanel, PredictionWriter, ResultsTable
from htt_lightning.data.base import PartialLabelDataModule
from htt_lightning.errors import HTTError
from htt_lightning.export import export
from htt_lightning.files import atomic_path, read_hyperparameters, run_directory
from htt_lightning.module import HTTModule
from htt_lightning.trainer import HTTTrainer


class HTTCLI(LightningCLI):
    """LightningCLI with the data's tasks linked to the model, and the callbacks every run has."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Link what two places need, and set up the callbacks of every run under keys of their own."""
        parser.link_arguments("data.tasks", "model.tasks", apply_on="instantiate")
        parser.add_lightning_class_args(LabelDiscovery, "discovery")
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        parser.add_lightning_class_args(PredictionPanel, "panel")
        parser.add_lightning_class_args(DiscoveryPanel, "discovery_panel")
        parser.add_lightning_class_args(ResultsTable, "results")
        # The last epoch is what is reported (contracts.md, Stages): one file, replaced after every epoch.
        parser.set_defaults({"checkpoint.filename": "last", "checkpoint.enable_version_counter": False})

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Lightning's commands, ``discover``, ``check`` and ``export``; with the arguments that need no option."""
        own = {"discover": {"model", "datamodule"}, "check": {"datamodule"}, "export": set[str]()}
        return {**LightningCLI.subcommands(), **own}

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        """Where ``predict`` writes to; and ``export``, which a checkpoint tells all else."""
        if subcommand == "export":
            parser = self.init_parser(**kwargs)
            parser.add_function_arguments(export)
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
        path = self.config[command].get("ckpt_path") if command and command != "export" else None
        if not path or path in ("best", "last", "hpc", "registry"):
            return
        stored = read_hyperparameters(path, "--ckpt_path")
        asked = self.config[command].model
        known = {key: value for key, value in stored.items() if key in asked and key not in ("tasks", "single_task")}
        defaults = self._parser(command).get_defaults().model
        for key, value in known.items():
            given = asked[key] != defaults[key] or any(word.startswith(f"--model.{key}") for word in self.words)
            if given and asked[key] != value:
                rank_zero_warn(f"model.{key}={asked[key]} gives way to {value!r} of the checkpoint {path}.")
        self.config = self.parser.parse_object({command: {"model": known}}, self.config)

    def _set_seed(self) -> None:
        """Seed whatever draws numbers, which ``export`` does not."""
        if self.subcommand != "export":
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

    def instantiate_classes(self) -> None:
        """Build everything, but for ``check`` and ``export``, which fetch no weights and ask for no device."""
        if self.subcommand not in ("check", "export"):
            super().instantiate_classes()

    def _run_subcommand(self, subcommand: str) -> None:
        """Run a command; ``check`` on the data alone, whatever its config describes, ``export`` on a checkpoint."""
        config = self.config[subcommand]
        if subcommand == "export":
            export(config.ckpt_path, config.format, config.out, config.overwrite)
            return
        if subcommand != "check":
            super()._run_subcommand(subcommand)
            return
        built = self._parser(subcommand).instantiate_classes({"data": config.data}, instantiate_groups=False)
        HTTTrainer.check(built.data, config.out, config.overwrite, config.images)

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse, and keep the words of the command line."""
        self.words = sys.argv[1:] if args is None else [str(word) for word in cast(Sequence[str], args)]
        super().parse_arguments(parser, args)


class SaveConfig(SaveConfigCallback):
    """Writes ``config.yaml`` into the run directory, whatever the logger; Lightning's may hit a user's own file."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Find the run directory, which all ranks have to ask for together."""
        self.save_to_log_dir, self._folder = False, run_directory(trainer)
        super().setup(trainer, pl_module, stage)

    def save_config(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Write the file, on the first rank alone."""
        if self._folder:
            with atomic_path(self._folder / self.config_filename) as partial:
                self.parser.save(self.config, partial, skip_none=False, overwrite=True, multifile=False)


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
    package = Path(str(resources.files("htt_lightning")))
    for folder in (package / "configs", package.parent / "configs"):  # a wheel's place, and a checkout's
        if (folder / name).is_file():
            return str(folder / name)
    return name


def names_data(words: Sequence[str]) -> bool:
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
                sys.exit(f"error: --config {value or words[place + 1]} is no text ({error}).")
            except (OSError, IndexError, TypeError, KeyError, ValueError, RecursionError, yaml.YAMLError):
                continue  # if anything is wrong with it, the parser will say so
            if isinstance(data, str) or "class_path" in (data or {}):
                return True
    return False


def main(args: Sequence[str] | None = None) -> None:
    """Run a command; bad input ends with one message and status 1.

    Args:
        args: Words of the command line; ``sys.argv`` by default.
    """
    words = sys.argv[1:] if args is None else [str(word) for word in args]
    for place, word in enumerate(words):
        if word.startswith("--config="):
            words[place] = "--config=" + packaged_config(word.removeprefix("--config="))
        elif place and words[place - 1] in ("--config", "-c"):
            words[place] = packaged_config(word)
    if words and words[0] in {*HTTCLI.subcommands()} - {"export"} and not names_data(words):
        words.insert(1, "--data=SyntheticDataModule")
    if args is None:
        sys.argv[1:] = words  # processes that DDP starts get the same words
    try:
        HTTCLI(
            HTTModule,
            PartialLabelDataModule,
            subclass_mode_data=True,
            auto_configure_optimizers=False,  # one way to set the learning rate: model.lr
            trainer_class=HTTTrainer,
            seed_everything_default=0,
            save_config_callback=SaveConfig,
            trainer_defaults={"logger": {"class_path": "CSVLogger", "init_args": {"save_dir": "runs", "name": ""}}},
            parser_kwargs={"description": "Multi-task dense prediction from partial labels."},
            args=None if args is None else words,
        )
    except Exception as error:
        culprit = mendable(error)
        if culprit is None:
            raise
        # A loader process wraps the message in its traceback; the last line that names the error begins the message.
        sys.exit("error: " + str(culprit).rpartition("HTTError: ")[2].strip())


def mendable(error: BaseException | None) -> HTTError | None:
    """The error of ours that an exception comes from: the parser wraps those of the classes it builds.

    Weights & Biases' own, as when nobody is logged in or its server cannot be reached, become one that says what to do.
    """
    while error:
        if isinstance(error, HTTError):
            return error
        if type(error).__module__.startswith("wandb.errors"):  # by name: the package is imported by its logger alone
            return HTTError(
                f"Weights & Biases: {error}\nLog in with `wandb login`, or go without its server: "
                "--trainer.logger.offline true (or WANDB_MODE=offline), and `wandb sync` uploads the run later."
            )
        error = error.__cause__ or error.__context__
    return None
