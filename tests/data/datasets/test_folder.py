import logging
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from htt_lightning.cli import main
from htt_lightning.data import LabelFiles
from htt_lightning.data.datasets.folder import image_id
from htt_lightning.data.transforms import AugmentConfig
from htt_lightning.errors import HTTError
from tests.data.datasets.folder_tree import (
    DEPTH,
    KEPT,
    LABELLED,
    MAPS,
    RULES,
    SIZE,
    TASKS,
    available,
    folder,
    rows_of,
    save,
    stored_map,
    write_table,
    write_tree,
)
from tests.tiny import tiny_module, tiny_trainer


@pytest.fixture
def root(tmp_path):
    return write_tree(tmp_path / "mine")


@pytest.mark.parametrize(
    ("path", "pattern", "name"),
    [
        ("train/images/2.png", "train/images/*.png", "2"),
        ("train/images/2.png", "train/images/*.*", "2"),
        ("train/images/2.png", "train/images/*", "2"),
        ("train/images/a/b/2.png", "train/images/**/*.png", "a/b/2"),
        ("train/images/2.png", "train/images/**/*.png", "2"),
        ("train/rgb_2.png", "train/rgb_*.png", "2"),
        ("aachen/2_leftImg8bit.png", "*/*_leftImg8bit.png", "aachen/2"),
        ("x/aachen.left.png", "x/*.left.png", "aachen"),
        ("train/scene_7/rgb.png", "train/scene_*/rgb.png", "7"),
        ("train/7a.png", "train/[0-9]?.png", "7a"),
        ("train/7a.png", "train/7[a-c].png", "a"),
        ("a1/b2.png", "a*/b*.png", "1/b2"),
        ("a/b2.png", "a*/b*.png", "b2"),
    ],
)
def test_an_id_is_what_the_wildcards_stand_for(path, pattern, name):
    assert image_id(path, pattern) == name


@given(st.text("ab1_-.é ", min_size=1), st.text("ab_"), st.text("ab_"))
def test_an_id_put_in_the_place_of_the_wildcard_gives_the_path(name, head, tail):
    assert image_id(f"train/{head}{name}{tail}.png", f"train/{head}*{tail}.png") == name


def test_what_is_there_is_what_an_image_is_labelled_for(root):
    source = folder(root).build_dataset("train")
    assert available(source) == LABELLED
    assert source.ids == ["1", "2", "3", "10", "11", "12"]


def test_training_images_without_a_label_are_left_out_with_a_note(root, caplog):
    with caplog.at_level(logging.WARNING):
        data = folder(root)
        data.prepare_data()
        data.setup("fit")
    assert caplog.messages == ["1 of 7 training images have no label and are left out, such as '4'."]
    assert "4" not in data.train.ids


def test_validation_images_are_all_there_and_count_for_the_labels_they_have(root):
    data = folder(root, labels="one-label")
    data.setup("validate")
    assert available(data.val.dataset) == KEPT
    for k, (name, kept) in enumerate(KEPT.items()):
        sample = data.val[k]
        assert sample["id"] == name
        assert tuple(task for task, given in sample["labeled"].items() if given) == kept
        assert sample["depth"].isfinite().any() == ("depth" in kept)


def test_one_label_is_drawn_among_those_there_are(root):
    data = folder(root, labels="one-label")
    data.setup("fit")
    labels = data.labels_per_image("train", data.train.dataset)
    assert all(len(kept) == 1 and set(kept) <= set(LABELLED[name]) for name, kept in labels.items())
    assert labels.keys() == LABELLED.keys()
    full = folder(root)
    full.setup("fit")
    assert full.labels_per_image("train", full.train.dataset) == LABELLED


def test_hidden_labels_are_never_read(root):
    data = folder(root, labels="one-label")
    kept = data.labels_per_image("train", data.build_dataset("train"))
    hidden = [(name, task) for name, tasks in LABELLED.items() for task in tasks if task not in kept[name]]
    assert hidden
    for name, task in hidden:
        (root / "train" / task / f"{name}.png").write_bytes(b"broken")
    data.prepare_data()
    data.setup("fit")
    assert len([batch for epoch in range(2) for batch in data.train_dataloader()]) == 6
    with pytest.raises(HTTError, match="is truncated"):
        folder(root).prepare_data()


def test_a_mask_file_cannot_ask_for_labels_that_are_not_there(root, tmp_path):
    data = folder(root)
    data.setup("fit")
    data.mask.labeled[1] = True
    data.mask.save(tmp_path / "label_mask.json")
    with pytest.raises(HTTError, match=r"images.2\.png has no label of depth"):
        folder(root, labels=str(tmp_path / "label_mask.json")).prepare_data()


def test_files_are_listed_once(root):
    data = folder(root)
    ids = data.build_dataset("train").ids
    (root / "train" / "images" / "1.png").unlink()
    assert data.build_dataset("train").ids == ids
    with pytest.raises(HTTError, match=r"1\.png is missing"):
        data.prepare_data()


