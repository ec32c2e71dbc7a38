"""Your own images and labels, found by patterns."""

import logging
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from htt_lightning.cli import main
from htt_lightning.data import LabelFiles
from htt_lightning.data.datasets.unmatched_files import image_id
from htt_lightning.data.origin import Origin
from htt_lightning.data.transforms import AugmentConfig
from htt_lightning.errors import DataError, HTTError
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
def test_image_id_is_the_part_the_wildcards_match(path, pattern, name):
    assert image_id(path, pattern) == name


@given(st.text("ab1_-.é ", min_size=1), st.text("ab_"), st.text("ab_"))
def test_image_id_of_a_path_made_from_an_id_is_the_id(name, head, tail):
    assert image_id(f"train/{head}{name}{tail}.png", f"train/{head}*{tail}.png") == name


def test_existing_files_are_the_labels(root):
    source = folder(root).build_dataset("train")
    assert available(source) == LABELLED
    assert source.ids == ["1", "2", "3", "10", "11", "12"]


def test_a_root_that_does_not_exist_is_named(root):
    with pytest.raises(DataError, match=r"data\.root must be an existing folder, .* got .*mien\. Check"):
        folder(root.with_name("mien")).setup("fit")


def test_unlabeled_training_images_are_left_out_with_a_warning(root, caplog):
    with caplog.at_level(logging.WARNING):
        data = folder(root)
        data.prepare_data()
        data.setup("fit")
    assert caplog.messages == ["Leaving out 1 of 7 training images without labels (e.g. '4')."]
    assert "4" not in data.train.ids


def test_all_validation_images_keep_their_labels(root):
    data = folder(root, labels="one-label")
    data.setup("validate")
    assert available(data.val.dataset) == KEPT
    for k, (name, kept) in enumerate(KEPT.items()):
        sample = data.val[k]
        assert sample["id"] == name
        assert tuple(task for task, given in sample["labeled"].items() if given) == kept
        assert sample["depth"].isfinite().any() == ("depth" in kept)


def test_one_label_is_drawn_among_existing_labels(root):
    data = folder(root, labels="one-label")
    data.setup("fit")
    labels = data.labels_per_image("train", data.train.dataset)
    assert all(len(kept) == 1 and set(kept) <= set(LABELLED[name]) for name, kept in labels.items())
    assert labels.keys() == LABELLED.keys()
    full = folder(root)
    full.setup("fit")
    assert full.labels_per_image("train", full.train.dataset) == LABELLED


def test_a_task_without_training_files_is_derived(root):
    files = [*MAPS[:2], LabelFiles(TASKS["normals"], None, "val/normals/{id}.png")]
    data = folder(root, label_files=files, derive={"normals": "depth"}, field_of_view=60)
    data.prepare_data()
    data.setup("fit")
    assert data.mask.summary["normals"] == 0
    for sample in data.train:
        assert sample["labeled"]["normals"] == sample["labeled"]["depth"]
        assert (sample["origin"]["normals"] == Origin.DERIVED.code) == sample["labeled"]["normals"]
    assert data.val.dataset.available("normals").any()


@pytest.mark.parametrize("derive", [None, {"normals": "depth"}])
def test_a_task_that_nothing_teaches_is_named(root, derive, caplog):
    files = [*MAPS[:2], LabelFiles(TASKS["normals"], None, "val/normals/{id}.png")]
    with caplog.at_level("INFO"):
        folder(root, label_files=files, derive=derive, field_of_view=60).setup("fit")
    assert ("No training image has a label of normals" in caplog.text) == (derive is None)


def test_hidden_labels_are_never_read(root):
    data = folder(root, labels="one-label")
    kept = data.labels_per_image("train", data.build_dataset("train"))
    hidden = [(name, task) for name, tasks in LABELLED.items() for task in tasks if task not in kept[name]]
    assert hidden
    for name, task in hidden:
        (root / "train" / task / f"{name}.png").write_bytes(b"corrupt")
    data.prepare_data()
    data.setup("fit")
    assert len([batch for epoch in range(2) for batch in data.train_dataloader()]) == 6
    with pytest.raises(HTTError, match="train/"):
        folder(root).prepare_data()


def test_a_mask_file_with_missing_labels_is_rejected(root, tmp_path):
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


def test_images_may_be_arrays_and_files_of_many_formats(root):
    images = root / "train" / "images"
    bytes_, floats = np.random.default_rng(0).integers(0, 256, (2, *SIZE, 3)).astype(np.uint8)
    for name, array in (("1", bytes_), ("2", floats / 255)):
        (images / f"{name}.png").unlink()
        np.save(images / f"{name}.npy", array)
    save(images / "3.jpg", bytes_)
    (images / "3.png").unlink()
    (images / "._5.png").write_bytes(b"left by an operating system")
    source = folder(root, train="train/images/*").build_dataset("train")
    source.check(LABELLED)
    np.testing.assert_array_equal(source.image(0), bytes_)
    assert source.image(1).dtype == np.float32
    np.testing.assert_allclose(source.image(1), floats / 255, atol=1e-7)
    assert source.image(2).shape == (*SIZE, 3)


