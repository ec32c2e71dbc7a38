import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from PIL import Image

from htt_lightning.cli import main
from htt_lightning.data.datasets.nyud40 import CLASSES, NYUD40, NYUD40DataModule
from htt_lightning.errors import HTTError
from tests.tiny import BACKBONE

SIZE = (34, 44)
ALL = ("semseg", "depth", "normals", "edges")
IDS = {"train": ("2", "3", "10", "1448"), "val": ("1", "5")}
FOLDERS = {"semseg": "segmentation", "depth": "depth", "normals": "normals", "edges": "edge"}


def write_tree(folder: Path, size: tuple[int, int] = SIZE) -> Path:
    for split, names in IDS.items():
        (folder / "gt_sets").mkdir(parents=True, exist_ok=True)
        (folder / "gt_sets" / f"{split}.txt").write_text("\n".join(reversed(names)) + "\n")
        for name in names:
            rng = np.random.default_rng(int(name))
            pictures = {
                "images": rng.integers(0, 256, (*size, 3), np.uint8),
                "segmentation": rng.integers(0, 41, size, np.uint8),
                "normals": rng.integers(0, 256, (*size, 3), np.uint8),
                "edge": (rng.random(size) < 0.1).astype(np.uint8) * 255,
            }
            for kind, array in pictures.items():
                (folder / kind).mkdir(exist_ok=True)
                Image.fromarray(array).save(folder / kind / f"{name}.png")
            depth = rng.uniform(0.7, 10, size).astype(np.float32)
            depth[0, 0] = 0
            (folder / "depth").mkdir(exist_ok=True)
            np.save(folder / "depth" / f"{name}.npy", depth)
    return folder


@pytest.fixture
def root(tmp_path):
    return write_tree(tmp_path / "NYUDv2")


def stored(root, task, name="2"):
    path = root / FOLDERS.get(task, task) / f"{name}.{'npy' if task == 'depth' else 'png'}"
    return np.load(path) if task == "depth" else np.asarray(Image.open(path))


def replace(root, task, array, name="2"):
    path = root / FOLDERS.get(task, task) / f"{name}.{'npy' if task == 'depth' else 'png'}"
    np.save(path, array) if task == "depth" else Image.fromarray(array).save(path)
    return path


def check_all(root, **options):
    source = NYUD40(root, "train", **options)
    source.check(dict.fromkeys(source.ids, ALL))


def test_ids_come_from_the_list_in_natural_order(root):
    assert NYUD40(root, "train").ids == ["2", "3", "10", "1448"]
    assert NYUD40(root.parent, "val").ids == ["1", "5"]
    np.testing.assert_array_equal(NYUD40(root, "train").image(2), stored(root, "images", "10"))


def test_there_are_forty_classes():
    assert len(set(CLASSES)) == 40
    assert (CLASSES[0], CLASSES[19], CLASSES[39]) == ("wall", "floor mat", "otherprop")


def test_classes_are_counted_from_zero_and_zero_is_missing(root):
    label, raw = NYUD40(root, "train").label(0, "semseg"), stored(root, "semseg")
    assert label.dtype == np.uint8
    assert (label[raw == 0] == 255).all()
    assert (raw == 0).any()
    np.testing.assert_array_equal(label[raw > 0], raw[raw > 0] - 1)


def test_depth_is_in_metres_and_missing_where_zero(root):
    depth, raw = NYUD40(root, "train").label(0, "depth"), stored(root, "depth")
    assert depth.dtype == np.float32
    assert np.isnan(depth[0, 0])
    np.testing.assert_array_equal(depth[raw > 0], raw[raw > 0])
    replace(root, "depth", raw.astype(np.float64)[..., None])
    np.testing.assert_array_equal(NYUD40(root, "train").label(0, "depth"), depth)


def test_normals_are_unit_vectors_by_the_published_code(root):
    raw = stored(root, "normals").copy()
    raw[0, 0], raw[0, 1] = (128, 127, 128), (255, 127, 128)
    replace(root, "normals", raw)
    normals = NYUD40(root, "train").label(0, "normals")
    expected = 2 * raw.astype(float) / 255 - 1
    expected /= np.linalg.norm(expected, axis=-1, keepdims=True)
    assert normals.dtype == np.float32
    assert np.isnan(normals[0, 0]).all()
    np.testing.assert_allclose(normals[0, 1], [1, 0, 0], atol=0.005)
    np.testing.assert_allclose(normals[1:], expected[1:], atol=1e-5)


