"""Checkpoints on the command line: no untrained network is scored, and ``last`` and ``best`` are found."""

import itertools
import json
import os
import shutil
from pathlib import Path
from time import time

import pytest
import yaml

from htt_lightning.cli.entry import main
from tests.conftest import working_in
from tests.tiny import BACKBONE, SCENES

TINY = {
    "--data": "SyntheticDataModule",
    "--data.tasks": "depth",
    "--data.labels": "full",
    "--data.image_size": "[32, 48]",
    "--data.train_images": "4",
    "--data.val_images": "2",
    "--data.batch_size": "2",
    "--data.num_workers": "0",
    "--data.cache": SCENES.name,
    "--model.backbone": BACKBONE,
    "--model.token_dim": "8",
    "--discovery.stages": "1",
    "--panel.num_val_images": "0",
    "--panel.num_train_images": "0",
    "--trainer.accelerator": "cpu",
    "--trainer.log_every_n_steps": "1",
    "--trainer.enable_progress_bar": "false",
}
COMMANDS = ("validate", "test", "predict")


def htt(command, *words, **over):
    options = TINY | {f"--{key.replace('__', '.')}": str(value) for key, value in over.items()}
    main([command, *itertools.chain(*options.items()), *words])


def failing(command, *words, **over):
    with pytest.raises(SystemExit) as stop:
        htt(command, *words, **over)
    message = str(stop.value)
    assert message.startswith("error: ")
    return message


def results(split="test"):
    newest = max(Path("runs").glob(f"*/{split}_metrics.json"), key=lambda path: path.stat().st_mtime_ns)
    return json.loads(newest.read_text())


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """A run of three epochs that keeps the two of best Delta_m, and an older one of one epoch."""
    folder = tmp_path_factory.mktemp("fitted")
    with working_in(folder):
        htt("fit", trainer__max_epochs=1, checkpoint__monitor="val/depth/abs_err")
        monitored = {"checkpoint__monitor": "val/delta_m", "checkpoint__save_top_k": 2}
        htt("fit", trainer__max_epochs=3, model__single_task_baselines="{depth: 2.0}", **monitored)
    return folder


@pytest.fixture
def runs(fitted, tmp_path, in_empty_folder):
    shutil.copytree(fitted, tmp_path, dirs_exist_ok=True)  # with the times of its files
    return Path("runs")


@pytest.mark.parametrize("command", COMMANDS)
def test_untrained_network_is_refused(command, in_empty_folder):
    message = failing(command, model__pretrained="true")  # of a backbone
    assert "--ckpt_path must be a file, last or best, got none. Without one the network is untrained" in message
    assert not list(Path().iterdir())


@pytest.mark.parametrize("keyword", ["last", "best"])
def test_keyword_without_a_run_is_refused(keyword, in_empty_folder):
    assert "no run below runs has one" in failing("test", ckpt_path=keyword)
    assert not list(Path().iterdir())


@pytest.mark.parametrize(
    ("words", "path"),
    [
        (["export", "--format=safetensors", "--out=net", "--ckpt_path=last"], "version_1/checkpoints/last.ckpt"),
        (["export", "--format=safetensors", "--out=net", "--ckpt_path=best"], "version_1/checkpoints/kept.ckpt"),
        (["discover", "--out=pseudo", "--ckpt_path=best"], "version_1/checkpoints/kept.ckpt"),
        (["app", "--ckpt_path=last"], "version_1/checkpoints/last.ckpt"),
        (["app", "--run=runs/version_0", "--ckpt_path=best"], "version_0/checkpoints/kept.ckpt"),
    ],
)
def test_keyword_is_found_by_commands_of_this_library(words, path, in_empty_folder):
    for age, version in ((100, 0), (0, 1)):
        folder = Path(f"runs/version_{version}/checkpoints")
        folder.mkdir(parents=True)
        (folder / "best.json").write_text('{"best": "kept.ckpt"}')
        for name in ("last.ckpt", "kept.ckpt"):
            (folder / name).write_bytes(b"")
            os.utime(folder / name, (time() - age, time() - age))
    with pytest.raises(SystemExit, match=f"--ckpt_path: runs/{path} is corrupt"):
        main(words)


