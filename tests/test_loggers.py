import io
import sys
from pathlib import Path

import numpy as np
import pytest
import wandb
import yaml
from PIL import Image

from htt_lightning.cli import main
from tests.conftest import ROOT
from tests.tiny import BACKBONE, SCENES

PICTURES = {"panel": "panels", "discovery": "discovery", "affinity": "affinity"}
"""What loggers call them, and their folders."""

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
def elsewhere(tmp_path, monkeypatch, logged_out):
    """An empty directory, and a user of Weights & Biases who has not logged in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["htt"])
    monkeypatch.setattr(sys, "stdin", io.StringIO())  # nobody to ask


def fit(*words, **changes):
    settings = SETTINGS | {key.replace("__", "."): value for key, value in changes.items()}
    main(["fit", *words, *(f"--{key}={value}" for key, value in settings.items())])


def pixels(path):
    return np.asarray(Image.open(path))


def drawn(run, epoch):
    """The pictures of an epoch in the run's folder."""
    return {key: pixels(run / folder / f"epoch_{epoch:03d}.png") for key, folder in PICTURES.items()}


def sent(part, key):
    """The pictures of one name that Weights & Biases keeps of a run, or of a part of it."""
    return [pixels(path) for path in (part / "files/media/images").glob(f"{key}_*.png")]


def printed(capsys, *words):
    with pytest.raises(SystemExit) as stop:
        main(["fit", *words, "--print_config"])
    assert stop.value.code == 0
    return yaml.safe_load(capsys.readouterr().out)


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_wandb_config_follows_any_config(path, capsys):
    below = ["--config=nyud.yaml"] if path.stem == "mtan" else []  # which itself goes on top of a dataset's
    words = [*below, f"--config={path.name}", *([] if path.stem == "synthetic" else ["--data.root=."])]
    alone, logged = printed(capsys, *words), printed(capsys, *words, "--config=loggers/wandb.yaml")
    chosen = logged["trainer"].pop("logger")
    assert chosen["class_path"].endswith(".WandbLogger")
    assert chosen["init_args"]["save_dir"] == "runs"
    assert alone["trainer"].pop("logger")["class_path"].endswith(".CSVLogger")
    assert logged == alone


def test_dataset_config_follows_a_logger_config(capsys):
    config = printed(capsys, "--config=loggers/wandb.yaml", "--config=nyud.yaml", "--data.root=.")
    arguments = config["trainer"]["logger"]["init_args"]
    assert (arguments["project"], arguments["name"], arguments["id"]) == ("htt-lightning", None, None)


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")  # it is the same run
def test_wandb_logs_pictures_offline_and_resumes_the_run():
    words = ["--config=loggers/wandb.yaml", "--trainer.logger.offline=true", "--trainer.logger.id=abc123"]
    fit(*words)
    wandb.finish()
    run = Path("runs/htt-lightning/abc123")
    (first,) = Path("runs/wandb").glob("offline-run-*-abc123")
    for key, picture in drawn(run, 1).items():
        assert any(np.array_equal(logged, picture) for logged in sent(first, key)), key

    checkpoint = run / "checkpoints" / "last.ckpt"
    fit(*words, f"--ckpt_path={checkpoint}", data__labels=run / "label_mask.json", trainer__max_epochs=2)
    wandb.finish()
    assert [path.name for path in run.parent.iterdir()] == ["abc123"]
    assert sorted(path.name for path in (run / "panels").iterdir()) == [f"epoch_{k:03d}.png" for k in range(3)]
    (second,) = set(Path("runs/wandb").glob("offline-run-*-abc123")) - {first}
    for key, picture in drawn(run, 2).items():  # it has gone on with the third epoch
        (logged,) = sent(second, key)
        assert np.array_equal(logged, picture), key


@pytest.mark.parametrize("words", [[], ["--config=loggers/tensorboard.yaml"]], ids=["csv", "tensorboard"])
def test_other_loggers_get_their_pictures(words):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    fit(*words)
    (run,) = Path("runs").iterdir()
    assert run.name == "version_0"
    assert all(picture.ndim == 3 for picture in drawn(run, 1).values())
    assert (run / "val_metrics.json").is_file()
    if words:
        tags = EventAccumulator(str(run)).Reload().Tags()
        assert set(tags["images"]) == set(PICTURES)
        assert "val/depth/abs_err" in tags["scalars"]
    else:
        assert "val/depth/abs_err" in (run / "metrics.csv").read_text()


@pytest.mark.parametrize(
    "account",
    [{}, {"WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_INIT_TIMEOUT": "2"}],
    ids=["not logged in", "no connection"],
)
def test_wandb_without_login_or_connection_gives_advice(account, monkeypatch):
    for name, value in account.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as stop:
        fit("--config=loggers/wandb.yaml")
    message = str(stop.value)
    assert message.startswith("error: Weights & Biases: ")
    assert "Log in with `wandb login`" in message
    assert "--trainer.logger.offline true" in message
    assert not Path("runs/htt-lightning").exists()
