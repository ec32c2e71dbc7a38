"""A list in a later config or on the command line replaces an earlier one."""

from pathlib import Path

import pytest
import yaml

from htt_lightning.cli.entry import main
from htt_lightning.cli.lightning_cli import HTTCLI

pytestmark = pytest.mark.usefixtures("in_empty_folder")

QUICK = ["--model.backbone=test_resnet", "--model.pretrained=false", "--trainer.accelerator=cpu"]
SEMSEG = {"class_path": "SemSeg", "init_args": {"classes": ["a", "b"]}}
FIRST = [
    {"task": SEMSEG, "train": "a/{id}.png", "val": "a/{id}.png", "missing_values": [9], "class_offset": -1},
    {"task": "Depth", "train": "d/{id}.png", "missing_values": [7], "scale": 0.001},
]
SECOND = [
    {"task": {"class_path": "SemSeg", "init_args": {"classes": ["c", "d"]}}, "train": "b/{id}.png"},
    {"task": "Normals", "train": "n/{id}.png"},
]
DEFAULTS = {"val": None, "missing_values": None, "class_map": None, "class_offset": 0, "scale": 1.0}


@pytest.fixture
def options(monkeypatch):
    """Options of a command that is built but not run."""
    found = {}
    monkeypatch.setattr(HTTCLI, "_run_subcommand", lambda self, name: found.update(vars(self.config[name]), cli=self))
    return found


def folder(label_files):
    return {"class_path": "FolderDataModule", "init_args": {"root": ".", "label_files": label_files}}


def write(name, config):
    Path(name).write_text(yaml.safe_dump(config))
    return f"--config={name}"


def assert_second(files):
    assert [entry.task.name for entry in files] == ["semseg", "normals"]
    assert files[0].task.classes == ("c", "d")
    for entry in files:
        assert {key: getattr(entry, key) for key in DEFAULTS} == DEFAULTS


@pytest.mark.parametrize("way", ["config", "short", "whole", "option", "init_args"])
def test_label_files_replace_those_of_a_config(options, way):
    paths = {"train": "t/*.png", "val": "v/*.png"}
    first = write("first.yaml", {"data": folder(FIRST) | {"init_args": folder(FIRST)["init_args"] | paths}})
    second = {
        "config": [write("second.yaml", {"data": {"init_args": {"label_files": SECOND}}})],
        "short": ["-c", write("second.yaml", {"data": folder(SECOND)}).removeprefix("--config=")],
        "whole": ["--config", yaml.safe_dump({"data": folder(SECOND)})],
        "option": ["--data.label_files", yaml.safe_dump(SECOND, default_flow_style=True)],
        "init_args": [f"--data.init_args.label_files={yaml.safe_dump(SECOND, default_flow_style=True)}"],
    }
    main(["fit", first, *second[way], *QUICK])
    data = options["cli"].datamodule
    assert_second(data.label_files)
    assert data.images["train"] == "t/*.png"


def test_tasks_replace_those_of_a_config(options):
    tasks = [{"class_path": "Edges", "init_args": {"tolerance": 0.5, "pos_weight": 0.7}}]
    data = {"class_path": "SyntheticDataModule", "init_args": {"tasks": tasks}}
    first = write("first.yaml", {"data": data})
    main(["fit", first, "--data.tasks", "[{class_path: Edges, init_args: {pos_weight: 0.6}}]", *QUICK])
    (edges,) = options["cli"].datamodule.tasks
    assert (edges.pos_weight, edges.tolerance) == (0.6, 0.011)


def test_datasets_of_a_mixture_replace_those_of_a_config(options):
    def mixture(**arguments):
        part = {"class_path": "NYUDDataModule", "init_args": {"root": ".", "labels": "full"} | arguments}
        return {"data": {"class_path": "MixedDataModule", "init_args": {"image_size": [32, 48], "datasets": [part]}}}

    first = write("first.yaml", mixture(labels="random-label", batch_size=3, tasks="depth"))
    main(["fit", first, write("second.yaml", mixture()), *QUICK])
    (part,) = options["cli"].datamodule.datasets
    assert (part.labels, part.batch_size, len(part.tasks)) == ("full", 6, 3)


def test_callbacks_replace_those_of_a_config(options):
    stop = {"class_path": "EarlyStopping", "init_args": {"monitor": "val/depth/abs_err", "patience": 7}}
    first = write("first.yaml", {"trainer": {"callbacks": [stop]}})
    second = {"class_path": "EarlyStopping", "init_args": {"monitor": "train/loss"}}
    main(["fit", first, "--trainer.callbacks", yaml.safe_dump([second], default_flow_style=True), *QUICK])
    (callback,) = (item.init_args for item in options["trainer"].callbacks)
    assert (callback.monitor, callback.patience) == ("train/loss", 3)


def test_settings_of_the_last_callback_can_still_be_set(options):
    stop = {"class_path": "EarlyStopping", "init_args": {"monitor": "train/loss", "mode": "max"}}
    first = write("first.yaml", {"trainer": {"callbacks": [stop]}})
    main(["fit", first, "--trainer.callbacks.patience", "5", *QUICK])
    (callback,) = (item.init_args for item in options["trainer"].callbacks)
    assert (callback.monitor, callback.mode, callback.patience) == ("train/loss", "max", 5)


def test_a_callback_can_still_be_appended(options):
    first = write("first.yaml", {"trainer": {"callbacks": [{"class_path": "DeviceStatsMonitor"}]}})
    words = ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=train/loss"]
    main(["fit", first, *words, *QUICK])
    paths = [item.class_path.rpartition(".")[2] for item in options["trainer"].callbacks]
    assert paths == ["DeviceStatsMonitor", "EarlyStopping"]