@pytest.mark.parametrize(
    ("command", "keyword"), [("fit", "best"), ("test", "auto"), ("predict", "hpc"), ("validate", "registry")]
)
def test_keyword_of_another_command_is_refused(command, keyword, in_empty_folder):
    assert f"--ckpt_path must be a file, {'auto or last' if command == 'fit' else 'last or best'}, got {keyword}" in (
        failing(command, ckpt_path=keyword)
    )


def test_best_and_last_of_the_newest_run_are_tested(runs):
    kept = json.loads((runs / "version_1" / "checkpoints" / "best.json").read_text())
    assert (kept["monitor"], kept["mode"], len(kept["values"])) == ("val/delta_m", "max", 2)
    gains = kept["values"]
    assert kept["best"] == max(gains, key=gains.get)
    best_epoch = int(kept["best"].partition("=")[2].partition("-")[0])
    for keyword, epoch in (("best", best_epoch), ("last", 2)):
        htt("test", ckpt_path=keyword, model__single_task_baselines="{depth: 2.0}")
        rows = results()
        assert {row["epoch"] for row in rows.values()} == {epoch}
        assert all(row["trained"] for row in rows.values())
        if keyword == "best":
            assert rows["test/delta_m"]["value"] == pytest.approx(gains[kept["best"]], abs=1e-4)
    training = [yaml.safe_load(path.read_text()) for path in runs.glob("*/train_config.yaml")]
    assert {Path(info["checkpoint"]).name for info in training} == {kept["best"], "last.ckpt"}


@pytest.mark.parametrize("command", COMMANDS)
def test_best_of_a_named_run_is_taken(command, runs, caplog):
    caplog.set_level("INFO", logger="lightning.pytorch.utilities.rank_zero")
    os.utime(runs / "version_1" / "checkpoints" / "last.ckpt")
    (runs / "version_1" / "checkpoints" / "best.json").unlink()
    assert "runs/version_1" in failing(command, ckpt_path="best")
    main([command, "--config", "runs/version_0/config.yaml", "--ckpt_path", "best"])
    assert "Loaded model weights from the checkpoint at runs/version_0/checkpoints/epoch=0-step=2.ckpt" in caplog.text


def test_photographs_are_predicted_with_the_best(runs):
    from PIL import Image

    Image.new("RGB", (40, 32)).save("photo.png")
    main(["predict", "--data=ImageFolder", "--data.root=photo.png", "--ckpt_path=best", "--out=maps"])
    assert Path("maps/photo_depth.png").is_file()


def test_lost_best_checkpoint_is_named(runs):
    best = runs / "version_1" / "checkpoints" / "best.json"
    (best.parent / json.loads(best.read_text())["best"]).unlink()
    assert "--ckpt_path best must be a checkpoint of runs/version_1, got no runs/version_1/" in failing(
        "test", ckpt_path="best"
    )
    (runs / "version_0" / "checkpoints" / "best.json").unlink()
    folder = {"checkpoint__dirpath": "runs/version_0/checkpoints"}
    assert "needs a run with checkpoint.monitor, got runs/version_0" in failing("test", ckpt_path="best", **folder)
    best.write_text(json.dumps({"best": None}))
    assert "best.json must name a checkpoint, got None" in failing("test", ckpt_path="best")


def test_unknown_monitor_is_refused_before_a_run(in_empty_folder):
    message = failing("fit", checkpoint__monitor="val/depth/abs_er")
    assert "checkpoint.monitor must be a metric that the run logs, got 'val/depth/abs_er'." in message
    assert "'val/depth/abs_err'" in message
    stopping = ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val/loss"]
    assert "EarlyStopping.monitor must be a metric that the run logs, got 'val/loss'" in failing("fit", *stopping)
    assert not Path("runs").exists()
