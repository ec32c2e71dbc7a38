import json
import re
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from PIL import Image
from scipy.io import loadmat
from skimage.morphology import thin

from htt_lightning.cli import main
from htt_lightning.data.datasets.pascal_context import (
    CLASSES,
    CLASSES_WITH_NORMALS,
    PARTS,
    PASCALContext,
    PASCALContextDataModule,
)
from htt_lightning.errors import HTTError
from htt_lightning.tasks.human_parts import PARTS as MERGED
from tests.conftest import ROOT
from tests.data.datasets.pascal_tree import (
    ALL,
    ALONE,
    FIRST,
    IDS,
    NO_PARTS,
    NOBODY,
    SIZES,
    block,
    label,
    palette_png,
    people_of,
    save,
    write_parts,
    write_segments,
    write_tree,
)
from tests.tiny import BACKBONE


@pytest.fixture
def root(tmp_path):
    return write_tree(tmp_path / "PASCALContext")


def segments_of(root, name=FIRST):
    return loadmat(root / "pascal-context" / "trainval" / f"{name}.mat")["LabelMap"].astype(int)


def test_images_are_listed_and_read_from_jpeg(root):
    source = PASCALContext(root.parent, "train")
    assert source.ids == list(IDS["train"])
    assert source.image(1).shape == (40, 28, 3)
    with Image.open(root / "JPEGImages" / f"{FIRST}.jpg") as image:
        np.testing.assert_array_equal(source.image(0), np.asarray(image))


def test_there_are_21_classes_24_parts_and_170_segments_with_normals():
    assert len(set(CLASSES)) == 21
    assert CLASSES[15] == "person"
    assert (len(PARTS), set(PARTS.values())) == (24, {1, 2, 3, 4, 5, 6})
    assert len(set(CLASSES_WITH_NORMALS)) == 170
    assert 427 in CLASSES_WITH_NORMALS
    assert 431 not in CLASSES_WITH_NORMALS


@pytest.mark.parametrize(
    ("part", "merged"),
    [("hair", "head"), ("leye", "head"), ("nose", "head"), ("neck", "torso"), ("ruarm", "upper arm"),
     ("llarm", "lower arm"), ("rhand", "lower arm"), ("luleg", "upper leg"), ("llleg", "lower leg"),
     ("rfoot", "lower leg")],
)  # fmt: skip
def test_parts_are_merged_to_six(part, merged):
    assert MERGED[PARTS[part]] == merged


def test_classes_are_read_as_indices_first_from_voc_then_from_context(root):
    classes = label(root, "semseg")
    with Image.open(root / "semseg" / "VOC12" / f"{FIRST}.png") as image:
        np.testing.assert_array_equal(classes, np.asarray(image))
    assert (classes[0, :9] == 255).all()
    assert classes.dtype == np.uint8
    with Image.open(root / "semseg" / "pascal-context" / f"{NOBODY}.png") as image:
        np.testing.assert_array_equal(label(root, "semseg", NOBODY), np.asarray(image))
    palette_png(root / "semseg" / "pascal-context" / f"{FIRST}.png", np.zeros((30, 40), np.uint8))
    np.testing.assert_array_equal(label(root, "semseg"), classes)


def test_later_parts_of_later_persons_cover_earlier_ones_and_dogs_do_not_count(root):
    size = SIZES[FIRST]
    expected = np.zeros(size, np.uint8)
    expected[8:16, 4:14], expected[2:9, 5:10], expected[18:20, 8:12], expected[7:10, 8:18] = 2, 1, 6, 4
    parts = label(root, "human_parts")
    assert parts.dtype == np.uint8
    np.testing.assert_array_equal(parts, expected)


def test_one_object_of_one_part_is_read_as_well(root):
    parts = label(root, "human_parts", ALONE)
    np.testing.assert_array_equal(parts, 2 * block(SIZES[ALONE], (5, 12), (4, 12)))


@pytest.mark.parametrize("name", [NO_PARTS, NOBODY])
def test_images_without_parts_of_a_person_have_no_label(root, name):
    parts = label(root, "human_parts", name)
    assert parts.shape == SIZES[name]
    assert (parts == 255).all()


def test_available_says_which_images_show_people(root):
    source = PASCALContext(root, "train")
    assert source.available("human_parts").tolist() == [True, True, False, False]
    for task in ("semseg", "saliency", "normals", "edges"):
        assert source.available(task).all()


def cache(root):
    return root / "ImageSets" / "Parts" / "train.txt"


def test_a_list_of_people_that_is_there_is_believed_without_a_look_at_the_parts(root):
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
def test_a_list_of_people_is_made_anew_where_it_is_missing_or_of_other_images(root, content):
    if content is not None:
        cache(root).parent.mkdir()
        cache(root).write_text(content)
    assert PASCALContext(root, "train").available("human_parts").tolist() == [True, True, False, False]
    assert json.loads(cache(root).read_text()) == {FIRST: [15, 12, 15], ALONE: [15], NO_PARTS: [-1, 12], NOBODY: []}
    written = cache(root).stat().st_mtime_ns
    PASCALContext(root, "train").available("human_parts")
    assert cache(root).stat().st_mtime_ns == written, "a list that is right is used"


