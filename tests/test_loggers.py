"""Loggers other than the default one, and images in all of them."""

import io
import sys
from pathlib import Path

import numpy as np
import pytest
import wandb
from PIL import Image

from htt_lightning.cli import main
from tests.cli.test_entry import printed_config
from tests.conftest import ROOT
from tests.tiny import BACKBONE, SCENES

IMAGES = {"panel": "panels", "discovery": "discovery", "affinity": "affinity"}
"""Names of the images in loggers, and their folders in a run."""

SETTINGS = {
    "model.backbone": BACKBONE,
    "model.token_dim": 8,
    "data.tasks": "[semseg,depth]",
    "data.labels": "random-label",
    "data.image_size": "[32,48]",
    "data.train_images": 12,
    "data.val_images": 4,
    "data.batch_size": 4,
    "data.cache": SCENES.name,
    "data.num_workers": 0,
    "trainer.accelerator": "cpu",
    "trainer.max_epochs": 1,
    "trainer.enable_progress_bar": "false",
    "trainer.enable_model_summary": "false",
}


@pytest.fixture(autouse=True)
def not_interactive(monkeypatch, in_empty_folder, logged_out):
    """Make Weights & Biases fail where it would ask for a login."""
    monkeypatch.setattr(sys, "stdin", io.StringIO())


def fit(*words, **changes):
    settings = SETTINGS | {key.replace("__", "."): value for key, value in changes.items()}
    main(["fit", *words, *(f"--{key}={value}" for key, value in settings.items())])


def pixels(path):
    return np.asarray(Image.open(path))


def images_in_run(run, epoch):
    """Return the images of an epoch in the folder of a run."""
    return {key: pixels(run / folder / f"epoch_{epoch:03d}.png") for key, folder in IMAGES.items()}


def logged_images(folder, key):
    """Return the images of one name in a folder of Weights & Biases."""
    return [pixels(path) for path in (folder / "files/media/images").glob(f"{key}_*.png")]


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_wandb_config_changes_logger_only(path, capsys):
    dataset = ["--config=nyud.yaml"] if path.stem == "mtan" else []  # a config of augmentation
    words = [*dataset, f"--config={path.name}", *([] if path.stem in ("demo", "synthetic") else ["--data.root=."])]
    default, logged = printed_config(capsys, *words), printed_config(capsys, *words, "--config=loggers/wandb.yaml")
    logger = logged["trainer"].pop("logger")
    assert logger["class_path"].endswith(".WandbLogger")
    assert logger["init_args"]["save_dir"] == "runs"
    assert default["trainer"].pop("logger")["class_path"].endswith(".CSVLogger")
    assert logged == default


def test_dataset_config_keeps_earlier_logger(capsys):
    config = printed_config(capsys, "--config=loggers/wandb.yaml", "--config=nyud.yaml", "--data.root=.")
    arguments = config["trainer"]["logger"]["init_args"]
    assert (arguments["project"], arguments["name"], arguments["id"]) == ("htt-lightning", None, None)


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")  # the run is resumed
def test_wandb_logs_images_offline_and_resumes_run():
    words = ["--config=loggers/wandb.yaml", "--trainer.logger.offline=true", "--trainer.logger.id=abc123"]
    fit(*words)
    wandb.finish()
    run = Path("runs/htt-lightning/abc123")
    (first,) = Path("runs/wandb").glob("offline-run-*-abc123")
    for key, image in images_in_run(run, 1).items():
        assert any(np.array_equal(logged, image) for logged in logged_images(first, key)), key

    checkpoint = run / "checkpoints" / "last.ckpt"
    fit(*words, f"--ckpt_path={checkpoint}", data__labels=run / "label_mask.json", trainer__max_epochs=2)
    wandb.finish()
    assert [path.name for path in run.parent.iterdir()] == ["abc123"]
    assert sorted(path.name for path in (run / "panels").iterdir()) == [f"epoch_{k:03d}.png" for k in range(3)]
    (second,) = set(Path("runs/wandb").glob("offline-run-*-abc123")) - {first}
    for key, image in images_in_run(run, 2).items():  # the only new epoch
        (logged,) = logged_images(second, key)
        assert np.array_equal(logged, image), key


@pytest.mark.parametrize("words", [[], ["--config=loggers/tensorboard.yaml"]], ids=["csv", "tensorboard"])
def test_logger_gets_metrics_and_images(words):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    fit(*words)
    (run,) = Path("runs").iterdir()
    assert run.name == "version_0"
    assert all(image.ndim == 3 for image in images_in_run(run, 1).values())
    assert (run / "val_metrics.json").is_file()
    if words:
        tags = EventAccumulator(str(run)).Reload().Tags()
        assert set(tags["images"]) == set(IMAGES)
        assert "val/depth/abs_err" in tags["scalars"]
    else:
        assert "val/depth/abs_err" in (run / "metrics.csv").read_text()


@pytest.mark.parametrize(
    "account",
    [{}, {"WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_INIT_TIMEOUT": "2"}],
    ids=["not logged in", "no connection"],
)
def test_wandb_without_login_names_next_steps(account, monkeypatch):
    for name, value in account.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as stop:
        fit("--config=loggers/wandb.yaml")
    message = str(stop.value)
    assert message.startswith("error: Weights & Biases: ")
    assert "Log in with `wandb login`" in message
    assert "--trainer.logger.offline true" in message
    assert not Path("runs/htt-lightning").exists()
