"""The check of datasets that cannot be opened as they are: it names all faults and reads what is left."""

import pytest

from htt_lightning import MixedDataModule
from htt_lightning.commands.check.inspection import inspect
from htt_lightning.data import LabelFiles, NYUD40DataModule, NYUDDataModule, PASCALContextDataModule
from htt_lightning.data.datasets.synthetic import write_nyud
from htt_lightning.errors import HTTError
from tests.data.datasets import pascal_tree, test_nyud40
from tests.data.datasets.folder_tree import COLUMNS, DEPTH, KEPT, MAPS, RULES, TASKS, folder, rows_of, write_table
from tests.data.datasets.folder_tree import write_tree as write_folder

SETTINGS = {"labels": "full", "num_workers": 0, "seed": 0}


@pytest.fixture
def root(tmp_path):
    write_nyud(tmp_path / "NYUDv2", train=4, val=2, size=(24, 32))
    return tmp_path / "NYUDv2"


@pytest.fixture
def own(tmp_path):
    return write_folder(tmp_path / "mine")


def nyud(root, **changes):
    return NYUDDataModule(str(root), **(SETTINGS | changes))


def named(report):
    return [(fault["split"], fault["id"], fault["what"], fault["message"]) for fault in report["faults"]]


def matches(report, expected):
    """Every fault is expected, and every expected one is there: split, id, what, and a part of the message."""
    found = named(report)
    assert [fault[:3] for fault in found] == [fault[:3] for fault in expected], found
    for fault, (*_, text) in zip(found, expected, strict=True):
        assert text in fault[3]


# Trees of numbered files


def test_stray_files_hide_no_other_fault_of_either_split(root):
    stray = [root / "train" / "image" / "copy.npy", root / "train" / "depth" / "._1.npy", root / "val/label/foo.npy"]
    for path in stray:
        path.write_bytes(b"")
    (root / "train" / "depth" / "3.npy").write_bytes(b"damaged")
    data = nyud(root)
    expected = [
        ("train", None, "split", "depth/._1.npy is not named by an integer"),
        ("train", None, "split", "image/copy.npy is not named by an integer"),
        ("val", None, "split", "label/foo.npy is not named by an integer"),
        ("train", "3", "depth", "depth/3.npy is truncated"),
    ]
    report = inspect(data)
    matches(report, expected)
    assert report["trees"] == []
    assert report["splits"]["train"]["tasks"]["semseg"]["labels"] == 4
    matches(inspect(data), expected)
    with pytest.raises(HTTError, match=r"_1\.npy is not named[\s\S]*copy\.npy is not named"):
        data.prepare_data()


def test_stray_files_are_named_once_also_with_discovered_labels(root, tmp_path):
    for name in ("a", "b"):
        (root / "train" / "image" / f"{name}.npy").write_bytes(b"")
    found = inspect(nyud(root, labels="one-label", discovered=str(tmp_path)))["faults"]
    assert ["image/" in fault["message"] for fault in found if fault["what"] == "split"] == [True, True]
    assert [fault["what"] for fault in found].count("discovered") == 4


def test_hidden_labels_of_a_split_with_a_stray_file_are_not_touched(root):
    data = nyud(root, labels="one-label")
    for name, kept in data.labels_per_image("train", data.source("train")).items():
        if "depth" not in kept:
            (root / "train" / "depth" / f"{name}.npy").write_bytes(b"broken")
    (root / "train" / "image" / "copy.npy").write_bytes(b"")
    matches(inspect(nyud(root, labels="one-label")), [("train", None, "split", "copy.npy")])


def test_a_folder_that_is_missing_is_one_fault_and_the_tree_is_given_once(root):
    (root / "train" / "normal").rename(root / "train" / "normals")
    for path in (root / "val" / "depth").iterdir():
        path.unlink()
    (root / "train" / "label" / "2.npy").unlink()
    report = inspect(nyud(root))
    expected = [
        ("train", None, "normals", "train/normal/: all 4 files are missing"),
        ("train", "2", "semseg", "label/2.npy is missing"),
        ("val", None, "depth", "val/depth/: all 2 files are missing"),
    ]
    matches(report, expected)
    (tree,) = report["trees"]
    assert "normal/0.npy ..." in tree
    assert not any("normal/0.npy ..." in fault[3] for fault in named(report))


def test_the_images_of_a_split_that_are_all_missing_are_one_fault(root):
    for path in (root / "train" / "image").iterdir():
        path.unlink()
    matches(inspect(nyud(root)), [("train", None, "image", "train/image/: all 4 files are missing")])


