"""What the check remarks on in labels that can be read."""

import numpy as np
import pytest

from htt_lightning.commands.check.command import contact_sheet, draw_row, suspects
from htt_lightning.commands.check.inspection import inspect, open_splits
from htt_lightning.commands.check.readings import same_shape
from htt_lightning.data import NYUD40DataModule, NYUDDataModule, PASCALContextDataModule
from htt_lightning.data.datasets.synthetic import write_nyud
from tests.data.datasets import pascal_tree, test_nyud40

SETTINGS = {"labels": "full", "num_workers": 0, "seed": 0}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """NYUD with 13 classes, where five depth maps are empty, and a label and an image are broken."""
    root = tmp_path_factory.mktemp("rooms") / "NYUDv2"
    write_nyud(root, train=12, val=2, size=(24, 32))
    for name in (2, 5, 6, 8, 9):
        np.save(root / "train" / "depth" / f"{name}.npy", np.full((24, 32), np.nan))
    np.save(root / "train" / "label" / "11.npy", np.full((24, 32), 2.5))
    (root / "train" / "image" / "4.npy").write_bytes(b"")
    return root


@pytest.fixture(scope="module")
def report(root):
    return inspect(NYUDDataModule(str(root), **SETTINGS))


def test_labels_that_are_empty_are_named_in_a_note(report):
    assert report["notes"] == ["train depth: 5 of 11 labels are missing in every pixel, such as 2, 5, 6."]
    assert report["splits"]["train"]["tasks"]["depth"]["empty"] == 5


def test_a_value_that_is_no_class_is_named(report):
    (fault,) = (fault for fault in report["faults"] if fault["what"] == "semseg")
    assert "label/11.npy holds 2.5; classes must be whole numbers from -1 (missing) to 12" in fault["message"]


def test_the_sheet_begins_with_what_is_remarked_on_and_can_be_read(root, report):
    assert suspects(report) == {"train": ["4", "11", "2", "5", "6"], "val": []}
    splits = open_splits(NYUDDataModule(str(root), **SETTINGS)).splits
    few, more = (contact_sheet(splits, count, suspects(report)) for count in (6, 16))
    rows = [draw_row(splits["train"], position) for position in (11, 2, 5)]
    np.testing.assert_array_equal(few[: 3 * len(rows[0])], np.concatenate(rows))
    assert len(more) == (8 + 2) * len(rows[0]), "twelve and two images, and eight of each at most"


def test_labels_of_another_size_are_counted_and_those_of_another_shape_named(tmp_path):
    root, size = test_nyud40.write_tree(tmp_path / "NYUDv2"), test_nyud40.SIZE
    half = (size[0] // 2, size[1] // 2)
    test_nyud40.replace(root, "semseg", np.ones(half, np.uint8))
    test_nyud40.replace(root, "normals", np.full((*half, 3), 200, np.uint8))
    test_nyud40.replace(root, "normals", np.full((30, 30, 3), 200, np.uint8), "10")
    test_nyud40.replace(root, "depth", np.ones((size[1], size[0]), np.float32), "3")
    report = inspect(NYUD40DataModule(str(root), **SETTINGS))
    assert report["faults"] == []
    rows = report["splits"]["train"]["tasks"]
    assert {task: row["resized"] for task, row in rows.items()} == {"semseg": 1, "depth": 1, "normals": 2, "edges": 0}
    assert [text for text in report["warnings"] if "shape" in text] == [
        f"train {task}: 1 of 4 labels have another shape than their images and are stretched to it, such as {name}."
        for task, name in (("depth", "3"), ("normals", "10"))
    ]


def test_segments_of_another_size_are_seen_in_both_tasks_that_are_made_of_them(tmp_path):
    root, name = pascal_tree.write_tree(tmp_path / "PASCALContext"), pascal_tree.NOBODY
    pascal_tree.write_segments(root / pascal_tree.FILES["edges"].format(name), np.full((48, 64), 3, np.uint16))
    rows = inspect(PASCALContextDataModule(str(root), **SETTINGS))["splits"]["train"]["tasks"]
    assert {task: row["resized"] for task, row in rows.items() if row["resized"]} == {"normals": 1, "edges": 1}
    assert not any(row["stretched"] for row in rows.values())


@pytest.mark.parametrize(
    ("size", "other", "same"),
    [
        ((425, 560), (425, 560), True),
        ((480, 640), (240, 320), True),
        ((375, 500), (188, 250), True),
        ((375, 500), (187, 250), True),
        ((333, 500), (166, 250), True),
        ((500, 333), (333, 500), False),
        ((375, 500), (180, 250), False),
        ((34, 44), (5, 5), False),
        ((512, 512), (375, 500), False),
    ],
)
def test_sizes_are_of_one_shape_but_for_rounding(size, other, same):
    assert same_shape(size, other) is same_shape(other, size) is same
