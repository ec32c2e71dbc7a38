"""Datasets of the Hugging Face hub, without the hub."""

import shutil
import sys

import huggingface_hub
import pytest

from htt_lightning.cli import main
from htt_lightning.data.datasets import nyud
from htt_lightning.data.datasets.cityscapes import CityscapesDataModule
from htt_lightning.data.datasets.parquet import HubRepo, find_shards
from htt_lightning.errors import DataError, HTTError
from tests.conftest import ROOT
from tests.data.datasets.test_parquet import open_train
from tests.test_packaging import run

pytestmark = pytest.mark.usefixtures("hub_caches")


def test_hub_is_asked_for_one_split_of_one_commit(scenes, tmp_path, monkeypatch):
    asked = []
    (folder := tmp_path / nyud.REPO.revision).symlink_to(scenes / "features")
    answer = lambda repo, **settings: asked.append((repo, settings)) or str(folder)  # noqa: E731
    monkeypatch.setattr(huggingface_hub, "snapshot_download", answer)
    assert len(open_train("hub").ids) == 5
    ((repo, settings),) = asked
    assert (repo, len(settings["revision"]), settings["repo_type"]) == ("tanganke/nyuv2", 40, "dataset")
    assert settings["allow_patterns"] == ["*train-*.parquet"]


def test_commit_of_a_branch_is_warned_of(scenes, monkeypatch, recwarn):
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(scenes / "features"))
    find_shards("hub", "val", HubRepo("mine/rooms", "features"))
    assert not recwarn.list
    with pytest.warns(UserWarning, match=r"mine/rooms is read at main, .* commit features; set data\.revision"):
        find_shards("hub", "val", HubRepo("mine/rooms", "main"))


def test_cityscapes_is_asked_for_the_revision_given(tmp_path, monkeypatch):
    asked = []
    answer = lambda *_, revision, **__: asked.append(revision) or str(tmp_path / revision)  # noqa: E731
    monkeypatch.setattr(huggingface_hub, "snapshot_download", answer)
    for changes in ({}, {"revision": "abc"}):
        with pytest.raises(DataError, match="must have shards"):
            CityscapesDataModule("hub", **changes).open_split("val", True)
    assert asked == ["main", "abc"]


@pytest.mark.parametrize(("config", "repo"), [("nyud", "tanganke/nyuv2"), ("cityscapes", "tanganke/cityscapes")])
def test_unreachable_hub_is_one_sentence(config, repo, in_empty_folder):
    message = (
        rf"^error: data\.root hub must reach the dataset {repo} on .* got \w+; or set data\.root to a folder .*\.$"
    )
    with pytest.raises(SystemExit, match=message) as stop:
        main(["fit", "--config", f"{config}.yaml", "--data.root", "hub"])
    assert str(stop.value).count("\n") == 0


@pytest.mark.parametrize("root", ["hub", "features"])
def test_missing_package_names_the_extra(scenes, root, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(HTTError, match=r'pip install "htt-lightning\[hub\]"'):
        open_train(root if root == "hub" else scenes / root)


DOWNLOAD = """
import os, sys
from tests.data.datasets.local_hub import serve

folder, repo, commit = sys.argv[1:]
with serve(folder, repo, commit) as server:
    os.environ |= {"HF_ENDPOINT": server.url, "HF_HUB_OFFLINE": "0", "HF_HOME": f"{folder}/home"}
    from htt_lightning import FolderDataModule, NYUDDataModule
    from htt_lightning.errors import DataError

    server.ends_early = "train-00001-of-00002.parquet"
    try:
        NYUDDataModule("hub").build_dataset("train")
        sys.exit("an incomplete download was accepted")
    except DataError as error:
        assert repo in str(error)
    server.ends_early = None
    server.requests.clear()
    assert len(NYUDDataModule("hub").build_dataset("train").ids) == 5
    assert {name for name, _ in server.requests} == {"data/train-00001-of-00002.parquet"}
assert len(NYUDDataModule("hub").build_dataset("train").ids) == 5
"""


@pytest.mark.slow
def test_interrupted_download_goes_on_and_is_kept(scenes, tmp_path):
    shutil.copytree(scenes / "features", tmp_path / "repo")
    run("-c", DOWNLOAD, tmp_path / "repo", nyud.REPO.repo, nyud.REPO.revision, cwd=tmp_path, PYTHONPATH=str(ROOT))
