"""Figures and faults of a dataset."""

import numpy as np
import pytest

from htt_lightning.commands.check.command import contact_sheet
from htt_lightning.commands.check.inspection import inspect, open_splits
from htt_lightning.data import NYUDDataModule
from htt_lightning.data.datasets.nyud import CLASSES, NYUD
from htt_lightning.data.datasets.synthetic import write_nyud
from htt_lightning.data.masks.label_mask import sample_mask
from htt_lightning.tasks import Depth
from tests.flow import HeightDataModule, HeightScenes

SIZE = (24, 32)
FOLDERS = {"semseg": "label", "depth": "depth", "normals": "normal"}


@pytest.fixture
def root(tmp_path):
    write_nyud(tmp_path / "NYUDv2", train=9, val=3, size=SIZE)
    return tmp_path / "NYUDv2"


def nyud(root, **changes):
    return NYUDDataModule(**({"root": str(root), "labels": "full", "num_workers": 0, "seed": 0} | changes))


def replace(root, kind, change, name, split="train"):
    path = root / split / kind / f"{name}.npy"
    np.save(path, change(np.load(path)))


def put(value):
    def change(array):
        array[0, 0] = value
        return array

    return change


def messages(report):
    return [(fault["split"], fault["id"], fault["what"]) for fault in report["faults"]]


def stored(root, split, kind, names):
    return np.stack([np.load(root / split / kind / f"{name}.npy").astype(np.float64) for name in names])


# What is found


def test_a_sound_dataset_has_no_fault(root):
    report = inspect(nyud(root))
    assert report["faults"] == []
    train = report["splits"]["train"]
    assert train["images"] == 9
    assert train["sizes"] == {"24x32": 9}
    assert train["labels_per_image"] == {"3": 9}


@pytest.mark.parametrize("labels", ["full", "one-label"])
def test_figures_are_those_of_plain_numpy(root, labels):
    replace(root, "depth", lambda a: a * 3, 0, "val")
    data = nyud(root, labels=labels, tasks=["semseg", Depth(min_depth=1.5, max_depth=4.0), "normals"])
    report = inspect(data)
    for split in ("train", "val"):
        kept = data.labels_per_image(split, data.source(split))
        figures = report["splits"][split]["tasks"]
        names = {task: [name for name, tasks in kept.items() if task in tasks] for task in FOLDERS}
        images = stored(root, split, "image", kept)
        np.testing.assert_allclose(report["splits"][split]["range"], (images.min(), images.max()))
        classes = stored(root, split, "label", names["semseg"])
        depth = stored(root, split, "depth", names["depth"])
        normals = stored(root, split, "normal", names["normals"])
        given = {"semseg": classes >= 0, "depth": depth > 0, "normals": normals.any(-1)}
        for task, valid in given.items():
            assert figures[task]["labels"] == len(names[task])
            assert figures[task]["missing_percent"] == pytest.approx(100 - 100 * valid.mean())
        shares = [100 * np.mean(classes[given["semseg"]] == k) for k in range(13)]
        assert list(figures["semseg"]["classes_percent"]) == list(CLASSES)
        assert list(figures["semseg"]["classes_percent"].values()) == pytest.approx(shares)
        metres = depth[given["depth"]]
        outside = 100 * np.mean((metres < 1.5) | (metres > 4))
        assert 0 < outside < 100
        assert figures["depth"]["further"] == {"outside_bins_percent": pytest.approx(outside)}
        assert figures["depth"]["range"] == pytest.approx((metres.min(), metres.max()))
        vectors = normals[given["normals"]]
        k = np.arange(40)
        z, turn = 1 - (k + 0.5) / 40, k * np.pi * (3 - np.sqrt(5))
        bins = np.stack([np.sqrt(1 - z * z) * np.cos(turn), np.sqrt(1 - z * z) * np.sin(turn), z], 1)
        angle = np.degrees(np.arccos((vectors @ bins.T).max(1).clip(-1, 1)))
        assert figures["normals"]["further"] == {
            "not_unit_percent": 0,
            "degrees_to_bins_mean": pytest.approx(angle.mean(), abs=0.02),
            "degrees_to_bins_max": pytest.approx(angle.max(), abs=0.02),
        }