def test_edges_are_zero_or_one(root):
    edges = NYUD40(root, "train").label(0, "edges")
    assert edges.dtype == np.uint8
    np.testing.assert_array_equal(edges, stored(root, "edges") == 255)


@pytest.mark.parametrize("task", ["semseg", "depth", "edges"])
def test_maps_of_another_size_are_brought_to_the_images_by_nearest_neighbour(root, task):
    native = NYUD40(root, "train").label(0, task)
    replace(root, task, stored(root, task).repeat(2, 0).repeat(3, 1))
    np.testing.assert_array_equal(NYUD40(root, "train").label(0, task), native)


def test_normals_of_another_size_are_interpolated_by_cubics(root):
    replace(root, "normals", cv2.resize(stored(root, "normals"), (22, 17)))
    normals = NYUD40(root, "train").label(0, "normals")
    assert normals.shape == (*SIZE, 3)
    np.testing.assert_allclose(np.linalg.norm(normals, axis=-1), 1, atol=1e-5)


def test_a_sound_tree_passes_the_check(root):
    check_all(root)
    NYUD40(root, "val").check({"1": ALL, "5": ALL})


def test_a_missing_root_is_answered_with_the_expected_tree(tmp_path):
    with pytest.raises(HTTError, match=r"nowhere[\s\S]*segmentation/<id>\.png"):
        NYUD40(tmp_path / "nowhere", "train")


def test_an_unknown_split_or_task_is_refused(root):
    with pytest.raises(HTTError, match="train or val"):
        NYUD40(root, "test")
    with pytest.raises(HTTError, match="no labels for saliency; choose from semseg, depth, normals, edges"):
        NYUD40(root, "train").label(0, "saliency")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "lists no image"),
        (b"2\n3\n2\n", "lists '2' twice"),
        (b"2\n../3\n", "no image id"),
        (b"\xff\xfe", "no list"),
    ],
)
def test_a_list_that_cannot_be_is_refused(root, content, message):
    (root / "gt_sets" / "train.txt").write_bytes(content)
    with pytest.raises(HTTError, match=rf"train\.txt.*{message}"):
        NYUD40(root, "train")


def test_missing_files_are_named_three_at_a_time_with_the_tree(root):
    (root / "depth").rename(root / "depths")
    with pytest.raises(HTTError) as error:
        check_all(root)
    text = str(error.value)
    assert text.count(".npy is missing") == 3
    assert "... and 1 more" in text
    assert "gt_sets/train.txt" in text


def test_missing_images_are_answered_with_the_tree_as_well(root):
    (root / "images").rename(root / "image")
    with pytest.raises(HTTError, match=r"images.2\.png is missing[\s\S]*must read"):
        check_all(root)


@pytest.mark.parametrize("task", ALL)
def test_a_missing_or_truncated_label_is_found_unless_it_is_hidden(root, task):
    path = root / FOLDERS[task] / f"10.{'npy' if task == 'depth' else 'png'}"
    source = NYUD40(root, "train")
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b""):
        path.write_bytes(content)
        with pytest.raises(HTTError, match=rf"{path.name} is truncated"):
            check_all(root)
    path.unlink()
    with pytest.raises(HTTError, match=rf"{path.name} is missing"):
        check_all(root)
    source.check({"10": [other for other in ALL if other != task], "2": ALL})


@pytest.mark.parametrize(
    ("task", "array", "message"),
    [
        ("semseg", np.full(SIZE, 41, np.uint8), "holds 41; classes must be 1 to 40"),
        ("semseg", np.full(SIZE, 255, np.uint8), "holds 255"),
        ("semseg", np.full((*SIZE, 3), 7, np.uint8), "is PNG RGB"),
        ("semseg", np.full(SIZE, 7, np.uint16), "is 16-bit PNG"),
        ("edges", np.full(SIZE, 1, np.uint8), "holds 1; edges must be 255"),
        ("normals", np.full(SIZE, 1, np.uint8), "is PNG L"),
        ("depth", np.full((*SIZE, 3), 1.0), "must be float"),
        ("depth", np.full(SIZE, 1), "must be float"),
    ],
)
def test_wrong_values_are_refused_by_check_and_reading(root, task, array, message):
    path = replace(root, task, array)
    for refuse in (lambda: check_all(root), lambda: NYUD40(root, "train").label(0, task)):
        with pytest.raises(HTTError, match=f"{path.name} {message}|{path.name} is .*{message}"):
            refuse()


