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


def test_a_table_says_the_same_as_the_pattern(root):
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


def test_a_table_may_list_the_images_and_a_pattern_their_labels(root):
    write_table(root, [[f"train/images/{name}.png"] for name in KEPT], columns=["image"])
    for name in KEPT:
        if "depth" in KEPT[name]:
            path = root / "depth" / "train" / "images" / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            (root / "train" / "depth" / f"{name}.png").rename(path)
    data = folder(root, train="train.csv", label_files=[LabelFiles(DEPTH, "depth/{id}.png", scale=0.001)])
    assert data.build_dataset("train").ids == [f"train/images/{name}" for name in KEPT if "depth" in KEPT[name]]


def test_rows_in_any_order_are_images_in_natural_order(root):
    write_table(root, rows_of(LABELLED)[::-1])
    assert [
        Path(name).name for name in folder(root, train="train.csv", label_files=COLUMNS).build_dataset("train").ids
    ] == [*LABELLED]


@pytest.mark.parametrize(
    ("rows", "columns", "message"),
    [
        ([["", "", "", ""]], None, r"train\.csv, line 2: the cell of its image is empty"),
        ([*rows_of(LABELLED)[:2], ["  ", "a", "", ""]], None, "line 4: the cell of its image is empty"),
        ([["train/images/1.png", ""]], None, "line 2: expected 4 cells"),
        ([["train/images/1.png", "", "", "", "more"]], None, "line 2: expected 4 cells"),
        ([], None, r"train\.csv lists no image"),
        ([*rows_of(LABELLED), rows_of(LABELLED)[1]], None, r"line 3 and .*line 8 have the same id 'train/images/2'"),
        (rows_of(LABELLED), ["picture", "semseg", "depth", "normals"], "needs one column 'image'; it has picture"),
        (rows_of(LABELLED), ["image", "semseg", "disparity", "normals"], "needs one column 'depth'"),
        (rows_of(LABELLED), ["image", "semseg", "semseg", "normals"], "needs one column 'semseg'"),
        ([["train/images/1.png", "", "", ""]], None, "No train image has a label of semseg: .*the column 'semseg'"),
        ([["../outside.png", "x", "x", "x"]], None, r"line 2: '\.\./outside\.png' must be relative"),
        ([["train/../../outside.png", "x", "x", "x"]], None, "line 2: .* must be relative"),
        ([["train/images/1.png", "/etc/passwd", "x", "x"]], None, "line 2: '/etc/passwd' must be relative"),
        ([["train/images/1.png", "link.png", "x", "x"]], None, r"line 2: 'link\.png' leads out of"),
        ([["train/images/1.png", "out/outside.png", "x", "x"]], None, r"line 2: 'out/outside\.png' leads out of"),
        ([["train/images/1.png", "circle/a.png", "x", "x"]], None, "leads out of|is missing|many levels of"),
        ([["train/images/1.png", "a\0b", "x", "x"]], None, "leads out of|cannot be read"),
    ],
)
def test_a_broken_table_is_named_with_its_line(root, rows, columns, message):
    save(root.parent / "outside.png", np.zeros(SIZE, np.uint8))
    (root / "link.png").symlink_to(root.parent / "outside.png")
    (root / "out").symlink_to(root.parent)
    (root / "circle").symlink_to("circle")
    write_table(root, rows, columns=columns or ["image", "semseg", "depth", "normals"])
    with pytest.raises(HTTError, match=message):
        folder(root, train="train.csv", label_files=COLUMNS).prepare_data()


def test_every_broken_row_of_a_table_is_named(root):
    rows = rows_of(KEPT)
    rows[0][0], rows[2][1], rows[4] = "", "../outside.png", rows[4][:2]
    write_table(root, rows)
    with pytest.raises(HTTError) as error:
        folder(root, train="train.csv", label_files=COLUMNS).build_dataset("train")
    lines = str(error.value).splitlines()
    assert [line.split(": ")[0].rpartition(", ")[2] for line in lines] == ["line 2", "line 4", "line 6"]


def test_a_table_of_another_encoding_is_refused(root):
    (root / "train.csv").write_bytes("image,semseg\nGrün.png,\n".encode("latin-1"))
    with pytest.raises(HTTError, match=r"train\.csv cannot be read as a table"):
        folder(root, train="train.csv", label_files=COLUMNS).build_dataset("train")


def test_links_within_the_root_may_be_in_a_table(root):
    (root / "link.png").symlink_to(root / "train" / "semseg" / "1.png")
    rows = rows_of(LABELLED)
    rows[0][1] = "link.png"
    write_table(root, rows)
    source = folder(root, train="train.csv", label_files=COLUMNS).build_dataset("train")
    np.testing.assert_array_equal(source.label(0, "semseg"), folder(root).build_dataset("train").label(0, "semseg"))


def test_a_label_that_a_table_names_must_be_there(root):
    write_table(root, [["train/images/1.png", "train/semseg/99.png", "train/depth/1.png", "train/normals/1.png"]])
    with pytest.raises(HTTError, match=r"semseg.99\.png is missing"):
        folder(root, train="train.csv", label_files=COLUMNS, batch_size=1).prepare_data()
