"""The command ``check`` on the command line."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from htt_lightning.cli import main
from htt_lightning.commands.check.command import check, inspect, print_report
from htt_lightning.data.datasets.nyud import NYUD, NYUDDataModule
from htt_lightning.data.datasets.synthetic import write_nyud_tree

SIZE = (24, 32)


pytestmark = pytest.mark.usefixtures("in_empty_folder")


@pytest.fixture
def root(tmp_path):
    write_nyud_tree(tmp_path / "NYUDv2", train=5, val=2, size=SIZE)
    return tmp_path / "NYUDv2"


def htt(*words):
    main(["check", *words])


def test_check_prints_statistics_and_writes_nothing(root, capsys):
    htt("--config", "nyud.yaml", "--data.root", str(root), "--data.num_workers", "0")
    printed = capsys.readouterr().out
    for text in ("24x32: 5", "semseg", "window", "outside bins percent", "5 training images (one-label, seed 0)"):
        assert text in printed
    assert list(Path().iterdir()) == [Path("NYUDv2")]


def test_only_the_most_frequent_sizes_are_printed(root, capsys):
    report = inspect(NYUDDataModule(str(root), labels="full"))[1]
    report["splits"]["train"]["sizes"] = {f"{height}x32": 1 for height in range(20)} | {"20x32": 5}
    print_report(report, "")
    printed = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert printed.count("x32: 1") == 5
    assert "20x32: 5" in printed
    assert "15 others" in printed


def test_check_writes_report_mask_and_contact_sheet(capsys):
    words = ("--config", "synthetic.yaml", "--data.train_images", "6", "--data.val_images", "4",
             "--data.cache", "null", "--data.image_size", "[32, 48]", "--data.num_workers", "0", "--out", "out",
             "--num_images", "3")  # fmt: skip
    htt(*words)
    assert sorted(path.name for path in Path("out").iterdir()) == ["check.json", "contact_sheet.png", "label_mask.json"]
    assert json.loads(Path("out/label_mask.json").read_text())["protocol"] == "random-label"
    report = json.loads(Path("out/check.json").read_text())
    assert report["splits"]["val"]["tasks"]["human_parts"]["classes_percent"].keys() >= {"background", "torso"}
    assert report["label_mask"]["labels"]["semseg"] == 3
    with Image.open("out/contact_sheet.png") as picture:
        assert picture.width >= 1000
    with pytest.raises(SystemExit, match=r"error: --out .*--overwrite"):
        htt(*words)
    htt(*words, "--overwrite", "true")


def test_check_counts_derived_labels(capsys):
    htt("--config", "synthetic.yaml", "--data.train_images", "8", "--data.val_images", "2", "--data.cache", "null",
        "--data.image_size", "[32, 48]", "--data.num_workers", "0", "--out", "out", "--data.labels", "one-label",
        "--data.derive", "{normals: depth, edges: {from: semseg}}")  # fmt: skip
    report = json.loads(Path("out/check.json").read_text())
    train, val = (report["splits"][split] for split in ("train", "val"))
    given = train["tasks"]["depth"]["labels"], train["tasks"]["semseg"]["labels"]
    assert (train["derived"]["normals"]["labels"], train["derived"]["edges"]["labels"]) == given
    assert sum(row["labels"] for row in train["tasks"].values()) == 8
    assert train["labels_per_image"] == {"1": 8}
    assert (val["derived"], report["problems"]) == ({}, [])
    printed = capsys.readouterr().out
    assert f"Derived labels: normals {given[0]}, edges {given[1]}" in printed
    assert "edges (derived)" in printed


def test_check_exits_with_status_one_after_naming_problems(root, capsys):
    (root / "train" / "depth" / "4.npy").unlink()
    (root / "train" / "image" / "0.npy").write_bytes(b"nothing")
    with pytest.raises(SystemExit, match="error: Found 2 problems") as stop:
        htt("--config", "nyud.yaml", "--data.root", str(root), "--data.labels", "full", "--data.num_workers", "0",
            "--out", "out")  # fmt: skip
    assert isinstance(stop.value.code, str)  # Python prints it and returns 1
    printed = capsys.readouterr().out
    assert f"problem: train 4 depth: {root}/train/depth/4.npy" in printed
    assert f"problem: train 0: {root}/train/image/0.npy" in printed
    assert printed.count("Expected layout") == printed.count("normal/0.npy ...") == 1
    assert "warning: train: 5 images found, but 795 were published" in printed
    assert len(json.loads(Path("out/check.json").read_text())["problems"]) == 2
    assert Path("out/contact_sheet.png").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data.root", "nowhere"], r"error: data\.root nowhere is missing[\s\S]*train/"),
        (["--data.root", "mine.txt"], r"error: data\.root mine\.txt is a file[\s\S]*train/"),
        (["--data.root", "NYUDv2", "--data.labels", "one-lable"], "error: .*one-label"),
        (["--data.root", "NYUDv2", "--num_images", "-1"], "error: --num_images"),
        (["--data.root", "NYUDv2", "--out", "NYUDv2/train/image/0.npy"], r"--out .*0\.npy"),
    ],
)
def test_check_of_an_unusable_dataset_is_one_error(root, words, message, capsys):
    Path("mine.txt").touch()
    with pytest.raises(SystemExit, match=message):
        htt("--config", "nyud.yaml", *words)
    assert "problem" not in capsys.readouterr().out


def test_check_builds_no_model_and_needs_no_device(root):
    Path("mine.yaml").write_text(
        "model: {backbone: resnet81, pretrained: missing.pth}\n"
        f"data: {{class_path: NYUDDataModule, init_args: {{root: {root}, num_workers: 0}}}}\n"
        "trainer: {accelerator: tpu, devices: 64}\n"
    )
    htt("--config", "mine.yaml")


def test_an_interrupted_check_leaves_existing_files(root, monkeypatch):
    data = NYUDDataModule(str(root), labels="full", num_workers=0)
    check(data, "out")
    before = {path: path.read_bytes() for path in Path("out").glob("*")}

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    for owner, name in ((json, "dumps"), (NYUD, "image")):
        monkeypatch.setattr(owner, name, interrupt)
        with pytest.raises(KeyboardInterrupt):
            check(data, "out", overwrite=True)
    assert {path: path.read_bytes() for path in Path("out").glob("*")} == before


def test_contact_sheet_hides_labels_of_the_mask(root):
    data = NYUDDataModule(str(root), labels="one-label", num_workers=0, seed=0)
    check(data, "before")
    kept = data.labels_per_image("train", data.build_dataset("train"))
    for name, tasks in kept.items():
        for task in {"semseg": "label", "depth": "depth", "normals": "normal"}.items():
            if task[0] not in tasks:
                (root / "train" / task[1] / f"{name}.npy").write_bytes(b"corrupt")
    check(data, "after")
    np.testing.assert_array_equal(*(np.asarray(Image.open(f"{out}/contact_sheet.png")) for out in ("before", "after")))
    assert Path("before/check.json").read_text() == Path("after/check.json").read_text()
