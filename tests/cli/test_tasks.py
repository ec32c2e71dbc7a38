"""Tasks that are set up on the command line or in a config keep the dataset's settings where they are given none."""

import sys
from pathlib import Path

import pytest
import yaml

from htt_lightning.cli.entry import HTTCLI, SaveConfig, main
from htt_lightning.tasks import Edges

PASCAL = ["--config", "pascal_context.yaml", "--data.root", "."]
QUICK = ["--model.backbone", "test_resnet", "--model.pretrained", "false", "--trainer.accelerator", "cpu"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["htt"])


@pytest.fixture
def tasks_of(monkeypatch):
    """The tasks that a command would run with; what it would leave beside the run is then in ``saved.yaml``."""

    def built(*words):
        seen = []

        def note(self, _):
            tasks = {task.name: task for task in self.datamodule.tasks}
            assert [task.name for task in self.model.tasks] == list(tasks)
            seen.append(tasks)
            (keep,) = (callback for callback in self.trainer.callbacks if isinstance(callback, SaveConfig))
            keep.parser.save(keep.config, "saved.yaml", skip_none=False, overwrite=True, multifile=False)

        monkeypatch.setattr(HTTCLI, "_run_subcommand", note)
        main(["fit", *words, *QUICK])
        return seen[0]

    return built


PUBLISHED = {"loss_weight": 50, "confidence_threshold": 0.99, "tolerance": 0.0075, "thin_predictions": True}


def check_edges(edges, **changes):
    expected = PUBLISHED | changes
    assert {key: getattr(edges, key) for key in expected} == expected
    assert isinstance(edges, Edges)


def test_in_a_config_only_what_is_given_replaces_the_settings_of_the_dataset(tasks_of):
    described = {"class_path": "Edges", "init_args": {"thin_predictions": True}}
    explicit = {"class_path": "Edges", "init_args": {"thin_predictions": True, "loss_weight": 1.0, "tolerance": 0.011}}
    for task, changes in ((described, {}), (explicit, {"loss_weight": 1, "tolerance": 0.011})):
        Path("mine.yaml").write_text(yaml.safe_dump({"data": {"init_args": {"tasks": ["semseg", task]}}}))
        tasks = tasks_of(*PASCAL, "--config", "mine.yaml")
        assert tasks["semseg"].confidence_threshold == 0.9
        check_edges(tasks["edges"], **changes)
        assert tasks_of("--config", "saved.yaml") == tasks


@pytest.mark.parametrize(
    "words",
    [
        ["--data.tasks", "[semseg, {class_path: Edges, init_args: {thin_predictions: true}}]"],
        ["--data.tasks+", "Edges", "--data.tasks.thin_predictions", "true"],
        [
            "--data.tasks+=semseg",
            "--data.tasks+={class_path: htt_lightning.tasks.Edges, init_args: {thin_predictions: true}}",
        ],
    ],
    ids=["list", "options", "appended"],
)
def test_on_the_command_line_only_what_is_given_replaces_the_settings_of_the_dataset(tasks_of, words):
    tasks = tasks_of(*PASCAL, *words)
    check_edges(tasks["edges"])


def test_a_task_that_is_named_by_its_class_alone_is_the_one_of_the_dataset(tasks_of):
    tasks = tasks_of(*PASCAL, "--data.tasks", "[{class_path: SemSeg}, {class_path: Edges}]")
    assert len(tasks["semseg"].classes) == 21
    check_edges(tasks["edges"], thin_predictions=False)


def test_the_tasks_of_a_part_of_a_mixture_keep_its_settings(tasks_of):
    part = {"class_path": "PASCALContextDataModule", "init_args": {"root": "."}}
    part["init_args"]["tasks"] = [{"class_path": "Edges", "init_args": {"thin_predictions": True}}]
    rooms = {"class_path": "NYUDDataModule", "init_args": {"root": ".", "tasks": "depth"}}
    data = {"class_path": "MixedDataModule", "init_args": {"image_size": [32, 48], "parts": [rooms, part]}}
    Path("mixed.yaml").write_text(yaml.safe_dump({"data": data}))
    tasks = tasks_of("--config", "mixed.yaml")
    assert list(tasks) == ["depth", "edges"]
    check_edges(tasks["edges"])
