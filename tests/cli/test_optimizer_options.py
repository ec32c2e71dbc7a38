"""Optimizer and schedule on the command line."""

import json
from pathlib import Path

import pytest
import torch
import yaml

from htt_lightning.cli.entry import main
from tests.cli.test_entry import SCENES, TINY, words_of

pytestmark = pytest.mark.usefixtures("in_empty_folder")
DEPTH = {"--data.tasks": "depth", "--data.labels": "full", "--trainer.limit_val_batches": "0"}
OPTIONS = {
    "--optimizer": "torch.optim.AdamW",
    "--optimizer.lr": "1e-4",
    "--optimizer.weight_decay": "0.05",
    "--lr_scheduler": "CosineAnnealingLR",
    "--lr_scheduler.T_max": "5",
    "--model.warmup": "1",
}


def htt(command, *words, **over):
    options = TINY | SCENES | DEPTH | {key.replace("__", "."): value for key, value in over.items()}
    main([command, "--config", "synthetic.yaml", *words, *words_of(options)])


def checkpoint():
    path = max(Path("runs").glob("version_*")) / "checkpoints" / "last.ckpt"
    return path, torch.load(path, weights_only=True)


def test_optimizer_of_options_trains_resumes_and_is_tested():
    htt("fit", *words_of(OPTIONS))
    path, first = checkpoint()
    (group,) = first["optimizer_states"][0]["param_groups"]
    assert (group["weight_decay"], group["initial_lr"]) == (0.05, 1e-4)
    config = yaml.safe_load((path.parents[1] / "config.yaml").read_text())
    assert config["optimizer"]["class_path"] == "torch.optim.AdamW"
    assert config["lr_scheduler"]["init_args"]["T_max"] == 5
    htt("fit", "--ckpt_path", str(path), **{"--trainer__max_epochs": "2"})  # the checkpoint has the options
    path, second = checkpoint()
    assert second["epoch"] == 1
    assert second["hyper_parameters"] == first["hyper_parameters"]
    assert second["optimizer_states"][0]["param_groups"][0]["weight_decay"] == 0.05
    main(["test", "--config", str(path.parents[1] / "config.yaml"), "--ckpt_path", str(path)])
    metrics = json.loads((max(Path("runs").glob("version_*")) / "test_metrics.json").read_text())
    assert "test/depth/abs_err" in metrics
    main(["export", "--ckpt_path", str(path), "--format", "safetensors", "--out", "net.safetensors"])
    assert Path("net.safetensors").is_file()


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (["--model.lr", "1e-3", "--optimizer", "torch.optim.AdamW"], "--model.lr must be left out with --optimizer"),
        (["--model.weight_decay=0", "--optimizer=SGD"], "--model.weight_decay must be left out with --optimizer"),
        (
            ["--model.poly_power", "1", "--lr_scheduler", "CosineAnnealingLR", "--lr_scheduler.T_max", "5"],
            "--model.poly_power must be left out with --lr_scheduler",
        ),
    ],
)
def test_option_of_the_default_is_refused_beside_another(words, option):
    with pytest.raises(SystemExit, match=option):
        htt("fit", *words)
