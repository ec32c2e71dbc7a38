"""NYUD-v2 with 40 classes, and what all datasets with id lists share."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from htt_lightning.data.datasets.nyud40 import CLASSES, NYUD40, NYUD40DataModule
from htt_lightning.errors import HTTError
from htt_lightning.io.images import read_normals

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


def test_ids_are_in_natural_order(root):
    assert NYUD40(root, "train").ids == ["2", "3", "10", "1448"]
    assert NYUD40(root.parent, "val").ids == ["1", "5"]
    np.testing.assert_array_equal(NYUD40(root, "train").image(2), stored(root, "images", "10"))


def test_classes_are_the_published_forty():
    assert len(set(CLASSES)) == 40
    assert (CLASSES[0], CLASSES[19], CLASSES[39]) == ("wall", "floor mat", "otherprop")


def test_semseg_counts_from_zero_and_zero_is_missing(root):
    label, raw = NYUD40(root, "train").label(0, "semseg"), stored(root, "semseg")
    assert label.dtype == np.uint8
    assert (label[raw == 0] == 255).all()
    assert (raw == 0).any()
    np.testing.assert_array_equal(label[raw > 0], raw[raw > 0] - 1)


def test_depth_is_missing_where_zero(root):
    depth, raw = NYUD40(root, "train").label(0, "depth"), stored(root, "depth")
    assert depth.dtype == np.float32
    assert np.isnan(depth[0, 0])
    np.testing.assert_array_equal(depth[raw > 0], raw[raw > 0])
    replace(root, "depth", raw.astype(np.float64)[..., None])
    np.testing.assert_array_equal(NYUD40(root, "train").label(0, "depth"), depth)


def test_normals_are_decoded_from_colors(root):
    replace(root, "normals", stored(root, "normals")[::2, ::2])
    expected = read_normals(root / "normals" / "2.png", SIZE)
    np.testing.assert_array_equal(NYUD40(root, "train").label(0, "normals"), expected)


def test_edges_are_zero_or_one(root):
    edges = NYUD40(root, "train").label(0, "edges")
    assert edges.dtype == np.uint8
    np.testing.assert_array_equal(edges, stored(root, "edges") == 255)


@pytest.mark.parametrize("task", ["semseg", "depth", "edges"])
def test_maps_of_other_sizes_are_resized_by_nearest_neighbor(root, task):
    native = NYUD40(root, "train").label(0, task)
    replace(root, task, stored(root, task).repeat(2, 0).repeat(3, 1))
    np.testing.assert_array_equal(NYUD40(root, "train").label(0, task), native)


def test_unknown_tasks_are_rejected(root):
    with pytest.raises(HTTError, match="semseg, depth, normals, edges, got saliency"):
        NYUD40(root, "train").label(0, "saliency")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no image"),
        (b"2\n3\n2\n", "'2' twice"),
        (b"2\n../3\n", "'../3', which is no image id"),
        (b"\xff\xfe", "list of image ids"),
    ],
)
def test_invalid_id_lists_are_rejected(root, content, message):
    (root / "gt_sets" / "train.txt").write_bytes(content)
    with pytest.raises(HTTError, match=rf"train\.txt.*{message}"):
        NYUD40(root, "train")


@pytest.mark.parametrize("folder", ["depth", "images"])
def test_missing_folders_are_reported_with_the_layout(root, folder):
    (root / folder).rename(root / "moved")
    with pytest.raises(HTTError) as error:
        check_all(root)
    assert len(error.value.errors) == 4
    assert str(error.value).count("is missing") == 3
    assert "... and 1 more" in str(error.value)
    assert "gt_sets/train.txt" in str(error.value)


@pytest.mark.parametrize("task", ALL)
def test_missing_and_corrupt_labels_are_reported_unless_hidden(root, task):
    path = root / FOLDERS[task] / f"10.{'npy' if task == 'depth' else 'png'}"
    dataset, content = NYUD40(root, "train"), path.read_bytes()
    for broken in (content[: len(content) // 2], b"", None):
        path.unlink() if broken is None else path.write_bytes(broken)
        for read in (lambda: dataset.label(2, task), *([] if broken else [lambda: check_all(root)])):
            with pytest.raises(HTTError, match=path.name):
                read()
    dataset.check({"10": [other for other in ALL if other != task], "2": ALL})


@pytest.mark.parametrize(
    ("task", "array"),
    [
        ("semseg", np.full((*SIZE, 3), 7, np.uint8)),
        ("semseg", np.full(SIZE, 7, np.uint16)),
        ("normals", np.full(SIZE, 1, np.uint8)),
        ("depth", np.full((*SIZE, 3), 1.0)),
        ("depth", np.full(SIZE, 1)),
    ],
)
def test_other_types_are_reported_by_check_and_reading(root, task, array):
    path = replace(root, task, array)
    for read in (lambda: check_all(root), lambda: NYUD40(root, "train").label(0, task)):
        with pytest.raises(HTTError, match=path.name):
            read()


@pytest.mark.parametrize(("task", "value"), [("semseg", 41), ("semseg", 255), ("edges", 1)])
def test_unknown_values_are_rejected(root, task, value):
    path = replace(root, task, np.full(SIZE, value, np.uint8))
    with pytest.raises(HTTError, match=rf"{path.name} .*got {value}"):
        NYUD40(root, "train").label(0, task)


def test_a_corrupt_label_is_named_rather_than_its_corrupt_image(root):
    image, label = root / "images" / "3.png", root / "segmentation" / "3.png"
    for path in (image, label):
        path.write_bytes(b"")
    for path, task in ((label, "semseg"), (image, "edges")):
        with pytest.raises(HTTError, match=str(path)):
            NYUD40(root, "train").label(1, task)


def test_tasks_have_canonical_order_and_weights(root):
    data = NYUD40DataModule(str(root), labels="full")
    assert data.canonical_tasks == ALL
    assert [task.loss_weight for task in data.tasks] == [1, 0.6, 1, 50]
    assert [task.confidence_threshold for task in data.tasks] == [0.9, 0.85, 0.85, 0.99]
    assert data.tasks[3].tolerance == 0.011
    assert NYUD40DataModule(str(root), labels="random-label").tasks[1].confidence_threshold == 0.95


def test_training_and_evaluation_share_the_published_size(tmp_path):
    data = NYUD40DataModule(str(write_tree(tmp_path, (425, 560))), labels="full", batch_size=2, num_workers=0, seed=0)
    data.prepare_data()
    data.setup("fit")
    for loader in (data.train_dataloader(), data.val_dataloader()):
        batch = next(iter(loader))
        assert batch["image"].shape == (2, 3, 448, 576)
    assert batch["valid"].sum() == 2 * 425 * 560
    assert (batch["semseg"][~batch["valid"]] == 255).all()
