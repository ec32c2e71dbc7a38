import os
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from htt_lightning import HTTModule, __version__
from htt_lightning.cli import main
from htt_lightning.commands import info as module
from htt_lightning.commands.info import info
from htt_lightning.errors import HTTError
from htt_lightning.tasks import Depth
from tests.commands.report.folders import fitted_run, scored_run
from tests.tiny import BACKBONE


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["htt"])


def test_the_installation_is_described(capsys):
    main(["info"])
    rows = dict(line.split(None, 1) for line in capsys.readouterr().out.splitlines())
    assert rows["htt-lightning"] == __version__
    assert rows["torch"] == version("torch")
    assert rows["python"].startswith(sys.version.split()[0])
    assert "lightning" in rows
    assert rows["processors"].startswith(f"{os.cpu_count()};")
    assert "extra" in rows


def test_extras_say_what_they_lack(monkeypatch, capsys):
    needed = ["torch>=2.6", 'no-such-package>=1; extra == "export"', "onnx>=1.18; extra == 'export'"]
    needed += ["torch>=2.6 ; extra == 'report'", 'htt-lightning[export,report]; extra == "all"']
    monkeypatch.setattr(module, "requires", lambda _: needed)
    assert module.extras() == {"export": ["no-such-package", "onnx"], "report": ["torch"]}
    module.info()
    rows = [line.split(None, 2)[1:] for line in capsys.readouterr().out.splitlines() if line.startswith("extra ")]
    assert rows == [["export", 'lacks no-such-package: pip install "htt-lightning[export]"'], ["report", "installed"]]


def test_a_run_is_described(capsys):
    run = fitted_run(Path("runs/version_0"), {"semseg/miou": 12.345, "depth/abs_err": None}, labels="full", seed=4)
    scored_run(Path("runs/version_0/nested"), {"semseg/miou": 99.0}, None)
    (run / "checkpoints").mkdir()
    described = dict(HTTModule([Depth()], backbone=BACKBONE, token_dim=8).hparams)
    stored = {"hyper_parameters": described, "state_dict": {}, "global_step": 70, "epoch": 3}
    torch.save(stored | {"callbacks": {"LabelDiscovery": {"stage": 1}}}, run / "checkpoints" / "last.ckpt")
    torch.save(stored | {"global_step": 35}, run / "checkpoints" / "stage_1.ckpt")
    info("runs/version_0")
    printed = capsys.readouterr().out
    rows = dict(line.split(None, 1) for line in printed.splitlines())
    assert rows["data.labels"] == "full"
    assert rows["data.tasks"] == "semseg, depth"
    assert rows["seed_everything"] == "4"
    assert rows["last.ckpt"].startswith("70 steps, epoch 3, in stage 2")
    assert rows["stage_1.ckpt"].startswith("35 steps")
    assert rows["val/semseg/miou"] == "12.35 %" or rows["val/semseg/miou"] == "12.34 %"
    assert rows["val/depth/abs_err"] == "- m"
    assert "99.00" not in printed


def test_what_is_damaged_in_a_run_is_named_and_the_rest_is_shown(capsys):
    run = fitted_run(Path("runs/version_0"), {"semseg/miou": 1.0})
    (run / "val_metrics.json").write_text("{")
    (run / "checkpoints").mkdir()
    (run / "checkpoints" / "last.ckpt").write_bytes(b"x")
    with pytest.raises(HTTError) as error:
        info(str(run))
    assert "val_metrics.json is truncated" in str(error.value)
    assert "last.ckpt is corrupt" in str(error.value)
    assert "model.network" in capsys.readouterr().out


def test_a_folder_that_is_no_run_is_refused_with_the_nearest_one():
    fitted_run(Path("runs/version_0"), {})
    with pytest.raises(HTTError, match=r"runs is no folder of a run.*Did you mean runs/version_0\?"):
        info("runs")
    with pytest.raises(SystemExit, match=r"error: lost is no folder of a run.*Name a folder"):
        main(["info", "lost"])
