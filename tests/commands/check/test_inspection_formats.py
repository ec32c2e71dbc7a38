"""The check of every dataset: all planted faults are named, in both splits and of every kind of file."""

import numpy as np
import pytest
from PIL import Image

from htt_lightning.commands.check.inspection import inspect
from htt_lightning.data import CityscapesDataModule, NYUD40DataModule, PASCALContextDataModule
from tests.data.datasets import pascal_tree, test_cityscapes, test_nyud40
from tests.data.datasets.folder_tree import folder, save, write_tree
from tests.data.datasets.pascal_tree import ALONE, FIRST, NO_PARTS, NOBODY

SETTINGS = {"labels": "full", "num_workers": 0, "seed": 0}


def spoil(path, content=b""):
    """Cut a file short; nothing is left by default."""
    path.write_bytes(content)


def cityscapes(root):
    root = test_cityscapes.write_tree(root / "cityscapes")
    np.save(root / "train" / "label_19" / "3.npy", np.full(test_cityscapes.SIZE, 19.0))
    np.save(root / "val" / "depth" / "1.npy", np.ones((3, 3), np.float32))
    (root / "train" / "depth" / "0.npy").unlink()
    spoil(root / "val" / "image" / "0.npy")
    return CityscapesDataModule(str(root), classes=19, **SETTINGS), {
        ("train", "0", "depth"): "depth/0.npy is missing",
        ("train", "3", "semseg"): "label_19/3.npy holds 19; classes",
        ("val", "0", "image"): "image/0.npy is truncated",
        ("val", "1", "depth"): "depth/1.npy is (3, 3), but its image (16, 32)",
    }


def nyud40(root):
    root = test_nyud40.write_tree(root / "NYUDv2")
    test_nyud40.replace(root, "semseg", np.full(test_nyud40.SIZE, 41, np.uint8))
    test_nyud40.replace(root, "edges", np.full(test_nyud40.SIZE, 1, np.uint8), "3")
    (root / "depth" / "10.npy").unlink()
    spoil(root / "images" / "1448.png")
    test_nyud40.replace(root, "semseg", np.full(test_nyud40.SIZE, 99, np.uint8), "1448")
    (root / "gt_sets" / "val.txt").write_text("1\n5\n77\n")
    return NYUD40DataModule(str(root), **SETTINGS), {
        ("train", "2", "semseg"): "segmentation/2.png holds 41",
        ("train", "3", "edges"): "edge/3.png holds 1",
        ("train", "10", "depth"): "depth/10.npy is missing",
        ("train", "1448", "image"): "images/1448.png is truncated",
        ("train", "1448", "semseg"): "segmentation/1448.png holds 99",
        ("val", "77", "image"): "images/77.png is missing",
    } | {("val", "77", task): "77." for task in test_nyud40.ALL}


def pascal(root):
    root = pascal_tree.write_tree(root / "PASCALContext")
    PASCALContextDataModule(str(root), **SETTINGS).source("train")  # lists the people
    jpeg, parts, png = (
        root / "JPEGImages" / f"{NOBODY}.jpg",
        root / "human_parts" / f"{FIRST}.mat",
        root / "semseg" / "VOC12" / f"{NO_PARTS}.png",
    )
    for path in (jpeg, parts, png):
        spoil(path, path.read_bytes()[:-40])
    (root / "sal_distill" / f"{ALONE}.png").unlink()
    spoil(root / "pascal-context" / "trainval" / f"{ALONE}.mat")
    name = pascal_tree.IDS["val"][0]
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(root / "normals_distill" / f"{name}.png")
    return PASCALContextDataModule(str(root), **SETTINGS), {
        ("train", FIRST, "human_parts"): f"human_parts/{FIRST}.mat is truncated",
        ("train", ALONE, "saliency"): f"sal_distill/{ALONE}.png is missing",
        ("train", ALONE, "normals"): f"trainval/{ALONE}.mat is truncated",  # edges fail by the same file
        ("train", NO_PARTS, "semseg"): f"VOC12/{NO_PARTS}.png is truncated",
        ("train", NOBODY, "image"): f"JPEGImages/{NOBODY}.jpg is truncated",
        ("val", name, "normals"): f"normals_distill/{name}.png is PNG L",
    }


def own(root):
    root = write_tree(root)
    for place in ("images/1", "semseg/2", "depth/3"):
        spoil(root / "train" / f"{place}.png")
    save(root / "train" / "normals" / "11.png", np.zeros((4, 4, 3), np.uint8))
    save(root / "val" / "semseg" / "2.png", np.full((32, 48), 3, np.uint8))
    return folder(root), {
        ("train", "1", "image"): "images/1.png is truncated",
        ("train", "2", "semseg"): "semseg/2.png is truncated",
        ("train", "3", "depth"): "depth/3.png is truncated",
        ("train", "11", "normals"): "normals/11.png is (4, 4)",
        ("val", "2", "semseg"): "semseg/2.png holds 3",
    }


@pytest.mark.parametrize("plant", [cityscapes, nyud40, pascal, own])
def test_every_planted_fault_is_named(plant, tmp_path):
    data, planted = plant(tmp_path)
    found = {(fault["split"], fault["id"], fault["what"]): fault["message"] for fault in inspect(data)["faults"]}
    assert list(found) == list(planted)
    for place, message in planted.items():
        assert message in found[place]


def test_without_the_list_of_people_all_files_are_read_still(tmp_path):
    root = pascal_tree.write_tree(tmp_path / "PASCALContext")
    for name in pascal_tree.IDS["train"]:
        spoil(root / "human_parts" / f"{name}.mat")
    spoil(root / "JPEGImages" / f"{NOBODY}.jpg")
    (root / "sal_distill" / f"{ALONE}.png").unlink()
    found = [(fault["split"], fault["what"], fault["message"]) for fault in inspect(data_of(root))["faults"]]
    for name in pascal_tree.IDS["train"]:
        assert any(split == "train" and f"human_parts/{name}.mat" in text for split, _, text in found)
    assert any(what == "image" and f"{NOBODY}.jpg" in text for _, what, text in found)
    assert any(what == "saliency" and f"{ALONE}.png" in text for _, what, text in found)


def data_of(root):
    return PASCALContextDataModule(str(root), **SETTINGS)


def test_coded_directions_are_of_unit_length_up_to_rounding(tmp_path):
    root = pascal_tree.write_tree(tmp_path / "PASCALContext")
    rng = np.random.default_rng(0)
    for folder_of, scale in (("train", 1), ("val", 0.5)):
        for name in pascal_tree.IDS[folder_of]:
            path = root / "normals_distill" / f"{name}.png"
            size = np.asarray(Image.open(path)).shape[:2]
            vectors = rng.normal(size=(*size, 3))
            vectors *= scale / np.linalg.norm(vectors, axis=-1, keepdims=True)
            Image.fromarray(np.rint((vectors + 1) * 127.5).astype(np.uint8)).save(path)
    report = inspect(data_of(root))
    shares = {
        name: split["tasks"]["normals"]["further"]["not_unit_percent"] for name, split in report["splits"].items()
    }
    assert shares == {"train": 0, "val": 100}
    assert any("val normals" in text and "not of unit length" in text for text in report["notes"])
    assert not any("unit length" in text for text in report["warnings"])  # predictions are as a network made them