@pytest.mark.parametrize("fault", ["missing", "a file"])
def test_a_root_that_is_none_is_named_with_the_tree(tmp_path, fault):
    if fault == "a file":
        (tmp_path / "data").touch()
    for kind, tree in (
        (NYUDDataModule, "normal/0.npy"),
        (NYUD40DataModule, "gt_sets"),
        (PASCALContextDataModule, "VOC"),
    ):
        with pytest.raises(HTTError, match=rf"data\.root .*data is {fault}[\s\S]*{tree}") as error:
            inspect(kind(str(tmp_path / "data"), **SETTINGS))
        assert str(error.value).count("The dataset must read") == 1
    with pytest.raises(
        HTTError, match=r"data\.root .*data is " + ("a file and " if fault == "a file" else "no folder")
    ):
        inspect(folder(tmp_path / "data"))


@pytest.mark.parametrize(
    ("lost", "remarks"),
    [
        (("1",), ["1 of the numbers 0 to 3 name no file, such as 1.", "3 images, where 795 were published: a part"]),
        (("0", "2"), ["2 of the numbers 0 to 3 name no file, such as 0, 2.", "2 images, where 795 were published"]),
        (("3",), ["3 images, where 795 were published"]),
    ],
)
def test_samples_that_are_lost_as_a_whole_are_doubted(root, lost, remarks):
    for name in lost:
        for kind in ("image", "label", "depth", "normal"):
            (root / "train" / kind / f"{name}.npy").unlink()
    report = inspect(nyud(root, tasks="depth"))
    assert report["faults"] == []
    found = [text for text in report["warnings"] if text.startswith("train:")]
    assert len(found) == len(remarks)
    for text, remark in zip(found, remarks, strict=True):
        assert text.startswith(f"train: {remark}")


def test_a_split_of_the_published_size_is_not_doubted(root, monkeypatch):
    monkeypatch.setattr("htt_lightning.data.datasets.nyud.PUBLISHED", {"train": 4, "val": 1})
    doubts = [text for text in inspect(nyud(root))["warnings"] if "published" in text]
    assert doubts == ["val: 2 images, where 1 were published."]


# Lists of ids


def test_lines_of_a_list_that_are_none_hide_no_broken_file(tmp_path):
    root = test_nyud40.write_tree(tmp_path / "NYUDv2")
    path = root / "gt_sets" / "train.txt"
    path.write_text(path.read_text() + "../x\n2\n")
    (root / "depth" / "3.npy").write_bytes(b"")
    (root / "gt_sets" / "val.txt").unlink()
    report = inspect(NYUD40DataModule(str(root), **SETTINGS))
    expected = [
        ("train", None, "split", "lists '../x', which is no image id"),
        ("train", None, "split", "lists '2' twice"),
        ("val", None, "split", "val.txt is missing"),
        ("train", "3", "depth", "depth/3.npy is truncated"),
    ]
    matches(report, expected)
    assert "gt_sets/train.txt" in report["trees"][0]
    assert "train: 4 images, where 795 were published" in report["warnings"][0]


def test_parts_of_persons_that_are_all_missing_are_one_fault(tmp_path):
    root = pascal_tree.write_tree(tmp_path / "PASCALContext")
    (root / "human_parts").rename(root / "parts")
    (root / "semseg" / "VOC12").rename(root / "voc")
    (root / "sal_distill" / f"{pascal_tree.ALONE}.png").unlink()
    report = inspect(PASCALContextDataModule(str(root), **SETTINGS))
    expected = [
        ("train", None, "split", "human_parts/: all 4 files are missing"),
        ("val", None, "split", "human_parts/: all 2 files are missing"),
        ("train", None, "semseg", "semseg/VOC12/: all 3 files are missing"),
        ("train", pascal_tree.ALONE, "saliency", f"{pascal_tree.ALONE}.png is missing"),
        ("val", None, "semseg", "semseg/VOC12/: all 2 files are missing"),
    ]
    matches(report, expected)
    assert len(report["trees"]) == 1
    assert not (root / "ImageSets" / "Parts").exists()


# One's own files


def test_every_broken_row_is_a_fault_and_the_other_rows_are_read(own):
    rows = rows_of(KEPT)
    rows[0][0], rows[1][0], rows[4] = "", "../outside.png", rows[4][:2]
    write_table(own, [*rows, rows[5]])
    write_table(own, [["", "", "", ""], *rows_of(KEPT, "val")], "val.csv")
    (own / "train" / "depth" / "3.png").write_bytes(b"")
    report = inspect(folder(own, train="train.csv", val="val.csv", maps=COLUMNS))
    expected = [
        ("train", None, "split", "line 2: the cell of its image is empty"),
        ("train", None, "split", "line 3: '../outside.png' must be relative"),
        ("train", None, "split", "line 6: expected 4 cells"),
        ("train", None, "split", "have the same id 'train/images/11'"),
        ("val", None, "split", "line 2: the cell of its image is empty"),
        ("train", "train/images/3", "depth", "depth/3.png is truncated"),
    ]
    matches(report, expected)
    assert report["splits"]["train"]["images"] == 4
    assert report["splits"]["val"]["images"] == 7