def test_arrays_and_pictures_of_many_kinds_are_images(root):
    images = root / "train" / "images"
    bytes_, floats = np.random.default_rng(0).integers(0, 256, (2, *SIZE, 3)).astype(np.uint8)
    for name, array in (("1", bytes_), ("2", floats / 255)):
        (images / f"{name}.png").unlink()
        np.save(images / f"{name}.npy", array)
    save(images / "3.jpg", bytes_)
    (images / "3.png").unlink()
    (images / "._5.png").write_bytes(b"what an operating system leaves behind")
    source = folder(root, train="train/images/*").build_dataset("train")
    source.check(LABELLED)
    np.testing.assert_array_equal(source.image(0), bytes_)
    assert source.image(1).dtype == np.float32
    np.testing.assert_allclose(source.image(1), floats / 255, atol=1e-7)
    assert source.image(2).shape == (*SIZE, 3)


@pytest.mark.parametrize("array", [np.zeros(SIZE), np.zeros((*SIZE, 3), int), np.full((*SIZE, 3), 7.0), np.zeros(3)])
def test_arrays_that_are_no_image_are_refused(root, array):
    (root / "train" / "images" / "1.png").unlink()
    np.save(root / "train" / "images" / "1.npy", array)
    with pytest.raises(HTTError, match=r"images.1\.npy (is|holds|has)"):
        folder(root, train="train/images/*").prepare_data()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"root": "nowhere"}, r"data\.root nowhere is no folder"),
        ({"train": "train/pictures/*.png"}, r"No image matches data\.train: looked for .*mine.train/pictures/\*\.png"),
        ({"val": "val/images"}, r"data\.val 'val/images' has no wildcard.*write val/images/\*"),
        ({"train": "../*.png"}, r"data\.train: '\.\./\*\.png' must be relative"),
        ({"train": "/etc/*"}, r"data\.train: '/etc/\*' must be relative"),
        (
            {"train": "train/images/1*.png", "label_files": [LabelFiles(DEPTH, "../{id}.png")]},
            "maps of depth.* relative",
        ),
        ({"train": "missing.csv"}, r"missing\.csv cannot be read as a table"),
        ({"label_files": []}, r"data\.maps must name each task once, and at least one; it names none"),
        ({"label_files": [MAPS[0], MAPS[0]]}, "it names semseg, semseg"),
        ({"label_files": [LabelFiles(DEPTH, "depth")]}, r"maps of depth: 'depth' lacks \{id\}"),
        (
            {"label_files": [LabelFiles(DEPTH, "train/dpeth/{id}.png")]},
            r"No train image .* of depth: .*train/dpeth/1\.png",
        ),
        ({"label_files": [LabelFiles(DEPTH, "train/depth/{id}.png", "x/{id}")]}, r"No val image .* of depth: .*x/1"),
        ({"tasks": "edges"}, r"data\.tasks names 'edges'"),
        ({"labels": "one-lable"}, "one-label"),
    ],
)
def test_wrong_arguments_are_named(root, changes, message):
    with pytest.raises(HTTError, match=message):
        folder(**({"root": root} | changes)).prepare_data()


def test_two_images_with_one_id_are_refused(root):
    save(root / "train" / "images" / "2.jpg", np.zeros((*SIZE, 3), np.uint8))
    with pytest.raises(HTTError, match=r"images.2\..* and .*images.2\..* have the same id '2'"):
        folder(root, train="train/images/*").build_dataset("train")


def test_an_image_for_which_the_wildcards_stand_for_nothing_is_refused(root):
    save(root / "train" / "images" / "rgb.png", np.zeros((*SIZE, 3), np.uint8))
    with pytest.raises(HTTError, match=r"gives .*rgb\.png no id"):
        folder(root, train="train/images/rgb*.png").build_dataset("train")


def test_a_label_of_another_size_than_its_image_is_named(root):
    save(root / "train" / "depth" / "3.png", stored_map("depth", np.random.default_rng(0), (16, 48)))
    with pytest.raises(HTTError, match=r"depth.3\.png is \(16, 48\), but its image .*images.3\.png \(32, 48\)"):
        folder(root, image_size=(32, 48)).prepare_data()


def test_broken_files_are_named_before_training_three_at_a_time(root):
    save(root / "train" / "semseg" / "1.png", np.full(SIZE, 3, np.uint8))
    for path in ("semseg/2.png", "normals/3.png", "images/11.png"):
        whole = (root / "train" / path).read_bytes()
        (root / "train" / path).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(HTTError) as error:
        folder(root).prepare_data()
    lines = str(error.value).splitlines()
    assert "semseg/1.png holds 3, which is none of the 3 classes" in lines[0]
    assert "semseg/2.png is truncated" in lines[1]
    assert "normals/3.png is truncated" in lines[2]
    assert lines[3] == "... and 1 more"


