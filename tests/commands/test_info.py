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
from tests.commands.report.runs import evaluated_run, fitted_run
from tests.tiny import BACKBONE

pytestmark = pytest.mark.usefixtures("in_empty_folder")


def test_info_describes_versions_and_devices(capsys):
    main(["info"])
    rows = dict(line.split(None, 1) for line in capsys.readouterr().out.splitlines())
    assert rows["htt-lightning"] == __version__
    assert rows["torch"] == version("torch")
    assert rows["python"].startswith(sys.version.split()[0])
    assert rows["processors"].startswith(f"{os.cpu_count()};")


def test_info_names_missing_packages_of_extras(monkeypatch, capsys):
    needed = ["torch>=2.6", 'no-such-package>=1; extra == "export"', "onnx>=1.18; extra == 'export'"]
    needed += ["torch>=2.6 ; extra == 'report'", 'htt-lightning[export,report]; extra == "all"']
    monkeypatch.setattr(module, "requires", lambda _: needed)
    assert module.extra_packages() == {"export": ["no-such-package", "onnx"], "report": ["torch"]}
    info()
    rows = [line.split(None, 2)[1:] for line in capsys.readouterr().out.splitlines() if line.startswith("extra ")]
    assert rows == [["export", 'lacks no-such-package: pip install "htt-lightning[export]"'], ["report", "installed"]]


@pytest.fixture
def run():
    folder = fitted_run(Path("runs/version_0"), {"semseg/miou": 12.35, "depth/abs_err": None}, labels="full", seed=4)
    evaluated_run(folder / "nested", {"semseg/miou": 99.0}, None)
    (folder / "checkpoints").mkdir()
    hparams = dict(HTTModule([Depth()], backbone=BACKBONE, token_dim=8).hparams)
    checkpoint = {"hyper_parameters": hparams, "state_dict": {}, "global_step": 70, "epoch": 3}
    torch.save(checkpoint | {"callbacks": {"LabelDiscovery": {"stage": 1}}}, folder / "checkpoints" / "last.ckpt")
    torch.save(checkpoint | {"global_step": 35}, folder / "checkpoints" / "stage_1.ckpt")
    return folder


def test_info_describes_a_run(run, capsys):
    info(str(run))
    printed = capsys.readouterr().out
    rows = dict(line.split(None, 1) for line in printed.splitlines())
    assert (rows["data.labels"], rows["data.tasks"], rows["seed_everything"]) == ("full", "semseg, depth", "4")
    assert rows["last.ckpt"].startswith("70 steps, epoch 3, in stage 2")
    assert rows["stage_1.ckpt"].startswith("35 steps")
    assert (rows["val/semseg/miou"], rows["val/depth/abs_err"]) == ("12.35 %", "- m")
    assert "99.00" not in printed


def test_info_names_corrupt_files_and_shows_the_rest(run, capsys):
    (run / "val_metrics.json").write_text("{")
    (run / "run_record.yaml").write_text("a: [")
    (run / "checkpoints" / "last.ckpt").write_bytes(b"x")
    with pytest.raises(HTTError) as error:
        info(str(run))
    for name in ("val_metrics.json", "run_record.yaml", "last.ckpt"):
        assert name in str(error.value)
    printed = capsys.readouterr().out
    assert "model.network" in printed
    assert "stage_1.ckpt" in printed


def test_info_suggests_the_newest_run():
    for age, name in enumerate(("version_10", "version_9")):
        Path("runs", name).mkdir(parents=True)
        Path("runs", name, "config.yaml").touch()
        os.utime(Path("runs", name, "config.yaml"), (1e9 - age, 1e9 - age))
    with pytest.raises(HTTError, match="Did you mean runs/version_10"):
        info("runs")


def test_info_refuses_other_folders_with_a_hint(run):
    with pytest.raises(HTTError, match=r"got runs\. Did you mean runs/version_0"):
        info("runs")
    with pytest.raises(SystemExit, match=r"error: RUN .*got lost"):
        main(["info", "lost"])
