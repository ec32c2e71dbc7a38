"""The packaged config of every dataset: recipe, and a run from check to test."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from htt_lightning.cli import main
from tests.conftest import ROOT
from tests.data.datasets import folder_tree, pascal_tree, test_cityscapes, test_nyud, test_nyud40
from tests.tiny import BACKBONE

pytestmark = pytest.mark.usefixtures("in_empty_folder")


def cityscapes(root, classes):
    test_cityscapes.write_tree(root, train=8, val=3)
    shutil.rmtree(root / "train" / f"label_{26 - classes}")  # the other classes are not needed
    torch.save({"labels_weights": torch.eye(2).repeat(4, 1)}, "onelabel.pth")  # the published format
    return ["--data.classes", str(classes), "--data.labels", "onelabel.pth", "--data.augment.crop", "[16, 32]"]


def pascal(root):
    pascal_tree.write_tree(root)
    ids = dict(zip(("semseg", "human_parts", "sal", "edge", "normals"), pascal_tree.IDS["train"], strict=False))
    names = {task: [np.str_(ids[task])] if task in ids else [] for task in (*ids, "normals")}
    np.save("onelabel.npy", names, allow_pickle=True)  # the published format
    return ["--data.labels", "onelabel.npy", "--data.augment.crop", "[40, 40]"]


def folder(root):
    folder_tree.write_tree(root, suffix="jpg")
    return ["--data.image_size", "[32, 48]"]


def nyud(root):
    test_nyud.write_tree(root)
    return ["--data.augment.crop", "[24, 32]"]


def nyud40(root):
    test_nyud40.write_tree(root)
    return ["--data.augment.crop", "[36, 48]"]


def documented(path, setting):
    """Return the task overrides that a document shows."""
    return re.search(rf"--data\.task_overrides '(.*{setting}.*)'", (ROOT / path).read_text())[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "write", "metric", "overrides"),
    [
        ("nyud", nyud, "test/semseg/miou", ""),
        ("nyud40", nyud40, "test/edges/ods_f", ""),
        ("cityscapes", lambda root: cityscapes(root, 7), "test/depth/abs_err", ""),
        (
            "cityscapes",
            lambda root: cityscapes(root, 19),
            "test/depth/abs_err",
            documented("configs/cityscapes.yaml", "divide"),
        ),
        ("pascal_context", pascal, "test/edges/ods_f", documented("docs/metrics.md", "thin_predictions")),
        ("folder", folder, "test/normals/mean", ""),
    ],
)
def test_config_checks_fits_validates_and_tests(config, write, metric, overrides, tmp_path):
    root = tmp_path / "data"
    data = ["--config", f"{config}.yaml", "--data.root", str(root), "--data.num_workers", "0", *write(root)]
    options = ["--data.batch_size", "2", "--model.backbone", BACKBONE, "--model.pretrained", "false",
               "--model.token_dim", "8", "--trainer.accelerator", "cpu", "--trainer.max_epochs", "1",
               "--trainer.enable_progress_bar", "false"]  # fmt: skip
    options += ["--data.task_overrides", overrides] if overrides else []
    main(["check", *data])
    main(["fit", *data, *options])
    (checkpoint,) = Path("runs").glob("*/checkpoints/last.ckpt")
    for command in ("validate", "test"):
        main([command, *data, *options, "--ckpt_path", str(checkpoint)])
    (scores,) = Path("runs").glob("*/test_metrics.json")
    assert metric in json.loads(scores.read_text())
    stored = torch.load(checkpoint, weights_only=True)["hyper_parameters"]["tasks"]
    settings = {task["init_args"]["name"]: task["init_args"] for task in stored}
    for task, expected in yaml.safe_load(overrides).items() if overrides else ():
        assert settings[task] | expected == settings[task]


@pytest.mark.parametrize(
    ("config", "epochs", "crop"), [("nyud40", 100, [448, 576]), ("pascal_context", 200, [512, 512])]
)
def test_config_has_the_published_recipe(config, epochs, crop, capsys):
    with pytest.raises(SystemExit):
        main(["fit", "--config", f"{config}.yaml", "--data.root", ".", "--print_config"])
    settings = yaml.safe_load(capsys.readouterr().out)
    data, trainer = settings["data"]["init_args"], settings["trainer"]
    assert data["augment"]["crop"] == crop
    assert (data["batch_size"], data["labels"], settings["model"]["lr"]) == (6, "one-label", 2e-5)
    assert (trainer["max_epochs"], trainer["gradient_clip_val"]) == (epochs, 10)
