"""Choice of tasks and overrides of their settings, on the command line and in configs."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from htt_lightning import PASCALContextDataModule
from htt_lightning.callbacks.save_config import SaveConfig
from htt_lightning.cli.entry import main
from htt_lightning.cli.lightning_cli import HTTCLI
from htt_lightning.errors import ConfigError
from htt_lightning.tasks import Edges, HumanParts

PASCAL = ["--config", "pascal_context.yaml", "--data.root", "."]
QUICK = ["--model.backbone", "test_resnet", "--model.pretrained", "false", "--trainer.accelerator", "cpu"]
THIN = {"edges": {"thin_predictions": True}}


pytestmark = pytest.mark.usefixtures("in_empty_folder")


@pytest.fixture
def tasks_of(monkeypatch):
    """Return the tasks that ``fit`` would train, and write the config of the run to ``saved.yaml``."""

    def built(*words):
        found = []

        def note(self, _):
            found.extend(self.datamodule.tasks)
            assert self.model.tasks == found
            (saver,) = (callback for callback in self.trainer.callbacks if isinstance(callback, SaveConfig))
            saver.parser.save(saver.config, "saved.yaml", skip_none=False, overwrite=True, multifile=False)

        monkeypatch.setattr(HTTCLI, "_run_subcommand", note)
        main(["fit", *words, *QUICK])
        return {task.name: task for task in found}

    return built


EDGES = {task.name: task for task in PASCALContextDataModule("unread").tasks}["edges"]


@pytest.mark.parametrize(
    "words",
    [
        ["--data.tasks", "semseg,edges", "--data.task_overrides", "{edges: {thin_predictions: true}}"],
        ["--data.tasks", "[semseg, edges]", "--data.task_overrides.edges", "{thin_predictions: true}"],
        ["--config", "mine.yaml"],
    ],
    ids=["names", "list", "config"],
)
def test_override_keeps_other_settings_of_dataset(tasks_of, words):
    init_args = {"tasks": ["semseg", "edges"], "task_overrides": THIN}
    Path("mine.yaml").write_text(yaml.safe_dump({"data": {"init_args": init_args}}))
    tasks = tasks_of(*PASCAL, *words)
    assert list(tasks) == ["semseg", "edges"]
    assert tasks["edges"] == replace(EDGES, thin_predictions=True)
    assert tasks_of("--config", "saved.yaml") == tasks


def test_task_described_by_class_replaces_task(tasks_of):
    tasks = tasks_of(*PASCAL, "--data.tasks", "[{class_path: Edges, init_args: {tolerance: 0.01}}]")
    assert tasks == {"edges": Edges(tolerance=0.01)}


@pytest.mark.parametrize("inner", [True, False], ids=["dataset", "mixture"])
def test_overrides_work_in_mixtures(tasks_of, inner):
    pascal = {"root": ".", "tasks": "edges"} | ({"task_overrides": THIN} if inner else {})
    parts = [("NYUDDataModule", {"root": ".", "tasks": "depth"}), ("PASCALContextDataModule", pascal)]
    listed = [{"class_path": name, "init_args": arguments} for name, arguments in parts]
    arguments = {"image_size": [32, 48], "datasets": listed} | ({} if inner else {"task_overrides": THIN})
    Path("mixed.yaml").write_text(yaml.safe_dump({"data": {"class_path": "MixedDataModule", "init_args": arguments}}))
    tasks = tasks_of("--config", "mixed.yaml")
    assert list(tasks) == ["depth", "edges"]
    assert tasks["edges"] == replace(EDGES, thin_predictions=True)


def test_overrides_apply_to_task_objects():
    tasks = [HumanParts(loss_weight=3)]
    overrides = {"human_parts": {"absent_classes": "zero", "classes": ["a", "b"]}}
    (parts,) = PASCALContextDataModule("unread", tasks=tasks, task_overrides=overrides).tasks
    assert (parts.loss_weight, parts.absent_classes, parts.classes) == (3, "zero", ("a", "b"))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({"edge": {}}, ["edge", "Did you mean 'edges'"]),
        ({"edges": {"tolerence": 1}}, ["edges", "tolerence", "Did you mean 'tolerance'"]),
        ({"edges": {"name": "x"}}, ["edges", "name"]),
        ({"edges": {"thin_predictions": "maybe"}}, ["edges", "thin_predictions", "maybe"]),
        ({"edges": {"loss_weight": None}}, ["edges.loss_weight", "null"]),
    ],
)
def test_invalid_override_raises(overrides, words):
    with pytest.raises(ConfigError, match=r"data\.task_overrides") as error:
        PASCALContextDataModule("unread", task_overrides=overrides)
    assert all(word in str(error.value) for word in words)