def test_persons_without_a_pixel_do_not_count(root):
    size = SIZES[FIRST]
    nothing = np.zeros(size, np.uint8)
    torso = [("torso", nothing)]
    write_parts(
        root / "human_parts" / f"{FIRST}.mat", [("person", 15, nothing, []), ("person", 15, nothing + 1, torso)]
    )
    assert PASCALContext(root, "train").available("human_parts").tolist() == [False, True, False, False]
    assert json.loads(cache(root).read_text())[FIRST] == [-1, -1]


def test_a_tree_that_cannot_be_written_to_is_looked_at_in_memory(root, monkeypatch, caplog):
    monkeypatch.setattr("pathlib.Path.replace", lambda self, target: (_ for _ in ()).throw(OSError(30, "read-only")))
    data = PASCALContextDataModule(str(root), num_workers=0)
    source = data.build_dataset("train")
    assert not cache(root).exists()
    assert "read-only" in caplog.text
    monkeypatch.setattr(
        "htt_lightning.data.datasets.pascal_context.categories", lambda path: pytest.fail("looked again")
    )
    assert data.build_dataset("train").available("human_parts").sum() == 2
    assert source.label(0, "human_parts").max() == 6


def test_a_missing_annotation_is_named_while_people_are_looked_for(root):
    (root / "human_parts" / f"{NOBODY}.mat").unlink()
    with pytest.raises(HTTError, match=rf"{NOBODY}\.mat is missing[\s\S]*JPEGImages/"):
        PASCALContext(root, "train").available("human_parts")
    assert not cache(root).exists()


def test_saliency_is_above_half(root):
    levels = np.tile(np.array([0, 127, 128, 255], np.uint8), (30, 10))
    save(root / "sal_distill" / f"{FIRST}.png", levels)
    saliency = label(root, "saliency")
    assert saliency.dtype == np.uint8
    np.testing.assert_array_equal(saliency, levels / 255 > 0.5)


def test_normals_are_unit_vectors_where_the_segment_has_some(root):
    normals, segments = label(root, "normals"), segments_of(root)
    with Image.open(root / "normals_distill" / f"{FIRST}.png") as image:
        expected = 2 * np.asarray(image).astype(float) / 255 - 1
    expected /= np.linalg.norm(expected, axis=-1, keepdims=True)
    expected[~np.isin(segments, CLASSES_WITH_NORMALS)] = np.nan
    assert normals.dtype == np.float32
    assert 0 < np.isnan(normals).mean() < 1
    np.testing.assert_allclose(normals, expected, atol=1e-5)


def test_edges_to_train_on_are_the_thinned_laplacian(root):
    segments = segments_of(root)
    padded = np.pad(segments, 1, mode="reflect")
    cross = padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:] - 4 * segments
    edges = label(root, "edges")
    assert edges.dtype == np.uint8
    np.testing.assert_array_equal(edges, thin(np.abs(cross) > 0))
    assert 0 < edges.sum() < (cross != 0).sum()


def test_edges_to_evaluate_on_are_the_raw_borders(root):
    name = IDS["val"][0]
    segments = segments_of(root, name)
    expected = [
        [
            segments[y, x] != segments[min(y + 1, 35), x] or segments[y, x] != segments[y, min(x + 1, 39)]
            for x in range(40)
        ]
        for y in range(36)
    ]
    np.testing.assert_array_equal(label(root, "edges", name, "val"), expected)


@pytest.mark.parametrize("task", ["semseg", "human_parts", "saliency", "edges"])
def test_maps_of_another_size_are_brought_to_the_images_by_nearest_neighbour(root, task):
    native = label(root, task)

    def enlarged(array):
        return array.repeat(2, 0).repeat(3, 1)

    for folder in ("semseg/VOC12", "sal_distill"):
        path = root / folder / f"{FIRST}.png"
        array = np.asarray(Image.open(path))
        palette_png(path, enlarged(array)) if "VOC" in folder else save(path, enlarged(array))
    write_segments(root / "pascal-context" / "trainval" / f"{FIRST}.mat", enlarged(segments_of(root)))
    grown = [
        (c, k, enlarged(mask), [(n, enlarged(m)) for n, m in parts])
        for c, k, mask, parts in people_of(FIRST, SIZES[FIRST])
    ]
    write_parts(root / "human_parts" / f"{FIRST}.mat", grown)
    np.testing.assert_array_equal(label(root, task), native)


def test_normals_and_segments_of_other_sizes_meet_at_the_size_of_the_image(root):
    path = root / "normals_distill" / f"{FIRST}.png"
    save(path, cv2.resize(np.asarray(Image.open(path)), (20, 15)))
    write_segments(root / "pascal-context" / "trainval" / f"{FIRST}.mat", np.array([[3.0, 431.0], [3.0, 431.0]]))
    normals = label(root, "normals")
    assert normals.shape == (30, 40, 3)
    np.testing.assert_allclose(np.linalg.norm(normals[:, :20], axis=-1), 1, atol=1e-5)
    assert np.isnan(normals[:, 20:]).all()