def test_warnings_are_no_faults(root):
    report = inspect(nyud(root, tasks=["semseg", Depth(min_depth=20, max_depth=30)]))
    assert report["faults"] == []
    assert any("val semseg: No pixel is of class" in text for text in report["warnings"])
    assert any("train depth: 100.0 % lie outside the bins, 20 to 30 m" in text for text in report["warnings"])
    few = "images, where {} were published: a part of the archive is missing, unless fewer are meant."
    assert inspect(nyud(root, tasks="depth"))["warnings"] == [
        "train: 9 " + few.format(795), "val: 3 " + few.format(654)
    ]  # fmt: skip


# Faults


def plant(root):
    """Ten broken files of every kind; what the check must say about them."""
    replace(root, "image", lambda a: a * 255, 0)
    replace(root, "label", lambda a: a[:-1], 1)
    replace(root, "label", put(13), 2)
    (root / "train" / "image" / "3.npy").unlink()
    (root / "train" / "depth" / "4.npy").unlink()
    path = root / "train" / "normal" / "4.npy"
    path.write_bytes(path.read_bytes()[:-50])
    replace(root, "normal", lambda a: (a + 1) * 127.5, 5)
    for name in (6, 7, 8):
        for kind in ("image", *FOLDERS.values()):
            replace(root, kind, lambda a: a[:, :20], name)
    replace(root, "label", put(-3), 1, "val")
    (root / "val" / "image" / "2.npy").write_bytes(b"nothing")
    return {
        ("train", "0", "image"): "image/0.npy holds colours",
        ("train", "1", "semseg"): "label/1.npy is (23, 32)",
        ("train", "2", "semseg"): "label/2.npy holds 13; classes",
        ("train", "3", "image"): "image/3.npy is missing",
        ("train", "4", "depth"): "depth/4.npy is missing",
        ("train", "4", "normals"): "normal/4.npy is truncated",
        ("train", "5", "normals"): "normal/5.npy holds vectors",
        ("train", "6", "sample"): "image/6.npy is (24, 20)",
        ("train", "7", "sample"): "image/7.npy is (24, 20)",
        ("train", "8", "sample"): "image/8.npy is (24, 20)",
        ("val", "1", "semseg"): "label/1.npy holds -3; classes",
        ("val", "2", "image"): "image/2.npy is truncated",
    }


def test_every_broken_file_is_named(root):
    planted = plant(root)
    report = inspect(nyud(root))
    assert messages(report) == list(planted)
    for fault, message in zip(report["faults"], planted.values(), strict=True):
        assert message in fault["message"]
    assert report["splits"]["train"]["sizes"] == {"24x20": 3, "24x32": 4}
    # Labels that need not be compared with a lost image are counted where they can be read.
    assert {task: row["labels"] for task, row in report["splits"]["train"]["tasks"].items()} == {
        "semseg": 6, "depth": 7, "normals": 6,
    }  # fmt: skip


def test_the_report_is_the_same_whatever_the_number_of_processes(root):
    plant(root)
    alone = inspect(nyud(root, labels="random-label"))
    assert alone["faults"]
    assert inspect(nyud(root, labels="random-label", num_workers=2)) == alone


def test_hidden_labels_are_not_touched(root):
    data = nyud(root, labels="one-label")
    sound, sheet = inspect(data), contact_sheet(open_splits(data).splits, 6, {})
    for name, given in data.labels_per_image("train", data.source("train")).items():
        for task in set(FOLDERS) - set(given):
            (root / "train" / FOLDERS[task] / f"{name}.npy").write_bytes(b"broken")
    assert inspect(data) == sound
    np.testing.assert_array_equal(contact_sheet(open_splits(data).splits, 6, {}), sheet)


