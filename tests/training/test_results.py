import json

import pytest
import torch
import yaml

from htt_lightning import HTTModule
from htt_lightning.errors import HTTError
from htt_lightning.tasks import Depth
from htt_lightning.training.results import comparable_settings, find_results, flat, labels_name, read_run, training_info
from tests.commands.report.folders import config_of, fitted_run, scored_run
from tests.tiny import BACKBONE

MASK = {"format": 1, "protocol": "one-label", "seed": 3, "origin": None, "tasks": [], "labels": {}}


def test_options_have_the_names_of_the_command_line():
    config = {
        "data": {"class_path": "a.B", "init_args": {"augment": {"hflip_prob": 0.5}, "tasks": ["semseg"]}},
        "seed": 1,
    }
    assert flat(config) == {
        "data.class_path": "a.B",
        "data.augment.hflip_prob": 0.5,
        "data.tasks": ["semseg"],
        "seed": 1,
    }


def test_settings_are_what_may_change_a_figure():
    options = flat(config_of(seed=1, root="/data", num_workers=4, image_size=[32, 48]))
    settings = comparable_settings(options, ["semseg", "depth"])
    assert settings == {
        "data": "SyntheticDataModule",
        "data.labels": "one-label",
        "data.image_size": "[32, 48]",
        "data.tasks": "semseg, depth",
        "model.network": "htt",
        "model.lr": "0.001",
        "trainer.max_epochs": "4",
    }


def test_settings_of_tasks_are_settings():
    described = [
        "semseg",
        {"class_path": "htt_lightning.tasks.Edges", "init_args": {"thin_predictions": True, "loss_weight": 1.0}},
    ]
    settings = comparable_settings(flat(config_of(tasks=described)), ["semseg", "edges"])
    assert settings["tasks.Edges.thin_predictions"] == "true"
    assert settings["tasks.Edges.loss_weight"] == "1.0"


@pytest.mark.parametrize(
    ("given", "drawn", "name"),
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
def test_masks_are_called_by_how_they_were_drawn(given, drawn, name):
    assert labels_name(given, drawn, 3) == name


def test_a_resumed_run_has_the_settings_of_one_in_one_go(tmp_path):
    whole = fitted_run(tmp_path / "a", {"semseg/miou": 1.0}, seed=3)
    resumed = fitted_run(tmp_path / "b", {"semseg/miou": 1.0}, seed=3, labels="a/label_mask.json")
    (resumed / "label_mask.json").write_text(json.dumps(MASK))
    runs = [read_run(folder / "val_metrics.json", "val") for folder in (whole, resumed)]
    assert runs[0].settings == runs[1].settings
    assert runs[0].seed == runs[1].seed == "3"


def test_a_test_without_a_note_of_the_training_is_told_apart_by_its_checkpoint(tmp_path):
    folder = scored_run(tmp_path / "a", {"semseg/miou": 1.0}, None)
    (folder / "train_config.yaml").unlink()
    config = config_of() | {"ckpt_path": "old.ckpt"}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    assert read_run(folder / "test_metrics.json", "test").settings["checkpoint"] == "old.ckpt"


def checkpoint(path, **noted):
    path.parent.mkdir(parents=True, exist_ok=True)
    described = dict(HTTModule([Depth()], backbone=BACKBONE, token_dim=8).hparams)
    torch.save({"hyper_parameters": described, "state_dict": {}, "global_step": 7, "epoch": 0, **noted}, path)
    return path


def test_a_checkpoint_says_how_it_was_trained_wherever_it_lies(tmp_path):
    noted = {"config": yaml.safe_dump(config_of(seed=5)), "labels": {"protocol": "full", "seed": None, "origin": None}}
    found = training_info(checkpoint(tmp_path / "moved.ckpt", training=noted))
    assert (found["config"]["seed_everything"], found["steps"]) == (5, 7)
    assert found["labels"]["protocol"] == "full"


def test_a_checkpoint_of_weights_alone_is_described_by_what_lies_beside_it(tmp_path):
    path = checkpoint(tmp_path / "run" / "checkpoints" / "stage_1.ckpt")
    assert training_info(path)["config"] is None
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(config_of(seed=6)))
    (tmp_path / "run" / "label_mask.json").write_text(json.dumps(MASK))
    found = training_info(path)
    assert found["config"]["seed_everything"] == 6
    assert found["labels"] == {"protocol": "one-label", "seed": 3, "origin": None}


def test_results_are_found_below_a_folder(tmp_path):
    fitted_run(tmp_path / "x" / "a", {})
    scored_run(tmp_path / "y", {}, None)
    found = list(find_results(tmp_path))
    assert found == [(tmp_path / "x/a/val_metrics.json", "val"), (tmp_path / "y/test_metrics.json", "test")]
    with pytest.raises(HTTError, match="no folder"):
        list(find_results(tmp_path / "z"))


def test_teachers_of_other_seeds_have_one_name(tmp_path):
    names = []
    for seed, labels in ((0, "full"), (1, "full"), (1, "one-label")):
        noted = {"config": yaml.safe_dump(config_of(seed=seed, labels=labels)), "labels": None}
        path = checkpoint(tmp_path / f"{seed}_{labels}" / "last.ckpt", training=noted)
        names.append(comparable_settings(flat({"discovery": {"teacher": str(path)}}), ["depth"])["discovery.teacher"])
    assert names[0] == names[1] != names[2]
    assert names[0].startswith("last.ckpt #")
    kept = comparable_settings({"discovery.teacher": ["ema", "lost.ckpt"]}, ["depth"])
    assert kept["discovery.teacher"] == "ema, lost.ckpt"
