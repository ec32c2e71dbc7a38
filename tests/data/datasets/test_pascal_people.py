"""People and their parts in PASCAL-Context."""

import json

import numpy as np
import pytest
from scipy.io import savemat

from htt_lightning.commands.check.command import inspect
from htt_lightning.data.datasets.pascal_context import PARTS, PASCALContext, PASCALContextDataModule
from htt_lightning.errors import HTTError
from htt_lightning.tasks.human_parts import PARTS as MERGED
from tests.data.datasets.pascal_tree import (
    ALL,
    ALONE,
    FILES,
    FIRST,
    IDS,
    NO_PARTS,
    NOBODY,
    SIZES,
    block,
    check_all,
    label,
    write_parts,
    write_tree,
)


@pytest.fixture
def root(tmp_path):
    return write_tree(tmp_path / "PASCALContext")


def test_parts_are_merged_to_six():
    merged = {
        "head": ("hair", "leye", "nose"),
        "torso": ("neck",),
        "upper arm": ("ruarm",),
        "lower arm": ("llarm", "rhand"),
        "upper leg": ("luleg",),
        "lower leg": ("llleg", "rfoot"),
    }
    assert {name: {MERGED[PARTS[part]] for part in parts} for name, parts in merged.items()} == {
        name: {name} for name in merged
    }


def test_later_parts_cover_earlier_ones(root):
    size = SIZES[FIRST]
    expected = np.zeros(size, np.uint8)
    expected[8:16, 4:14], expected[2:9, 5:10], expected[18:20, 8:12], expected[7:10, 8:18] = 2, 1, 6, 4
    parts = label(root, "human_parts")
    assert parts.dtype == np.uint8
    np.testing.assert_array_equal(parts, expected)


def test_a_single_object_with_one_part_is_read(root):
    parts = label(root, "human_parts", ALONE)
    np.testing.assert_array_equal(parts, 2 * block(SIZES[ALONE], (5, 12), (4, 12)))


@pytest.mark.parametrize("name", [NO_PARTS, NOBODY])
def test_images_without_parts_have_no_label(root, name):
    parts = label(root, "human_parts", name)
    assert parts.shape == SIZES[name]
    assert (parts == 255).all()


def test_human_parts_are_available_where_people_are(root):
    source = PASCALContext(root, "train")
    assert source.available("human_parts").tolist() == [True, True, False, False]
    for task in ("semseg", "saliency", "normals", "edges"):
        assert source.available(task).all()


def cache(root):
    return root / "ImageSets" / "Parts" / "train.txt"


def test_an_existing_list_of_people_is_trusted(root):
    cache(root).parent.mkdir()
    listed = {FIRST: [9], ALONE: [-1, 15], NO_PARTS: [15], NOBODY: []}
    cache(root).write_text(json.dumps(listed))
    for path in (root / "human_parts").iterdir():
        if path.stem != NO_PARTS:
            path.unlink()
    source = PASCALContext(root, "train")
    assert source.available("human_parts").tolist() == [False, True, True, False]
    assert (source.label(0, "human_parts") == 255).all()
    assert (source.label(2, "human_parts") == 255).all()  # a person, but without a part
    assert json.loads(cache(root).read_text()) == listed


@pytest.mark.parametrize("content", [None, "", "{", "[]", "7", '{"2008_000002": [15]}', '{"2008_000002": 15}'])
def test_an_invalid_list_of_people_is_written_again(root, content):
    if content is not None:
        cache(root).parent.mkdir()
        cache(root).write_text(content)
    assert PASCALContext(root, "train").available("human_parts").tolist() == [True, True, False, False]
    assert json.loads(cache(root).read_text()) == {FIRST: [15, 12, 15], ALONE: [15], NO_PARTS: [-1, 12], NOBODY: []}
    written = cache(root).stat().st_mtime_ns
    PASCALContext(root, "train").available("human_parts")
    assert cache(root).stat().st_mtime_ns == written, "a list that is right is used"