def test_images_of_other_sizes_are_no_fault_where_they_are_resized(root):
    for kind in ("image", *FOLDERS.values()):
        replace(root, kind, lambda a: a[:, :20], 2)
    report = inspect(nyud(root, image_size=SIZE))
    assert report["faults"] == []
    assert report["splits"]["train"]["sizes"] == {"24x20": 1, "24x32": 8}


def test_a_split_that_cannot_be_opened_is_a_fault_and_the_other_is_read(root):
    (root / "val").rename(root / "validation")
    report = inspect(nyud(root))
    assert messages(report) == [("val", None, "split")]
    assert list(report["splits"]) == ["train"]


def test_a_reader_that_fails_in_any_way_is_a_fault(root, monkeypatch):
    read = NYUD.label

    def broken(self, index, task):
        if index == 1:
            raise ZeroDivisionError("no reason")
        return read(self, index, task)[:-1] if index == 2 else read(self, index, task)

    monkeypatch.setattr(NYUD, "label", broken)
    faults = [tuple(fault.values()) for fault in inspect(nyud(root))["faults"]]
    assert faults == [
        (split, name, task, message.format(task), None)
        for split in ("train", "val")
        for name, message in {
            "1": "ZeroDivisionError: no reason",
            "2": "The map of {} is (23, 32), but its image (24, 32).",
        }.items()
        for task in FOLDERS
    ]


@pytest.mark.parametrize(
    "image",
    [np.zeros(SIZE, np.uint8), np.full((*SIZE, 3), 1.1), np.full((*SIZE, 3), np.nan), np.zeros((*SIZE, 3), int)],
)
def test_an_image_that_is_none_is_a_fault(root, monkeypatch, image):
    monkeypatch.setattr(NYUD, "image", lambda self, index: image)
    assert {fault[2] for fault in messages(inspect(nyud(root)))} == {"image"}


def test_a_task_of_another_project_is_checked_as_well(monkeypatch):
    data = HeightDataModule(train_images=4, val_images=2, image_size=(32, 48), num_workers=0, labels="full")
    report = inspect(data)
    low, high = report["splits"]["train"]["tasks"]["height"]["range"]
    assert 0 < low < high <= 8
    assert report["faults"] == []
    monkeypatch.setattr(HeightScenes, "label", lambda self, index, task: np.zeros((32, 48, 2)))
    assert ("val", "1", "height") in messages(inspect(data))


def test_discovered_labels_that_are_lost_are_faults(root, tmp_path):
    (tmp_path / "completed").mkdir()
    report = inspect(nyud(root, labels="one-label", discovered=str(tmp_path / "completed")))
    assert [fault for fault in messages(report) if fault[0] == "val"] == []
    assert [fault[2] for fault in messages(report)] == ["discovered"] * 9 + ["split"]
    assert "manifest.json" in report["faults"][-1]["message"]


def test_vectors_are_measured_as_they_are_stored(root):
    for name in range(3):
        replace(root, "normal", lambda a: a * np.float32(0.6), name, "val")
    report = inspect(nyud(root))
    normals = {name: split["tasks"]["normals"]["further"] for name, split in report["splits"].items()}
    assert normals["train"]["not_unit_percent"] == 0
    assert normals["val"]["not_unit_percent"] == 100
    assert any("val normals" in text and "not of unit length" in text for text in report["warnings"])


def test_a_mask_of_another_dataset_hides_no_broken_file(root, tmp_path):
    sample_mask("one-label", ["a", "b", "c"], nyud(root).canonical, 0).save(tmp_path / "mask.json")
    (root / "train" / "depth" / "4.npy").unlink()
    report = inspect(nyud(root, labels=str(tmp_path / "mask.json")))
    assert messages(report) == [("train", None, "split"), ("train", "4", "depth")]
    assert report["mask"] is None
