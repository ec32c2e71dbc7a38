"""Options of the command ``app``."""

import json

import pytest

from htt_lightning.cli.entry import main, normalize_args
from htt_lightning.commands.app import command
from htt_lightning.commands.app.command import app, load_predictors, other_checkpoints
from htt_lightning.errors import CheckpointError, ConfigError, HTTError
from tests.tiny import tiny_data

pytestmark = pytest.mark.usefixtures("in_empty_folder")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--ckpt_path .* --pseudo_labels"),
        (["--ckpt_path", "no.ckpt"], r"no\.ckpt"),
        (["--compare_ckpt_path", "no.ckpt"], "--compare_ckpt_path .* --ckpt_path"),
        (["--pseudo_labels", "nowhere"], "nowhere"),
        (["--data.pseudo_labels", "nowhere"], "nowhere"),
        (["--port", "0"], "--port .* 0"),
        (["--run", "nowhere"], "--run .*config.yaml.* nowhere"),
    ],
)
def test_wrong_options_are_named(words, message):
    pytest.importorskip("gradio")
    small = ["--data.image_size=[32,48]", "--data.train_images=4", "--data.val_images=2", "--data.cache=null"]
    if "--run" in words:
        small = []
    with pytest.raises(SystemExit, match=message):
        main(["app", *words, *small])


def test_missing_gradio_is_named(monkeypatch):
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    with pytest.raises(HTTError, match=r'gradio.*pip install "htt-lightning\[app\]"'):
        app(tiny_data())


def test_two_checkpoints_differ(tmp_path):
    with pytest.raises(ConfigError, match=r"--compare_ckpt_path .*a\.ckpt"):
        load_predictors("a.ckpt", "a.ckpt")
    assert load_predictors(None, None) == {}


def test_checkpoints_of_runs_beside_it_can_be_compared(tmp_path):
    names = ["version_2/checkpoints/last", "version_10/checkpoints/last", "version_2/checkpoints/stage_1"]
    for name in names:
        path = tmp_path / "runs" / f"{name}.ckpt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "runs/version_2/other.ckpt").touch()
    found = other_checkpoints(str(tmp_path / "runs/version_2/checkpoints/last.ckpt"))
    assert found == [str(tmp_path / "runs" / f"{name}.ckpt") for name in (names[2], names[1])]
    assert other_checkpoints(str(tmp_path / "runs/version_2/other.ckpt")) == []


def test_run_gives_checkpoint_and_dataset(tmp_path):
    data = {"class_path": "htt_lightning.SyntheticDataModule", "init_args": {"train_images": 4}}
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(json.dumps({"seed_everything": 3, "data": data, "trainer": {}}))
    for words in (["--run", "run"], ["--run=run"]):
        option = normalize_args(["app", *words])[1]
        assert json.loads(option.removeprefix("--config=")) == {"seed_everything": 3, "data": data}
    assert normalize_args(["app", "--run", "run", "--data", "NYUDDataModule"])[1:3] == ["--run", "run"]
    assert normalize_args(["app"]) == ["app", "--data=SyntheticDataModule"]
    pytest.importorskip("gradio")
    with pytest.raises(SystemExit, match=r"run/checkpoints/last\.ckpt"):
        main(["app", "--run", "run"])


def test_checkpoint_of_other_library_is_refused(tmp_path):
    (tmp_path / "x.ckpt").write_bytes(b"no checkpoint")
    with pytest.raises(CheckpointError, match=r"x\.ckpt"):
        load_predictors("x.ckpt", None)