def test_tasks_come_in_canonical_order_with_the_published_numbers(root):
    data = PASCALContextDataModule(str(root))
    assert data.canonical_tasks == ALL
    assert [task.loss_weight for task in data.tasks] == [1, 2, 5, 10, 50]
    assert [task.confidence_threshold for task in data.tasks] == [0.9, 0.85, 0.7, 0.7, 0.99]
    assert [task.pseudo_label_weight for task in data.tasks] == [1, 1, 1, 1, 0.05]
    assert data.tasks[4].tolerance == 0.0075
    assert [task.num_tokens for task in data.tasks] == [21, 7, 2, 40, 1]


@pytest.mark.parametrize("labels", ["one-label", "random-label", "full"])
def test_masks_give_human_parts_to_images_with_people_alone(root, labels):
    data = PASCALContextDataModule(str(root), labels=labels, seed=3)
    mask = data.label_mask(data.build_dataset("train"))
    given = {name for name, row in zip(mask.ids, mask.labeled, strict=True) if row[1]}
    assert given <= {FIRST, ALONE}
    assert given == {FIRST, ALONE} or labels != "full"


def test_images_of_all_sizes_are_padded_to_the_published_canvas(root):
    data = PASCALContextDataModule(str(root), labels="full", batch_size=2, num_workers=0, seed=0)
    data.prepare_data()
    data.setup("fit")
    for loader in (data.train_dataloader(), data.val_dataloader()):
        assert next(iter(loader))["image"].shape == (2, 3, 512, 512)
    small = PASCALContextDataModule(str(root), augment=None, num_workers=0)
    with pytest.raises(HTTError, match=r"set data\.image_size") as error:
        small.prepare_data()
    assert "must read" not in str(error.value)  # no file is missing
    PASCALContextDataModule(str(root), augment=None, image_size=(24, 32), num_workers=0).prepare_data()


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["htt"])


@pytest.mark.slow
@pytest.mark.usefixtures("elsewhere")
def test_the_config_fits_validates_and_tests_on_a_tree_that_the_check_passes(root, capsys):
    one = {"semseg": [FIRST], "human_parts": [ALONE], "sal": [NO_PARTS], "normals": [], "edge": [NOBODY]}
    np.save("onelabel.npy", {task: [np.str_(name) for name in names] for task, names in one.items()}, allow_pickle=True)
    data = {
        "--data.root": str(root),
        "--data.labels": "onelabel.npy",
        "--data.augment.crop": "[40, 40]",
        "--data.num_workers": "1",
    }
    options = data | {
        "--data.batch_size": "2", "--model.backbone": BACKBONE, "--model.pretrained": "false", "--model.token_dim": "8",
        "--trainer.accelerator": "cpu", "--trainer.max_epochs": "1", "--trainer.enable_progress_bar": "false",
    }  # fmt: skip

    def htt(command, options):
        main([command, "--config", "pascal_context.yaml", *(word for pair in options.items() for word in pair)])

    htt("check", data)
    htt("fit", options)
    (checkpoint,) = Path("runs").glob("*/checkpoints/last.ckpt")
    htt("validate", options | {"--ckpt_path": str(checkpoint)})
    measured = re.search(r"--data\.task_overrides '(.*thin_predictions.*)'", (ROOT / "docs" / "metrics.md").read_text())
    htt("test", options | {"--ckpt_path": str(checkpoint), "--data.task_overrides": measured[1]})
    assert "test/edges/ods_f" in capsys.readouterr().out
    config = yaml.safe_load(max(Path("runs").glob("*/config.yaml")).read_text())
    overrides = {"semseg": {"absent_classes": "zero"}, "edges": {"thin_predictions": True}}
    assert config["data"]["init_args"]["task_overrides"] == overrides


@pytest.mark.usefixtures("elsewhere")
def test_the_augmentation_of_mtan_needs_one_size(root, capsys):
    words = ["check", "--config", "pascal_context.yaml", "--config", "mtan.yaml", "--data.root", str(root)]
    words += ["--data.labels", "full", "--data.num_workers", "0"]
    with pytest.raises(SystemExit, match="1 fault"):
        main(words)
    printed = capsys.readouterr().out
    assert "set data.image_size" in printed
    assert "must read" not in printed
    main([*words, "--data.image_size", "[32, 48]"])


@pytest.mark.usefixtures("elsewhere")
def test_the_config_says_the_published_recipe(capsys):
    with pytest.raises(SystemExit):
        main(["fit", "--config", "pascal_context.yaml", "--data.root", ".", "--print_config"])
    config = yaml.safe_load(capsys.readouterr().out)
    data = config["data"]["init_args"]
    assert (data["augment"]["scale_range"], data["augment"]["crop"]) == ([0.5, 2.0], [512, 512])
    assert (data["batch_size"], config["model"]["backbone"], config["model"]["lr"]) == (6, "resnet18", 2e-5)
    assert (config["trainer"]["max_epochs"], config["trainer"]["gradient_clip_val"]) == (200, 10)
