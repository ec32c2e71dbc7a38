"""LightningCLI with this library's classes."""

import inspect
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import lightning as L
from jsonargparse import Namespace
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, LRSchedulerTypeTuple
from lightning.pytorch.utilities import rank_zero_warn
from rich.console import Console
from torch.optim import Optimizer

import htt_lightning.tasks  # noqa: F401  # a config may then name a task by its class name alone
from htt_lightning.callbacks import (
    DiscoveryPanel,
    LabelDiscovery,
    NonFiniteLossGuard,
    PredictionPanel,
    PredictionWriter,
    ResultsTable,
    RunCheckpoint,
    RunRecord,
)
from htt_lightning.callbacks.monitors import resolve_monitors
from htt_lightning.callbacks.save_config import SaveConfig
from htt_lightning.cli.parser import (
    SuggestingParser,
    check_no_null,
    check_option_groups,
    check_trainer_options,
    replace_lists,
)
from htt_lightning.cli.user_errors import blame_option
from htt_lightning.commands.app.command import app
from htt_lightning.commands.check.command import check
from htt_lightning.commands.discover import discover
from htt_lightning.commands.export import export
from htt_lightning.commands.info import info
from htt_lightning.commands.report import report
from htt_lightning.data import PartialLabelDataModule
from htt_lightning.errors import ConfigError
from htt_lightning.io.checkpoints import read_checkpoint
from htt_lightning.io.run_directory import CHECKPOINTS, RUN_RECORD, RUNS
from htt_lightning.module import HTTModule
from htt_lightning.training.resume import AUTO, BEST, LAST, last_or_best_checkpoint, newest_checkpoint_dir
from htt_lightning.training.trainer import HTTTrainer

COMMANDS: dict[str, Callable[..., None]] = {
    "app": app,
    "discover": discover,
    "check": check,
    "export": export,
    "info": info,
    "report": report,
}
"""Commands of this library. Parameters become options; a trainer, model or datamodule is built from options."""
CALLBACKS: dict[str, type[L.Callback]] = {
    "discovery": LabelDiscovery,
    "guard": NonFiniteLossGuard,
    "checkpoint": RunCheckpoint,
    "panel": PredictionPanel,
    "discovery_panel": DiscoveryPanel,
    "results": ResultsTable,
}
"""Callbacks of every run, by the name of their group of options."""

CLASSES = ("optimizer", "lr_scheduler")
"""Options of classes that the module builds for each stage."""


def built_objects(command: Callable[..., None]) -> list[str]:
    """Return the parameters of a command that are built from options: some of trainer, model and datamodule."""
    return [name for name in inspect.signature(command).parameters if name in ("trainer", "model", "datamodule")]


