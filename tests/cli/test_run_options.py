"""Options and files of runs that are wrong or rare."""

from pathlib import Path

import numpy as np
import pytest
import yaml

from htt_lightning import HTTModule
from htt_lightning.data.datasets.synthetic import write_nyud_tree
from tests.cli.test_entry import SCENES, htt, run_directory

pytestmark = pytest.mark.usefixtures("in_empty_folder")


@pytest.mark.parametrize("content", [b"", b"not a checkpoint"])
def test_corrupt_checkpoint_is_named(content):
    Path("broken.ckpt").write_bytes(content)
    with pytest.raises(SystemExit, match=r"error: --ckpt_path: broken\.ckpt is corrupt"):
        htt("validate", "--config", "synthetic.yaml", "--ckpt_path", "broken.ckpt", over=SCENES)


def test_error_in_loader_process_is_one_message(tmp_path):
    write_nyud_tree(tmp_path / "tree", train=6, val=2, size=(32, 48))
    # The header of a file is checked before training, the values of a normal map when they are read.
    path = tmp_path / "tree" / "train" / "normal" / "3.npy"
    np.save(path, 300 * np.ones_like(np.load(path)))
    words = ["--config", "nyud.yaml", "--data.root", str(tmp_path / "tree"), "--data.labels", "full"]
    with pytest.raises(SystemExit, match=r"^error: .*3\.npy") as stop:
        htt("fit", *words, over={"--data.num_workers": "1"})
    assert "Traceback" not in str(stop.value)


def test_consistency_loss_is_chosen_by_options(capsys):
    options = ("--model.consistency=joint_task", "--model.consistency_options={weight: 0.5, width: 8}")
    htt("fit", *options, over=SCENES | {"--data.tasks": "semseg,depth"})
    run = run_directory()
    assert "train/consistency_loss" in (run / "metrics.csv").read_text()
    written = yaml.safe_load((run / "config.yaml").read_text())["model"]
    assert (written["consistency"], written["consistency_options"]) == ("joint_task", {"weight": 0.5, "width": 8})
    checkpoint = str(run / "checkpoints" / "last.ckpt")
    assert HTTModule.load_from_checkpoint(checkpoint).consistency.weight == 0.5
    htt("test", "--ckpt_path", checkpoint, over=SCENES | {"--data.tasks": "semseg,depth"})
    assert "Test after" in capsys.readouterr().out


def test_wrong_consistency_option_is_named():
    options = ("--model.consistency=joint_task", "--model.consistency_options={wdith: 8}")
    with pytest.raises(SystemExit, match=r"error: model\.consistency_options .*'wdith'. Did you mean 'width'"):
        htt("fit", *options, over=SCENES)