def test_images_of_different_sizes_need_one_size(root, tmp_path):
    write_tree(root, {"20": ("semseg",)}, (24, 40))
    with pytest.raises(HTTError, match=r"20\.png is \(24, 40\), but the first image \(32, 48\); set data\.image_size"):
        folder(root).prepare_data()
    for changes in ({"image_size": (16, 24)}, {"augment": AugmentConfig(crop=(32, 48))}):
        data = folder(root, **changes)
        data.prepare_data()
        data.setup("fit")
        for batch in (*data.train_dataloader(), *data.val_dataloader()):
            assert tuple(batch["image"].shape[-2:]) in ((16, 24), (32, 48))


def test_validation_images_of_different_sizes_are_evaluated_one_at_a_time(root, tmp_path):
    def data():
        made = folder(root, augment=AugmentConfig(crop=SIZE), batch_size=2)
        made.prepare_data()
        made.setup("fit")
        return made

    assert [len(batch["id"]) for batch in data().val_dataloader()] == [2, 2, 2, 1]
    write_tree(root, {"20": ("semseg", "depth"), "21": ("semseg",)}, (40, 56))
    mixed = data()
    shapes = [tuple(batch["image"].shape) for batch in mixed.val_dataloader()]
    assert shapes == [(1, 3, *SIZE)] * 7 + [(1, 3, 40, 56)] * 2
    assert all(batch["image"].shape == (2, 3, *SIZE) for batch in mixed.train_dataloader())
    module = tiny_module(mixed)
    tiny_trainer(tmp_path, max_epochs=1).fit(module, mixed)
    (scores,) = tiny_trainer(tmp_path).validate(module, mixed)
    assert all(np.isfinite(scores[f"val/{task.name}/{task.primary_metric}"]) for task in mixed.tasks)
    assert len(tiny_trainer(tmp_path).predict(module, mixed)) == 9


def test_metrics_count_the_labels_there_are(root, tmp_path):
    """The same figures as when every task is evaluated alone, on the images that have its label."""
    data = folder(root, batch_size=1)
    module = tiny_module(data)
    (whole,) = tiny_trainer(tmp_path).validate(module, data, verbose=False)
    for task, files in zip(TASKS.values(), MAPS, strict=True):
        rows = [[row[0], row[1 + [*TASKS].index(task.name)]] for row in rows_of(KEPT, "val") if task.name in str(row)]
        write_table(root, rows, "val.csv", columns=["image", task.name])
        column = LabelFiles(task, files.train, task.name, **RULES[task.name])
        alone = folder(root, batch_size=1, val="val.csv", label_files=[column])
        alone.setup("validate")
        metric = task.metrics()[task.primary_metric]
        for batch in alone.val_dataloader():
            metric.update(module.eval().decode(batch["image"])[task.name], batch[task.name])
        assert len(rows) == sum(task.name in kept for kept in KEPT.values())
        assert whole[f"val/{task.name}/{task.primary_metric}"] == pytest.approx(float(metric.compute()), rel=1e-5)


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["htt"])


TRIAL = """
model: {backbone: test_resnet, token_dim: 8}
trainer: {fast_dev_run: 1, accelerator: cpu, enable_progress_bar: false, enable_model_summary: false}
"""


def test_a_dataset_of_ones_own_trains_from_a_config(root, elsewhere):
    for split in ("train", "val"):
        for name in KEPT:
            save(root / split / "height" / f"{name}.png", stored_map("depth", np.random.default_rng(int(name))))
    text = (
        TRIAL
        + """
data:
  class_path: FolderDataModule
  init_args:
    train: train/images/*.png
    val: val/images/*.png
    label_files:
      - task: {class_path: SemSeg, init_args: {classes: [x, y]}}
        train: train/semseg/{id}.png
        val: val/semseg/{id}.png
        missing_values: [255]
        class_map: {0: 1, 1: 0, 2: 0}
      - task: {class_path: Depth, init_args: {num_bins: 9}}
        train: train/depth/{id}.png
        scale: 0.001
      - {task: Normals, train: "train/normals/{id}.png", val: "val/normals/{id}.png", scale: [1, -1, 1]}
      - task: {class_path: tests.flow.Height, init_args: {reach: 5.0}}
        train: train/height/{id}.png
        scale: 0.001
    batch_size: 2
    num_workers: 0
"""
    )
    Path("mine.yaml").write_text(text)
    main(["fit", "--config", "mine.yaml", "--data.root", str(root), "--data.labels", "random-label"])


def test_the_packaged_config_fits_the_tree_that_it_describes(root, elsewhere):
    jpegs = write_tree(root.parent / "jpegs", suffix="jpg")
    Path("trial.yaml").write_text(TRIAL)
    settings = ["--data.root", str(jpegs), "--data.batch_size", "2", "--data.num_workers", "0"]
    small = ["--data.image_size", "[32,48]", "--model.pretrained", "false"]
    main(["fit", "--config", "folder.yaml", "--config", "trial.yaml", *settings, *small])


def test_the_command_line_names_what_is_wrong(root, elsewhere):
    with pytest.raises(SystemExit, match=r"error: No image matches data\.train: looked for .*train/images/\*\.jpg"):
        main(["fit", "--config", "folder.yaml", "--data.root", str(root), "--model.pretrained", "false"])