class HTTCLI(LightningCLI):
    """LightningCLI with the tasks of the data linked to the model, and the callbacks of every run.

    Args:
        args: Command line. It starts with a command of Lightning, unless ``command`` is given.
        command: Command of this library: a function whose other parameters become options. Run it with ``run``.
        prog: Name of the program in messages; by default that of the process.
    """

    def __init__(
        self, args: Sequence[str], command: Callable[..., None] | None = None, prog: str | None = None
    ) -> None:
        self.words, self.command = list(args), command
        description = summary(command) if command else "Multi-task dense prediction from partial labels."
        super().__init__(
            HTTModule,
            PartialLabelDataModule,
            run=command is None,
            subclass_mode_data=True,
            auto_configure_optimizers=False,  # the module makes them for each stage
            trainer_class=HTTTrainer,
            parser_class=SuggestingParser,
            seed_everything_default=0,
            save_config_callback=SaveConfig,
            trainer_defaults={
                "logger": {"class_path": "CSVLogger", "init_args": {"save_dir": RUNS, "name": ""}},
                "callbacks": RunRecord(),
                "enable_model_summary": False,  # its layers are those of every run, and its FLOPs are 0
            },
            parser_kwargs={"description": description, "prog": prog},
            args=self.words,
        )

    @property
    def options(self) -> Namespace:
        """Parsed options of the command."""
        options: Namespace = self.config if self.command else self.config[self.config.subcommand]
        return options

    def run(self) -> None:
        """Run ``command`` with the objects and options that were built and parsed for it."""
        assert self.command is not None
        objects = {name: getattr(self, name) for name in built_objects(self.command)}
        self.command(**objects, **{name: self.built[name] for name in self._command_arguments})

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the link of the tasks, the groups of the callbacks, and the options of ``command``."""
        parser.link_arguments("data.tasks", "model.tasks", apply_on="instantiate")
        parser.add_optimizer_args((Optimizer,))
        parser.add_lr_scheduler_args(LRSchedulerTypeTuple)
        for key in CLASSES:
            parser.link_arguments(key, f"model.{key}", compute_fn=to_plain, apply_on="instantiate")
        for key, cls in CALLBACKS.items():
            parser.add_lightning_class_args(cls, key)
        if self.command:
            objects: set[str | int] = {*built_objects(self.command)}
            self._command_arguments = parser.add_function_arguments(
                self.command, as_group=False, skip=objects, sub_configs=True
            )

    def _add_subcommands(self, parser: LightningArgumentParser, **kwargs: Any) -> None:
        """List the commands of this library beside Lightning's; they are dispatched before this parser."""
        super()._add_subcommands(parser, **kwargs)
        action: Any = parser._subcommands_action
        for name, command in COMMANDS.items():
            action.add_subcommand(name, SuggestingParser(), help=summary(command))

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        """Add the output options of ``predict``; leave out all options where the command line names another command."""
        command = "".join(self.words[:1])
        if command in self.subcommands() and command != subcommand:  # all options of four would double the start
            self._subcommand_method_arguments[subcommand] = []
            return self.init_parser(**kwargs)
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand == "predict":
            parser.add_lightning_class_args(PredictionWriter, "predictions")
            parser.add_argument("--out", type=str | None, help="Folder for predictions; by default that of the run.")
            parser.add_argument("--overwrite", type=bool, default=False, help="If true, existing files are replaced.")
            parser.link_arguments("out", "predictions.folder")
            parser.link_arguments("overwrite", "predictions.overwrite")
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse the command line, and check values that jsonargparse accepts and later code would not."""
        with blame_option("--config or an option"), replace_lists():
            self.config = parser.parse_args(self.words)
        command = self.config.get("subcommand")
        check_option_groups(self.options, set(self._parser(command).groups or ()) - {"data", *CLASSES, command})
        if "trainer" in self.options:
            check_trainer_options(self.options.trainer, command)
        self._check_optimizer_words()
        for key, cls in ({"model": HTTModule} | CALLBACKS).items():
            check_no_null(cls, self.options.get(key), key)
        if isinstance(data := self.options.get("data"), Namespace):
            check_no_null(resolve_name(data.class_path), data.get("init_args"), "data")

    def _check_optimizer_words(self) -> None:
        """Refuse options of the default optimizer or schedule beside another one, which would ignore them."""
        replaced = {"lr": "optimizer", "weight_decay": "optimizer", "poly_power": "lr_scheduler"}
        for key, option in replaced.items():
            given = any(re.match(rf"--model\.{key}(?!\w)", word) for word in self.words)
            if given and (spec := self.options.get(option)) is not None:
                raise ConfigError(
                    f"--model.{key} must be left out with --{option} {spec.class_path}. Set its own options."
                )

    def _parse_ckpt_path(self) -> None:
        """Take the model's options from the checkpoint, and warn about given ones that it overrides.

        Lightning does so silently, and fails on options that are linked.
        """
        command, path = self.config.get("subcommand"), self.options.get("ckpt_path")
        if (command in (None, "fit") and not path) or (command == "fit" and path in (AUTO, LAST)):
            return
        path = self.options.ckpt_path = self._find_checkpoint(command, path)
        options, defaults = self.options.model, self._parser(command).get_defaults().model
        hyperparameters = read_checkpoint(path, "--ckpt_path")["hyper_parameters"]
        known = {*vars(options), *CLASSES} - {"tasks", "single_task_baselines"}
        stored = {key: value for key, value in hyperparameters.items() if key in known}
        if spec := stored.get("optimizer"):  # a module keeps the learning rate apart
            stored["optimizer"] = {**spec, "init_args": {**spec["init_args"], "lr": stored["lr"]}}
        for key, value in stored.items():
            option, given, default = f"model.{key}", options.get(key), defaults.get(key)
            if key in CLASSES:
                option, given, default = key, to_plain(self.options.get(key)), None
            in_words = any(re.match(rf"--{option}(?!\w)", word) for word in self.words)
            if key == "lr" and stored.get("optimizer"):  # compared as a part of the optimizer
                continue
            if given != value and (in_words or given != default):
                place = "on the command line" if in_words else "in a config"
                rank_zero_warn(f"Using {option}={value} from {path}; ignoring {given} given {place}.")
        linked = {key: stored.pop(key) for key in CLASSES if key in stored}
        found = {"model": stored} | linked
        self.config = self.parser.parse_object({command: found} if command else found, self.config)

    def _find_checkpoint(self, command: str | None, path: str | None) -> str:
        """Return the path of the checkpoint, also of the last or best one of a run."""
        keywords = (AUTO, LAST) if command == "fit" else (LAST, BEST)
        if not path or path in {AUTO, LAST, BEST, "hpc", "registry"}.difference(keywords):
            step = "" if path else " Without one the network is untrained."
            raise ConfigError(f"--ckpt_path must be a file, {' or '.join(keywords)}, got {path or 'none'}.{step}")
        if path not in keywords:
            return str(path)
        return str(last_or_best_checkpoint(path, self._checkpoint_dir()))

    def _checkpoint_dir(self) -> Path:
        """Find the checkpoints of the run that ``run`` or a config names, or else of the newest run of the loggers."""
        if folder := self.options.checkpoint.dirpath:
            return Path(folder)
        if run := self.options.get("run"):
            return Path(run) / CHECKPOINTS
        for config in reversed(self.options.get("config") or []):
            run = Path(str(config)).parent if str(config).endswith((".yaml", ".yml")) else Path()  # not text
            if (run / RUN_RECORD).is_file() or (run / CHECKPOINTS).is_dir():
                return run / CHECKPOINTS
        loggers = self.options.trainer.logger
        single = next(iter(loggers), None) if isinstance(loggers, list) else loggers
        arguments = single.get("init_args", {}) if isinstance(single, Namespace) else {}
        return newest_checkpoint_dir(Path(arguments.get("save_dir") or self.options.trainer.default_root_dir or "."))

    def before_fit(self) -> None:
        """Check what callbacks monitor, before anything is written."""
        resolve_monitors(self.trainer, self.model, self.datamodule)

    def _set_seed(self) -> None:
        """Seed all random generators."""
        with blame_option("seed_everything"):
            super()._set_seed()

    def before_instantiate_classes(self) -> None:
        """Give a datamodule of images alone the checkpoint, which holds its tasks and image size."""
        arguments = self.options.get("data", {}).get("init_args", {})
        if "checkpoint" in arguments:
            arguments.checkpoint = arguments.checkpoint or self.options.get("ckpt_path")

    def instantiate_classes(self) -> None:
        """Build trainer, model and datamodule, or the datamodule alone for a command that needs no more."""
        if self.command and built_objects(self.command) == ["datamodule"]:
            options = {key: self.options.get(key) for key in ("data", *CLASSES)}  # others are linked to them
            self.datamodule = self.parser.instantiate_classes(options, instantiate_groups=False).data
            self.built = self.options
        else:
            super().instantiate_classes()
            self.built = self.config_init

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """Build the trainer, by default without a progress bar outside a terminal."""
        if self._get(self.config, "trainer.enable_progress_bar") is None and not Console().is_terminal:
            kwargs["enable_progress_bar"] = False
        with blame_option("trainer"):
            return super().instantiate_trainer(**kwargs)


def to_plain(spec: Namespace | None) -> dict[str, Any] | None:
    """Return the class and arguments of an option as plain values, with lists for tuples."""
    if spec is None:
        return None
    arguments: dict[str, Any] = spec.as_dict().get("init_args") or {}
    plain = {key: list(value) if isinstance(value, tuple) else value for key, value in arguments.items()}
    return {"class_path": spec.class_path, "init_args": plain}


def summary(command: Callable[..., None]) -> str:
    """Return the first paragraph of the docstring of a command."""
    return " ".join((inspect.getdoc(command) or "").partition("\n\n")[0].split())