def test_two_tables_that_cannot_be_read_are_both_named(own):
    for name in ("train", "val"):
        (own / f"{name}.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(HTTError, match=r"train\.csv cannot be read[\s\S]*val\.csv cannot be read"):
        inspect(folder(own, train="train.csv", val="val.csv", maps=COLUMNS))


def test_columns_that_are_not_there_hide_no_broken_file(own):
    write_table(own, rows_of(KEPT), columns=("image", "classes", "metres", "normals"))
    (own / "train" / "images" / "2.png").write_bytes(b"")
    report = inspect(folder(own, train="train.csv", maps=[*COLUMNS[:2], MAPS[2]]))
    expected = [
        ("train", None, "split", "needs one column 'semseg'"),
        ("train", None, "split", "needs one column 'depth'"),
        ("train", "train/images/2", "image", "images/2.png is truncated"),
    ]
    assert [fault[:3] for fault in named(report)][:2] == [fault[:3] for fault in expected][:2]
    assert named(report)[-1][:3] == expected[-1][:3]


def test_patterns_that_match_nothing_hide_no_broken_file(own):
    maps = [
        LabelFiles(TASKS["semseg"], "train/smeseg/{id}.png", "val/semseg/{id}.png", **RULES["semseg"]),
        LabelFiles(DEPTH, "train/depth/{id}.png", "val/dpeth/{id}.png", factor=0.001),
        LabelFiles(TASKS["normals"], "/normals/{id}.png"),
    ]
    (own / "train" / "images" / "2.png").write_bytes(b"")  # its only label is one of those that are not found
    (own / "train" / "depth" / "10.png").write_bytes(b"")
    data = folder(own, maps=maps, labels="one-label")
    expected = [
        ("train", None, "split", "'/normals/{id}.png' must be relative"),
        ("train", None, "split", "No train image has a label of semseg"),
        ("val", None, "split", "No val image has a label of depth"),
        ("train", "2", "image", "images/2.png is truncated"),
        ("train", "10", "depth", "depth/10.png is truncated"),
    ]
    report = inspect(data)
    matches(report, expected)
    assert report["mask"] is None
    with pytest.raises(HTTError, match="must be relative"):
        data.prepare_data()  # what the check has opened is not what a run trains on


# Mixtures


def mixed(*parts):
    return MixedDataModule([*parts], image_size=(24, 32), num_workers=0, seed=0)


def test_a_part_that_cannot_be_opened_hides_no_fault_of_another(root, own):
    (own / "train" / "depth" / "3.png").write_bytes(b"")
    (root / "val").rename(root / "validation")
    (root / "train" / "depth" / "1.npy").unlink()
    (root / "train" / "depth" / "foo.npy").write_bytes(b"")
    nowhere = NYUD40DataModule(str(root / "nowhere"), labels="full", tasks="edges")
    report = inspect(mixed(nowhere, nyud(root, tasks="depth"), folder(own, maps=[MAPS[1]])))
    expected = [
        ("train", None, "split", "depth/foo.npy is not named by an integer"),
        ("train", None, "split", "nowhere is missing"),
        ("val", None, "split", "nowhere is missing"),
        ("val", None, "split", "val/image is missing or holds no .npy file"),
        ("train", "1/1", "depth", "depth/1.npy is missing"),
        ("train", "2/3", "depth", "depth/3.png is truncated"),
    ]
    matches(report, expected)
    assert [tree.splitlines()[1].split()[0] for tree in report["trees"]] == ["gt_sets/train.txt", "train/"]
    assert any(text.startswith("train: data.parts 1: 4 images, where 795") for text in report["warnings"])


def test_two_roots_that_are_none_are_both_named_by_check_and_run(tmp_path):
    data = mixed(nyud(tmp_path / "here", tasks="depth"), nyud(tmp_path / "there", tasks="semseg"))
    for refuse in (data.prepare_data, lambda: inspect(data)):
        with pytest.raises(HTTError, match=r"here is missing[\s\S]*there is missing") as error:
            refuse()
        assert str(error.value).count("The dataset must read") == 1
