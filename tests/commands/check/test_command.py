"""The command ``check``."""

import json
import sys
from pathlib import Path

import pytest
from PIL import Image

from htt_lightning.cli import main
from htt_lightning.commands.check.command import check
from htt_lightning.data.datasets.nyud import NYUD
from htt_lightning.data.datasets.synthetic import write_nyud
from tests.commands.check.test_inspection import SIZE, nyud, plant


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["htt"])


@pytest.fixture
def root(tmp_path):
    write_nyud(tmp_path / "NYUDv2", train=9, val=3, size=SIZE)
    return tmp_path / "NYUDv2"


def htt(*words):
    main(["check", *words])


def test_a_good_tree_passes_and_nothing_is_written(root, capsys):
    htt("--config", "nyud.yaml", "--data.root", str(root), "--data.num_workers", "0")
    printed = capsys.readouterr().out
    for text in ("24x32: 9", "semseg", "window", "outside bins percent", "Label mask: one-label", "3 to 3",
                 "Labels of 9 training images (one-label, seed 0): semseg 3, depth 3, normals 3"):  # fmt: skip
        assert text in printed
    assert list(Path().iterdir()) == [Path("NYUDv2")]


def test_the_scenes_pass_and_a_report_and_a_sheet_are_written(capsys):
    words = ("--config", "synthetic.yaml", "--data.train_images", "6", "--data.val_images", "4", "--data.cache", "null",
             "--data.image_size", "[32, 48]", "--data.num_workers", "0", "--out", "out", "--images", "3")  # fmt: skip
    htt(*words)
    assert sorted(path.name for path in Path("out").iterdir()) == ["check.json", "contact_sheet.png", "label_mask.json"]
    printed = capsys.readouterr().out.splitlines()
    assert printed[-3:] == ["out/contact_sheet.png", "out/label_mask.json", "out/check.json"]
    assert any(line.startswith("Labels of 6 training images (random-label, seed 0): semseg 3, ") for line in printed)
    assert json.loads(Path("out/label_mask.json").read_text())["protocol"] == "random-label"
    report = json.loads(Path("out/check.json").read_text())
    assert report["splits"]["val"]["tasks"]["human_parts"]["classes_percent"].keys() >= {"background", "torso"}
    with Image.open("out/contact_sheet.png") as picture:
        assert picture.size == (7 * (144 + 6), 3 * (96 + 18 + 6))
    with pytest.raises(SystemExit, match=r"error: out is not empty.*--overwrite"):
        htt(*words)
    htt(*words, "--overwrite", "true")


def test_faults_end_with_status_one_and_every_name(root, capsys):
    planted = plant(root)
    with pytest.raises(SystemExit, match="error: The dataset has 12 faults") as stop:
        htt("--config", "nyud.yaml", "--data.root", str(root), "--data.labels", "full", "--data.num_workers", "0",
            "--out", "out")  # fmt: skip
    assert isinstance(stop.value.code, str)  # python prints it and returns 1
    printed = capsys.readouterr().out
    for message in planted.values():
        assert message in printed
    assert printed.count("The dataset must read:") == 1
    assert "warning: train: 9 images, where 795 were published" in printed
    assert len(json.loads(Path("out/check.json").read_text())["faults"]) == 12
    assert Path("out/contact_sheet.png").is_file()


def test_a_folder_that_is_missing_is_one_line_and_the_tree_comes_once(root, capsys):
    (root / "train" / "normal").rename(root / "train" / "normals")
    with pytest.raises(SystemExit, match="error: The dataset has 1 fault;"):
        htt("--config", "nyud.yaml", "--data.root", str(root), "--data.labels", "full", "--data.num_workers", "0")
    printed = capsys.readouterr().out
    assert printed.count("fault: ") == 1
    assert f"fault: train normals: {root}/train/normal/: all 9 files are missing" in printed
    assert printed.count("The dataset must read:") == printed.count("normal/0.npy ...") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data.root", "nowhere"], r"error: data\.root nowhere is missing[\s\S]*train/"),
        (["--data.root", "mine.txt"], r"error: data\.root mine\.txt is a file[\s\S]*train/"),
        (["--data.root", "NYUDv2", "--data.labels", "one-lable"], "error: .*one-label"),
        (["--data.root", "NYUDv2", "--images", "-1"], "error: --images"),
        (["--data.root", "NYUDv2", "--out", "NYUDv2/train/image/0.npy"], r"0\.npy is a file"),
    ],
)
def test_what_cannot_be_checked_is_one_error(root, words, message, capsys):
    Path("mine.txt").touch()
    with pytest.raises(SystemExit, match=message):
        htt("--config", "nyud.yaml", *words)
    assert "fault" not in capsys.readouterr().out


def test_an_unknown_argument_has_status_two(capsys):
    with pytest.raises(SystemExit) as stop:
        htt("--config", "synthetic.yaml", "--data.bogus", "1")
    assert stop.value.code == 2


def test_no_model_is_built_and_no_device_asked_for(root):
    Path("mine.yaml").write_text(
        "model: {backbone: resnet81, pretrained: missing.pth}\n"
        f"data: {{class_path: NYUDDataModule, init_args: {{root: {root}, num_workers: 0}}}}\n"
        "trainer: {accelerator: tpu, devices: 64}\n"
    )
    htt("--config", "mine.yaml")


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_interrupted_run_leaves_what_was_there(root, monkeypatch, overwrite):
    data = nyud(root)
    if overwrite:
        check(data, "out")
    before = {path: path.read_bytes() for path in Path("out").glob("*")}
    read = NYUD.image

    def interrupted(self, index):
        if index == 2:
            raise KeyboardInterrupt
        return read(self, index)

    monkeypatch.setattr(NYUD, "image", interrupted)
    with pytest.raises(KeyboardInterrupt):
        check(data, "out", overwrite)
    assert {path: path.read_bytes() for path in Path("out").glob("*")} == before
    monkeypatch.setattr(NYUD, "image", read)
    monkeypatch.setattr(json, "dumps", lambda *_, **__: interrupted(data, 2))
    with pytest.raises(KeyboardInterrupt):
        check(data, "out", overwrite)
    assert not list(Path("out").glob(".*"))
    assert (Path("out") / "check.json").exists() is overwrite