def test_persons_without_pixels_do_not_count(root):
    size = SIZES[FIRST]
    nothing = np.zeros(size, np.uint8)
    torso = [("torso", nothing)]
    write_parts(
        root / "human_parts" / f"{FIRST}.mat", [("person", 15, nothing, []), ("person", 15, nothing + 1, torso)]
    )
    assert PASCALContext(root, "train").available("human_parts").tolist() == [False, True, False, False]
    assert json.loads(cache(root).read_text())[FIRST] == [-1, -1]


def test_a_read_only_tree_is_read_in_memory(root, monkeypatch, caplog):
    monkeypatch.setattr("pathlib.Path.replace", lambda self, target: (_ for _ in ()).throw(OSError(30, "read-only")))
    data = PASCALContextDataModule(str(root), num_workers=0)
    source = data.build_dataset("train")
    assert not cache(root).exists()
    assert "read-only" in caplog.text
    read = "htt_lightning.data.datasets.pascal_context.object_classes"
    monkeypatch.setattr(read, lambda path: pytest.fail("read again"))
    assert data.build_dataset("train").available("human_parts").sum() == 2
    assert source.label(0, "human_parts").max() == 6


def test_a_missing_annotation_is_reported_with_the_layout(root):
    (root / "human_parts" / f"{NOBODY}.mat").unlink()
    with pytest.raises(HTTError, match=rf"{NOBODY}\.mat is missing[\s\S]*JPEGImages/"):
        PASCALContext(root, "train").available("human_parts")
    assert not cache(root).exists()


@pytest.mark.parametrize("labels", ["one-label", "random-label", "full"])
def test_masks_give_human_parts_only_to_people(root, labels):
    data = PASCALContextDataModule(str(root), labels=labels, seed=3)
    mask = data.label_mask(data.build_dataset("train"))
    given = {name for name, row in zip(mask.ids, mask.labeled, strict=True) if row[1]}
    assert given <= {FIRST, ALONE}
    assert given == {FIRST, ALONE} or labels != "full"


def test_annotations_of_images_without_people_are_not_needed(root):
    check_all(root)
    for name in (NO_PARTS, NOBODY):
        (root / "human_parts" / f"{name}.mat").unlink()
    check_all(root)


def test_invalid_part_annotations_are_rejected(root):
    PASCALContext(root, "train").available("human_parts")
    path, size = root / FILES["human_parts"].format(FIRST), SIZES[FIRST]
    body = block(size, (2, 20), (3, 15))
    for parts, message in ([("tail", body)], "'tail'"), ([("head", body), ("nose", body[1:])], "masks h w of one size"):
        write_parts(path, [("person", 15, body, parts)])
        with pytest.raises(HTTError, match=rf"{FIRST}\.mat .*{message}"):
            label(root, "human_parts")
    for anno in ({"objects": {"class": "person"}}, {"people": 1}, 7.0):
        savemat(path, {"anno": anno})
        with pytest.raises(HTTError, match=rf"{FIRST}\.mat must be a PASCAL-Part annotation"):
            label(root, "human_parts")


def test_a_mask_with_impossible_labels_is_warned_of(root, tmp_path, caplog):
    path = tmp_path / "mask.json"
    kept = {name: ["semseg", "human_parts"] for name in IDS["train"]}
    path.write_text(json.dumps({"format": 1, "protocol": "random-label", "tasks": list(ALL), "labels": kept}))
    settings = {"labels": str(path), "num_workers": 0, "batch_size": 2}
    data = PASCALContextDataModule(str(root), **settings)
    data.prepare_data()
    data.setup("fit")
    assert (data.train[3]["human_parts"] == 255).all()
    (warning,) = (record.message for record in caplog.records if "mask.json" in record.message)
    assert NO_PARTS in warning
    assert NOBODY in warning
    report = inspect(PASCALContextDataModule(str(root), **settings))[1]
    assert report["problems"] == []
    assert f"train: {warning}" in report["warnings"]
    caplog.clear()
    PASCALContextDataModule(str(root), tasks="semseg", **settings).setup("fit")
    assert "human_parts" not in "".join(r.message for r in caplog.records if r.levelname == "WARNING")
