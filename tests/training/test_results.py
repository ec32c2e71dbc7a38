import json
import math

import pytest
import torch
import yaml

from htt_lightning import HTTModule
from htt_lightning.tasks import Depth, MetricSpec
from htt_lightning.training.results import comparable_settings, flatten, labels_name, read_run, training_info
from tests.commands.report.runs import config_of, evaluated_run, fitted_run
from tests.tiny import BACKBONE

MASK = {"format": 1, "protocol": "one-label", "seed": 3, "origin": None, "tasks": [], "labels": {}}


def test_flatten_gives_the_names_of_the_command_line():
    config = {"data": {"class_path": "a.B", "init_args": {"augment": {"p": 0.5}, "tasks": ["semseg"]}}, "seed": 1}
    assert flatten(config) == {"data.class_path": "a.B", "data.augment.p": 0.5, "data.tasks": ["semseg"], "seed": 1}


def test_comparable_settings_leave_out_seeds_and_paths():
    tasks = ["semseg", {"class_path": "htt_lightning.tasks.Edges", "init_args": {"thin_predictions": True}}]
    options = flatten(config_of(seed=1, root="/data", num_workers=4, image_size=[32, 48], tasks=tasks))
    assert comparable_settings(options, ["semseg", "edges"]) == {
        "data": "SyntheticDataModule",
        "data.labels": "one-label",
        "data.image_size": "[32, 48]",
        "data.tasks": "semseg, edges",
        "tasks.Edges.thin_predictions": "true",
        "model.network": "htt",
        "model.lr": "0.001",
        "trainer.max_epochs": "4",
    }


@pytest.mark.parametrize(
    ("option", "labels", "name"),
    [
        ("one-label", None, "one-label"),
        ("one-label", MASK, "one-label"),
        ("runs/version_0/label_mask.json", MASK, "one-label"),
        ("runs/version_0/label_mask.json", MASK | {"seed": 0}, "one-label of seed 0"),
        ("onelabel.pth", MASK | {"seed": None, "origin": "published"}, "one-label (published)"),
        ("masks/mine.json", MASK | {"seed": None, "protocol": "file"}, "mine.json"),
        ("mine.json", None, "mine.json"),
    ],
)
def test_labels_are_named_by_their_protocol(option, labels, name):
    assert labels_name(option, labels, 3) == name


def test_metrics_are_read_back(tmp_path):
    path = fitted_run(tmp_path / "a", {"semseg/pixel_acc": 1.5, "depth/abs_err": None}) / "val_metrics.json"
    metrics = read_run(path, "val").metrics
    assert metrics["semseg/pixel_acc"] == (1.5, MetricSpec("%", True), False, 3)
    assert math.isnan(metrics["depth/abs_err"].value)
    assert metrics["depth/abs_err"][1:] == (MetricSpec("m", False), True, 3)


def test_a_resumed_run_has_equal_settings(tmp_path):
    whole = fitted_run(tmp_path / "a", {"semseg/miou": 1.0}, seed=3)
    resumed = fitted_run(tmp_path / "b", {"semseg/miou": 1.0}, seed=3, labels="a/label_mask.json")
    (resumed / "label_mask.json").write_text(json.dumps(MASK))
    runs = [read_run(folder / "val_metrics.json", "val") for folder in (whole, resumed)]
    assert runs[0].settings == runs[1].settings
    assert runs[0].seed == runs[1].seed == "3"


def test_a_test_without_train_config_is_known_by_its_checkpoint(tmp_path):
    folder = evaluated_run(tmp_path / "a", {"semseg/miou": 1.0}, None)
    (folder / "train_config.yaml").unlink()
    (folder / "config.yaml").write_text(yaml.safe_dump(config_of() | {"ckpt_path": "old.ckpt"}))
    assert read_run(folder / "test_metrics.json", "test").settings["checkpoint"] == "old.ckpt"


def checkpoint(path, **extra):
    path.parent.mkdir(parents=True, exist_ok=True)
    hparams = dict(HTTModule([Depth()], backbone=BACKBONE, token_dim=8).hparams)
    torch.save({"hyper_parameters": hparams, "state_dict": {}, "global_step": 7, "epoch": 0, **extra}, path)
    return path


def test_training_info_is_read_from_the_checkpoint(tmp_path):
    training = {"config": yaml.safe_dump(config_of(seed=5)), "labels": {"protocol": "full", "seed": None}}
    info = training_info(checkpoint(tmp_path / "moved.ckpt", training=training))
    assert (info["config"]["seed_everything"], info["steps"], info["labels"]["protocol"]) == (5, 7, "full")


def test_training_info_falls_back_to_the_run_directory(tmp_path):
    path = checkpoint(tmp_path / "run" / "checkpoints" / "stage_1.ckpt")
    assert training_info(path)["config"] is None
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(config_of(seed=6)))
    (tmp_path / "run" / "label_mask.json").write_text(json.dumps(MASK))
    info = training_info(path)
    assert info["config"]["seed_everything"] == 6
    assert info["labels"] == {"protocol": "one-label", "seed": 3, "origin": None}


def test_teachers_of_other_seeds_have_equal_names(tmp_path):
    names = []
    for seed, labels in ((0, "full"), (1, "full"), (1, "one-label")):
        training = {"config": yaml.safe_dump(config_of(seed=seed, labels=labels)), "labels": None}
        path = checkpoint(tmp_path / f"{seed}_{labels}" / "last.ckpt", training=training)
        names.append(comparable_settings({"discovery.teacher": str(path)}, ["depth"])["discovery.teacher"])
    assert names[0] == names[1] != names[2]
    assert names[0].startswith("last.ckpt #")
    settings = comparable_settings({"discovery.teacher": ["ema", "lost.ckpt"]}, ["depth"])
    assert settings["discovery.teacher"] == "ema, lost.ckpt"
