"""Parquet files of one's own, declared in a config."""

from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import yaml

from htt_lightning import FolderDataModule
from htt_lightning.cli import main
from htt_lightning.data import HubRepo, LabelFiles
from htt_lightning.data.datasets import nyud
from htt_lightning.data.datasets.nyud import NYUD
from htt_lightning.errors import HTTError
from htt_lightning.tasks import Depth, Normals, SemSeg
from tests.data.datasets.shards import write_shard

ALL = ("semseg", "depth", "normals")
SIZE = (32, 48)
RULES = {"segmentation": {"missing_values": (-1,)}, "depth": {}, "normal": {}}
TASKS = dict(zip(RULES, (SemSeg(classes=nyud.CLASSES), Depth(), Normals()), strict=True))
COLUMNS = [LabelFiles(task, column, column, **RULES[column]) for column, task in TASKS.items()]


pytestmark = pytest.mark.usefixtures("hub_caches")


def folder_data(root, columns=COLUMNS, **arguments):
    settings = {"train": "data/train-*.parquet", "val": "data/val-*.parquet"} | arguments
    return FolderDataModule(str(root), label_files=columns, **settings)


@pytest.mark.parametrize("split", ["train", "val"])
def test_declared_columns_equal_the_tree(scenes, split):
    shards, tree = folder_data(scenes / "features").build_dataset(split), NYUD(scenes, split)
    for index in range(len(tree.ids)):
        np.testing.assert_array_equal(shards.image(index), tree.image(index))
        for task in ALL:
            np.testing.assert_array_equal(shards.label(index, task), tree.label(index, task))


def test_declared_columns_follow_the_rules_of_label_files(tmp_path):
    rng = np.random.default_rng(0)
    columns = {
        "photo": [rng.integers(0, 256, (3, *SIZE)).astype(np.uint8) for _ in range(3)],
        "mask": [rng.integers(1, 4, (1, *SIZE)).astype(np.uint8) for _ in range(3)],
        "mm": [rng.integers(0, 9000, SIZE).astype(np.int32) for _ in range(3)],
    }
    write_shard(tmp_path / "rooms.parquet", columns)
    files = [
        LabelFiles(SemSeg(classes=("a", "b", "c")), "mask", "mask", class_offset=-1),
        LabelFiles(Depth(), "mm", scale=0.001),
    ]
    data = folder_data(tmp_path, files, train="rooms.parquet", val="*.parquet", image_column="photo", seed=0)
    train, val = data.build_dataset("train"), data.build_dataset("val")
    np.testing.assert_array_equal(train.image(2), np.moveaxis(columns["photo"][2], 0, -1))
    np.testing.assert_array_equal(train.label(1, "semseg"), columns["mask"][1][0] - 1)
    depth = np.where(columns["mm"][1] == 0, np.nan, columns["mm"][1] * np.float32(0.001))
    np.testing.assert_allclose(train.label(1, "depth"), depth, rtol=1e-6)
    assert val.label_availability(["semseg", "depth"]).tolist() == [[True, False]] * 3
    assert val.warnings() == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"train": "data/test-*.parquet"}, r"must have files data/test-\*\.parquet, got none"),
        ({"train": "../train-*.parquet"}, r"data\.train must be relative"),
        ({"image_column": "photo"}, "must have a column 'photo', got image"),
        ({"root": "hub"}, r"data\.hub must name the repository"),
        ({"root": "hub", "hub": HubRepo("mine/rooms", "main")}, "must reach the dataset mine/rooms"),
    ],
)
def test_wrong_declarations_are_named(scenes, arguments, message):
    with pytest.raises(HTTError, match=message):
        folder_data(**{"root": scenes / "features"} | arguments).build_dataset("train")


def test_config_names_a_dataset_of_the_hub(scenes, monkeypatch, in_empty_folder, capsys):
    asked = []
    answer = lambda repo, **settings: asked.append((repo, settings)) or str(scenes / "features")  # noqa: E731
    monkeypatch.setattr(huggingface_hub, "snapshot_download", answer)
    labels = [{"task": "Depth", "train": "depth", "val": "depth"}, {"task": "Normals", "train": "normal"}]
    settings = {
        "root": "hub",
        "hub": {"repo": "mine/rooms", "revision": "features"},
        "train": "data/train-*.parquet",
        "val": "data/val-*.parquet",
        "label_files": labels,
        "num_workers": 0,
    }
    config = {"data": {"class_path": "FolderDataModule", "init_args": settings}}
    Path("mine.yaml").write_text(yaml.safe_dump(config))
    main(["check", "--config", "mine.yaml"])
    assert "Labels of 5 training images (full): depth 5, normals 5" in capsys.readouterr().out
    patterns = {repo: settings["allow_patterns"] for repo, settings in asked}
    assert patterns == {"mine/rooms": ["data/val-*.parquet"]}