@pytest.mark.parametrize("array", [np.zeros(SIZE), np.zeros((*SIZE, 3), int), np.full((*SIZE, 3), 7.0), np.zeros(3)])
def test_arrays_of_other_types_are_rejected_as_images(root, array):
    (root / "train" / "images" / "1.png").unlink()
    np.save(root / "train" / "images" / "1.npy", array)
    with pytest.raises(DataError, match=r"images.1\.npy must"):
        folder(root, train="train/images/*").build_dataset("train").image(0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"root": "nowhere"}, r"data\.root .* got nowhere"),
        ({"train": "train/pictures/*.png"}, r"data\.train: looked for .*mine.train/pictures/\*\.png"),
        ({"val": "val/images"}, r"data\.val .* got 'val/images'.*val/images/\*"),
        ({"train": "/etc/*"}, r"data\.train .* got '/etc/\*'"),
        ({"label_files": [LabelFiles(DEPTH, "../{id}.png")]}, r"label_files of depth .* got '\.\./\{id\}\.png'"),
        ({"train": "missing.csv"}, r"missing\.csv must be a CSV table"),
        ({"label_files": []}, r"data\.label_files .* got none"),
        ({"label_files": [MAPS[0], MAPS[0]]}, "got semseg, semseg"),
        ({"label_files": [LabelFiles(DEPTH, "depth")]}, r"label_files of depth .*\{id\}.* got 'depth'"),
        ({"label_files": [LabelFiles(DEPTH, "train/dpeth/{id}.png")]}, r"train image .* depth: .*train/dpeth/1\.png"),
        ({"label_files": [LabelFiles(DEPTH, "train/depth/{id}.png", "x/{id}")]}, r"val image .* depth: .*x/1"),
    ],
)
def test_invalid_arguments_are_named(root, changes, message):
    with pytest.raises(HTTError, match=message):
        folder(**({"root": root} | changes)).prepare_data()


def test_all_problems_of_the_patterns_are_reported(root):
    maps = [LabelFiles(TASKS["semseg"], "train/semseg/*"), LabelFiles(DEPTH, "/depth/{id}.png")]
    save(root / "train" / "images" / "rgb.png", np.zeros((*SIZE, 3), np.uint8))
    (root / "train" / "images" / "rgb1.jpg").write_bytes((root / "train" / "images" / "rgb.png").read_bytes())
    (root / "train" / "images" / "rgb1.png").write_bytes((root / "train" / "images" / "rgb.png").read_bytes())
    with pytest.raises(HTTError) as error:
        folder(root, train="train/images/rgb*.*", label_files=maps).build_dataset("train")
    messages = [one.message for one in error.value.errors]
    assert len(messages) == 4
    for part, message in zip(("semseg", "depth", "rgb.png no id", "same id '1'"), messages, strict=True):
        assert part in message


@pytest.mark.parametrize("content", [None, b"corrupt"])
def test_a_broken_first_image_hides_no_other_problem(root, content):
    path = root / "train" / "images" / "1.png"
    path.unlink() if content is None else path.write_bytes(content)
    path.symlink_to("nowhere") if content is None else None  # a listed image that is missing
    save(root / "train" / "depth" / "3.png", stored_map("depth", np.random.default_rng(0), (16, 48)))
    for name in ("semseg/2.png", "normals/3.png", "images/11.png"):
        (root / "train" / name).write_bytes(b"")
    with pytest.raises(HTTError, match=r"\.\.\. and 2 more") as error:
        folder(root).prepare_data()
    files = [one.message.split()[0].removeprefix(f"{root}/train/") for one in error.value.errors]
    assert files == ["images/1.png", "semseg/2.png", "depth/3.png", "normals/3.png", "images/11.png"]
    assert "(32, 48) of its image, got (16, 48)" in error.value.errors[2].message


def test_images_of_other_sizes_need_image_size_or_crop(root, tmp_path):
    write_tree(root, {"20": ("semseg",)}, (24, 40))
    with pytest.raises(HTTError, match=r"20\.png .*\(32, 48\).* got \(24, 40\)\. Set data\.image_size"):
        folder(root).prepare_data()
    for changes in ({"image_size": (16, 24)}, {"augment": AugmentConfig(crop=(32, 48))}):
        data = folder(root, **changes)
        data.prepare_data()
        data.setup("fit")
        for batch in (*data.train_dataloader(), *data.val_dataloader()):
            assert tuple(batch["image"].shape[-2:]) in ((16, 24), (32, 48))


def test_validation_images_of_several_sizes_are_not_batched(root, tmp_path):
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


def test_metrics_are_those_of_each_task_alone(root, tmp_path):
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


TRIAL = """
model: {backbone: test_resnet, token_dim: 8}
trainer: {fast_dev_run: 1, accelerator: cpu, enable_progress_bar: false, enable_model_summary: false}
"""


def test_a_folder_trains_from_a_config(root, in_empty_folder):
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


def test_the_command_line_names_the_pattern(root, in_empty_folder):
    with pytest.raises(SystemExit, match=r"error: No image matches data\.train: looked for .*train/images/\*\.jpg"):
        main(["fit", "--config", "folder.yaml", "--data.root", str(root), "--model.pretrained", "false"])
