"""Fixtures of datasets in Parquet shards."""

import datasets
import huggingface_hub
import pytest

from htt_lightning.data.datasets.synthetic import write_nyud_tree
from tests.data.datasets.shards import rows_of, write_shards


@pytest.fixture(scope="session")
def scenes(tmp_path_factory):
    """Folder of the tree ``NYUDv2`` and of its shards, as features and as nested lists."""
    folder = tmp_path_factory.mktemp("scenes")
    write_nyud_tree(folder / "NYUDv2", train=5, val=2, size=(32, 48))
    for split, count in (("train", 2), ("val", 1)):
        columns = rows_of(folder / "NYUDv2" / split)
        write_shards(folder / "features" / "data", columns, split, count)
        write_shards(folder / "lists", columns, split, count, as_lists=True)
    return folder


@pytest.fixture
def hub_caches(tmp_path, monkeypatch):
    """Keep the caches of the hub and of ``datasets`` in the test's folder."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "arrow")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
