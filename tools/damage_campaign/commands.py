"""Commands and their configs as readers."""

import contextlib
import io
from pathlib import Path
from typing import Any
from unittest.mock import patch

import yaml

from htt_lightning.cli.entry import main
from htt_lightning.cli.lightning_cli import HTTCLI
from tests.tiny import BACKBONE
from tools.damage_campaign.damage import ANY
from tools.damage_campaign.formats import TEXTS, nested
from tools.damage_campaign.reader import OPEN, Reader, Target, Values


class Ended(Exception):
    """A command ended with an error message."""


def command(*words: str) -> None:
    """Run a command silently; its error message becomes an exception."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
            main(list(words))
    except SystemExit as end:
        if end.code:
            text = end.code if isinstance(end.code, str) else said.getvalue()
            raise Ended(text[text.rfind("error: ") :]) from None


CONFIG: dict[str, Any] = {
    "seed_everything": 0,
    "trainer": {"max_epochs": 1, "accelerator": "cpu", "logger": False, "enable_progress_bar": False},
    "model": {"backbone": BACKBONE, "token_dim": 8, "lr": 0.001,
              "single_task_baselines": {"depth": 0.5, "semseg": 30.0}},
    "discovery": {"stages": 1, "confidence_thresholds": {"depth": 0.9}, "loss_weights": {"pseudo_label": 1.0}},
    "data": {
        "class_path": "SyntheticDataModule",
        "init_args": {
            "train_images": 6, "val_images": 2, "image_size": [32, 48], "batch_size": 2, "num_workers": 0,
            "labels": "random-label", "cache": None, "tasks": ["depth", "semseg"], "augment": {"hflip_prob": 0.5},
        },
    },
}  # fmt: skip


def write_yaml(value: Any, path: Path) -> None:
    """Write a config."""
    path.write_text(yaml.safe_dump(value))


def read_config(root: Path) -> Values:
    """Build the objects of a config, without running a command."""
    built: dict[str, Any] = {}

    def keep(cli: HTTCLI, subcommand: str) -> None:
        built.update(config=str(cli.config[subcommand].as_dict()))

    with patch.object(HTTCLI, "_run_subcommand", keep):
        command("fit", "--config", str(root / "run.yaml"))
    return built


COMMANDS = [
    Reader(
        "YAML config",
        lambda root: write_yaml(CONFIG, root / "run.yaml"),
        read_config,
        [Target("run.yaml", [*ANY, *TEXTS, *nested(CONFIG, write_yaml, 4)], OPEN)],
        speaks=("config", "key", "model.", "data.", "augment.", "option", "discovery.", "trainer:"),
        slow=True,
    )
]
