import json

import numpy as np
import pytest
from scipy.io import savemat

from htt_lightning.commands.check.command import inspect
from htt_lightning.data.datasets.pascal_context import PASCALContext, PASCALContextDataModule
from htt_lightning.errors import HTTError
from tests.data.datasets.pascal_tree import (
    ALL,
    ALONE,
    ANY_SIZE,
    FILES,
    FIRST,
    IDS,
    NO_PARTS,
    NOBODY,
    SIZES,
    block,
    check_all,
    label,
    palette_png,
    save,
    write_parts,
    write_segments,
    write_tree,
)


@pytest.fixture
def root(tmp_path):
    return write_tree(tmp_path / "PASCALContext")


def test_a_sound_tree_passes_the_check(root):
    check_all(root)
    check_all(root, "val")


def test_a_missing_root_is_answered_with_the_expected_tree(tmp_path):
    with pytest.raises(HTTError, match=r"nowhere[\s\S]*semseg/VOC12/<id>\.png"):
        PASCALContext(tmp_path / "nowhere", "train")


def test_a_missing_folder_is_named_three_times_with_the_tree(root):
    (root / "sal_distill").rename(root / "saliency")
    with pytest.raises(HTTError) as error:
        check_all(root)
    assert str(error.value).count("is missing") == 3
    assert "... and 1 more" in str(error.value)
    assert "normals_distill/<id>.png" in str(error.value)


@pytest.mark.parametrize("name", [FIRST, ALONE])
@pytest.mark.parametrize("task", ALL)
def test_a_missing_or_truncated_file_is_found_unless_the_label_is_hidden(root, task, name):
    source = PASCALContext(root, "train", **ANY_SIZE)
    source.available("human_parts")
    path = root / FILES[task].format(name)
    whole = path.read_bytes()
    for content in (whole[:-1], whole[: len(whole) // 2], whole[:100], b""):
        path.write_bytes(content)
        with pytest.raises(HTTError, match=rf"{path.name} is truncated"):
            check_all(root)
        with pytest.raises(HTTError, match=path.name):
            label(root, task, name)
    path.unlink()
    with pytest.raises(HTTError, match=rf"{name}\.\w+ is missing"):
        check_all(root)
    needs = {"normals", "edges"} if task == "edges" else {task}
    source.check({name: [other for other in ALL if other not in needs], NOBODY: ALL})


def test_annotations_of_images_without_people_are_not_needed(root):
    check_all(root)
    for name in (NO_PARTS, NOBODY):
        (root / "human_parts" / f"{name}.mat").unlink()
    check_all(root)


@pytest.mark.parametrize("task", ["human_parts", "edges"])
def test_damage_inside_a_matlab_file_is_refused(root, task):
    PASCALContext(root, "train").available("human_parts")
    path = root / FILES[task].format(FIRST)
    content = bytearray(path.read_bytes())
    content[160:190] = bytes(30)
    path.write_bytes(content)
    with pytest.raises(HTTError, match=rf"{path.name} is damaged"):
        label(root, task)


def test_matlab_files_of_other_versions_or_variables_are_refused(root):
    path = root / FILES["edges"].format(FIRST)
    path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(2000))
    with pytest.raises(HTTError, match=r"no MATLAB file of version 5 to 7\.2"):
        label(root, "edges")
    savemat(path, {"labels": np.ones((3, 3))})
    with pytest.raises(HTTError, match="has no LabelMap"):
        label(root, "edges")


@pytest.mark.parametrize(
    ("segments", "message"),
    [
        (np.full((30, 40), 460), "holds 460; segments must be whole numbers from 1 to 459"),
        (np.full((30, 40), -1), "holds -1"),
        (np.full((30, 40), 0.5), "holds 0.5"),
        (np.full((30, 40), np.nan), "holds nan"),
        (np.ones((30, 40, 2)), "no map of numbers"),
        ("text", "no map of numbers"),
    ],
)
def test_wrong_segments_are_refused_by_check_and_reading(root, segments, message):
    write_segments(root / FILES["edges"].format(FIRST), segments)
    for refuse in (lambda: check_all(root), lambda: label(root, "edges"), lambda: label(root, "normals")):
        with pytest.raises(HTTError, match=rf"{FIRST}\.mat.*{message}"):
            refuse()


@pytest.mark.parametrize("value", [21, 254])
def test_wrong_classes_are_refused_by_check_and_reading(root, value):
    palette_png(root / FILES["semseg"].format(FIRST), np.full((30, 40), value, np.uint8))
    for refuse in (lambda: check_all(root), lambda: label(root, "semseg")):
        with pytest.raises(HTTError, match=rf"{FIRST}\.png holds {value}; classes must be 0 to 20, or 255"):
            refuse()


def test_pictures_of_the_wrong_kind_are_refused_by_the_check(root):
    save(root / FILES["normals"].format(FIRST), np.zeros((30, 40), np.uint8))
    save(root / FILES["saliency"].format(ALONE), np.zeros((40, 28, 3), np.uint8))
    with pytest.raises(HTTError, match=rf"{FIRST}\.png is PNG L[\s\S]*{ALONE}\.png is PNG RGB"):
        check_all(root)


def test_annotations_that_are_none_of_pascal_part_are_refused(root):
    PASCALContext(root, "train").available("human_parts")
    path, size = root / FILES["human_parts"].format(FIRST), SIZES[FIRST]
    body = block(size, (2, 20), (3, 15))
    write_parts(path, [("person", 15, body, [("tail", body)])])
    with pytest.raises(HTTError, match=rf"{FIRST}\.mat has a person's part 'tail'"):
        label(root, "human_parts")
    write_parts(path, [("person", 15, body, [("head", body), ("nose", body[1:])])])
    with pytest.raises(HTTError, match=rf"{FIRST}\.mat has masks of \(29, 40\), \(30, 40\)"):
        label(root, "human_parts")
    for anno in ({"objects": {"class": "person"}}, {"people": 1}, 7.0):
        savemat(path, {"anno": anno})
        with pytest.raises(HTTError, match=rf"{FIRST}\.mat is no annotation of PASCAL-Part"):
            label(root, "human_parts")


def test_a_mask_that_gives_human_parts_to_images_without_people_is_named_and_read(root, tmp_path, caplog):
    kept = {name: ["semseg", "human_parts"] for name in IDS["train"]}
    content = {"format": 1, "protocol": "random-label", "tasks": list(ALL), "labels": kept}
    path = tmp_path / "mask.json"
    path.write_text(json.dumps(content))
    settings = {"labels": str(path), "num_workers": 0, "batch_size": 2}
    data = PASCALContextDataModule(str(root), **settings)
    data.prepare_data()
    data.setup("fit")
    text = f"{path} gives 2 images a label of human_parts that they do not have: {NO_PARTS}, {NOBODY}."
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == [text]
    assert (data.train[3]["human_parts"] == 255).all()
    report = inspect(PASCALContextDataModule(str(root), **settings))[1]
    assert report["problems"] == []
    assert f"train: {text}" in report["warnings"]
    caplog.clear()
    PASCALContextDataModule(str(root), tasks="semseg", **settings).setup("fit")
    assert "human_parts" not in "".join(r.message for r in caplog.records if r.levelname == "WARNING")
