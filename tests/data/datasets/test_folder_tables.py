"""Your own images and labels, listed in tables."""

from pathlib import Path

import numpy as np
import pytest

from htt_lightning.data import LabelFiles
from htt_lightning.errors import HTTError
from tests.data.datasets.folder_tree import (
    COLUMNS,
    DEPTH,
    KEPT,
    LABELLED,
    SIZE,
    available,
    folder,
    rows_of,
    save,
    write_table,
    write_tree,
)


@pytest.fixture
def root(tmp_path):
    return write_tree(tmp_path / "mine")


def test_a_table_gives_the_same_as_a_pattern(root):
    write_table(root, rows_of(LABELLED))
    write_table(root, rows_of(KEPT, "val"), "val.csv", encoding="utf-8-sig")
    table, tree = folder(root, train="train.csv", val="val.csv", label_files=COLUMNS), folder(root)
    for split in ("train", "val"):
        one, other = table.build_dataset(split), tree.build_dataset(split)
        assert one.ids == [f"{split}/images/{name}" for name in other.ids]
        assert list(available(one).values()) == list(available(other).values())
        one.check(dict(zip(one.ids, available(one).values(), strict=True)))
        for k in range(len(one.ids)):
            np.testing.assert_array_equal(one.image(k), other.image(k))
            for task in available(one)[one.ids[k]]:
                np.testing.assert_array_equal(one.label(k, task), other.label(k, task))


def test_a_table_of_images_may_use_patterns_of_labels(root):
    write_table(root, [[f"train/images/{name}.png"] for name in KEPT], columns=["image"])
    for name in KEPT:
        if "depth" in KEPT[name]:
            path = root / "depth" / "train" / "images" / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            (root / "train" / "depth" / f"{name}.png").rename(path)
    data = folder(root, train="train.csv", label_files=[LabelFiles(DEPTH, "depth/{id}.png", scale=0.001)])
    assert data.build_dataset("train").ids == [f"train/images/{name}" for name in KEPT if "depth" in KEPT[name]]


def test_images_of_a_table_are_in_natural_order(root):
    write_table(root, rows_of(LABELLED)[::-1])
    assert [
        Path(name).name for name in folder(root, train="train.csv", label_files=COLUMNS).build_dataset("train").ids
    ] == [*LABELLED]


@pytest.mark.parametrize(
    ("rows", "columns", "message"),
    [
        ([["", "", "", ""]], None, r"train\.csv, line 2 has no image"),
        ([*rows_of(LABELLED)[:2], ["  ", "a", "", ""]], None, "line 4 has no image"),
        ([["train/images/1.png", ""]], None, "line 2 must have 4 cells"),
        ([["train/images/1.png", "", "", "", "more"]], None, "line 2 must have 4 cells"),
        ([], None, r"train\.csv lists no image"),
        ([*rows_of(LABELLED), rows_of(LABELLED)[1]], None, r"line 3, .*line 8 .* 'train/images/2'"),
        (rows_of(LABELLED), ["picture", "semseg", "depth", "normals"], "one column 'image', got picture"),
        (rows_of(LABELLED), ["image", "semseg", "disparity", "normals"], "one column 'depth'"),
        (rows_of(LABELLED), ["image", "semseg", "semseg", "normals"], "one column 'semseg'"),
        ([["train/images/1.png", "", "", ""]], None, "label of semseg: .*the column 'semseg'"),
        ([["../outside.png", "x", "x", "x"]], None, r"line 2 .* got '\.\./outside\.png'"),
        ([["train/images/1.png", "link.png", "x", "x"]], None, r"line 2: 'link\.png' must stay in"),
        ([["train/images/1.png", "circle/a.png", "x", "x"]], None, "must stay in|is missing|many levels of"),
        ([["train/images/1.png", "a\0b", "x", "x"]], None, "must stay in|must be a CSV table"),
    ],
)
def test_invalid_tables_are_named_with_the_line(root, rows, columns, message):
    save(root.parent / "outside.png", np.zeros(SIZE, np.uint8))
    (root / "link.png").symlink_to(root.parent / "outside.png")
    (root / "circle").symlink_to("circle")
    write_table(root, rows, columns=columns or ["image", "semseg", "depth", "normals"])
    with pytest.raises(HTTError, match=message):
        folder(root, train="train.csv", label_files=COLUMNS).prepare_data()


def test_every_invalid_row_of_a_table_is_reported(root):
    rows = rows_of(KEPT)
    rows[0][0], rows[2][1], rows[4] = "", "../outside.png", rows[4][:2]
    write_table(root, rows)
    with pytest.raises(HTTError) as error:
        folder(root, train="train.csv", label_files=COLUMNS).build_dataset("train")
    lines = [one.message for one in error.value.errors]
    assert [f"line {number} " in line for number, line in zip((2, 4, 6), lines, strict=True)] == [True] * 3


def test_a_table_in_another_encoding_is_rejected(root):
    (root / "train.csv").write_bytes("image,semseg\nGrün.png,\n".encode("latin-1"))
    with pytest.raises(HTTError, match=r"train\.csv must be a CSV table"):
        folder(root, train="train.csv", label_files=COLUMNS).build_dataset("train")


def test_a_table_may_name_links_within_the_root(root):
    (root / "link.png").symlink_to(root / "train" / "semseg" / "1.png")
    rows = rows_of(LABELLED)
    rows[0][1] = "link.png"
    write_table(root, rows)
    source = folder(root, train="train.csv", label_files=COLUMNS).build_dataset("train")
    np.testing.assert_array_equal(source.label(0, "semseg"), folder(root).build_dataset("train").label(0, "semseg"))


def test_a_label_named_in_a_table_must_exist(root):
    write_table(root, [["train/images/1.png", "train/semseg/99.png", "train/depth/1.png", "train/normals/1.png"]])
    with pytest.raises(HTTError, match=r"semseg.99\.png is missing"):
        folder(root, train="train.csv", label_files=COLUMNS, batch_size=1).prepare_data()