def test_a_broken_label_is_named_even_where_its_image_is_broken_as_well(root):
    (root / "images" / "3.png").write_bytes(b"")
    path = replace(root, "semseg", np.full(SIZE, 41, np.uint8), "3")
    for name, task in ((path, "semseg"), (root / "images" / "3.png", "edges")):
        with pytest.raises(HTTError, match=str(name)):
            NYUD40(root, "train").label(1, task)


def test_images_of_different_sizes_are_refused_unless_sizes_are_free(root):
    replace(root, "images", np.zeros((30, 40, 3), np.uint8), "3")
    check_all(root, uniform_size=False)
    with pytest.raises(HTTError, match=r"3\.png is \(30, 40\), but the first image \(34, 44\); set data\.image_"):
        check_all(root)


def test_tasks_come_in_canonical_order_with_their_weights(root, tmp_path):
    data = NYUD40DataModule(str(root), labels="full")
    assert data.canonical_tasks == ALL
    assert [task.loss_weight for task in data.tasks] == [1, 0.6, 1, 50]
    assert [task.confidence_threshold for task in data.tasks] == [0.9, 0.85, 0.85, 0.99]
    assert data.tasks[3].tolerance == 0.011
    assert NYUD40DataModule(str(root), labels="random-label").tasks[1].confidence_threshold == 0.95
    saved = tmp_path / "label_mask.json"
    drawn = NYUD40DataModule(str(root), labels="random-label", seed=0)
    drawn.label_mask(drawn.build_dataset("train")).save(saved)
    assert NYUD40DataModule(str(root), labels=str(saved)).tasks[1].confidence_threshold == 0.95


def test_training_and_evaluation_share_the_published_canvas(tmp_path):
    data = NYUD40DataModule(str(write_tree(tmp_path, (425, 560))), labels="full", batch_size=2, num_workers=0, seed=0)
    data.prepare_data()
    data.setup("fit")
    for loader in (data.train_dataloader(), data.val_dataloader()):
        batch = next(iter(loader))
        assert batch["image"].shape == (2, 3, 448, 576)
    assert batch["valid"].sum() == 2 * 425 * 560
    assert (batch["semseg"][~batch["valid"]] == 255).all()


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["htt"])


@pytest.mark.slow
@pytest.mark.usefixtures("elsewhere")
def test_the_config_fits_validates_and_tests_on_a_tree_that_the_check_passes(root, capsys):
    data = {"--data.root": str(root), "--data.augment.crop": "[36, 48]", "--data.num_workers": "0"}
    options = data | {
        "--data.batch_size": "2", "--model.backbone": BACKBONE, "--model.pretrained": "false", "--model.token_dim": "8",
        "--trainer.accelerator": "cpu", "--trainer.max_epochs": "1", "--trainer.enable_progress_bar": "false",
    }  # fmt: skip

    def htt(command, options):
        main([command, "--config", "nyud40.yaml", *(word for pair in options.items() for word in pair)])

    htt("check", data)
    htt("fit", options)
    (checkpoint,) = Path("runs").glob("*/checkpoints/last.ckpt")
    for command in ("validate", "test"):
        htt(command, options | {"--ckpt_path": str(checkpoint)})
    assert "test/edges/ods_f" in capsys.readouterr().out


@pytest.mark.usefixtures("elsewhere")
def test_the_config_says_the_published_recipe(capsys):
    with pytest.raises(SystemExit):
        main(["fit", "--config", "nyud40.yaml", "--data.root", ".", "--print_config"])
    config = yaml.safe_load(capsys.readouterr().out)
    data = config["data"]["init_args"]
    assert (data["augment"]["scale_range"], data["augment"]["crop"]) == ([0.5, 2.0], [448, 576])
    assert (data["batch_size"], data["labels"], config["model"]["lr"]) == (6, "one-label", 2e-5)
    assert (config["trainer"]["max_epochs"], config["trainer"]["gradient_clip_val"]) == (100, 10)
