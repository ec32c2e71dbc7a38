"""NYUD-v2 with 13 classes, and what all trees of ``.npy`` files share."""

import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from htt_lightning.data.datasets.nyud import NYUD, NYUDDataModule
from htt_lightning.errors import DataError, HTTError

SIZE = (24, 32)
ALL = ("semseg", "depth", "normals")
KINDS = ("image", "label", "depth", "normal")
LAYOUT = "label/0.npy"


def write_tree(folder: Path) -> Path:
    for split, names in {"train": ("0", "1", "2", "10"), "val": ("0", "1")}.items():
        for name in names:
            rng = np.random.default_rng(int(name))
            normals = rng.normal(size=(*SIZE, 3))
            arrays = {
                "image": rng.random((*SIZE, 3)),
                "label": rng.integers(-1, 13, SIZE).astype(np.float64),
                "depth": rng.uniform(0.7, 10, (*SIZE, 1)),
                "normal": normals / np.linalg.norm(normals, axis=-1, keepdims=True),
            }
            for kind, array in arrays.items():
                path = folder / split / kind / f"{name}.npy"
                path.parent.mkdir(parents=True, exist_ok=True)
                np.save(path, array)
    return folder


@pytest.fixture
def root(tmp_path):
    return write_tree(tmp_path / "NYUDv2")


def replace(root, kind, change, name="0"):
    """Rewrite a training file with the result of ``change``; return its path."""
    path = root / "train" / kind / f"{name}.npy"
    np.save(path, change(np.load(path)), allow_pickle=True)
    return path


def put(value, where=(0, 0)):
    def change(array):
        array[where] = value
        return array

    return change


def check_all(root):
    dataset = NYUD(root, "train")
    dataset.check(dict.fromkeys(dataset.ids, ALL))


# Reading


def test_ids_are_in_natural_order_and_root_may_be_the_parent(root):
    assert NYUD(root, "train").ids == NYUD(str(root.parent), "train").ids == ["0", "1", "2", "10"]
    image = NYUD(root, "train").image(3)
    np.testing.assert_allclose(image, np.load(root / "train" / "image" / "10.npy"), rtol=0, atol=1e-7)


def test_images_are_float32_in_zero_to_one(root):
    replace(root, "image", lambda array: put(-0.0005)(put(1.0005, (1, 1))(array)))
    image = NYUD(root, "train").image(0)
    assert (image.dtype, image.shape) == (np.float32, (*SIZE, 3))
    assert (image.min(), image.max()) == (0, 1)


@pytest.mark.parametrize("dtype", ["float64", "float32", "int64", "int8"])
def test_semseg_turns_minus_one_into_255(root, dtype):
    path = replace(root, "label", lambda array: array.astype(dtype))
    label, stored = NYUD(root, "train").label(0, "semseg"), np.load(path).astype(int)
    assert label.dtype == np.uint8
    np.testing.assert_array_equal(label, np.where(stored < 0, 255, stored))


@pytest.mark.parametrize("shape", [SIZE, (*SIZE, 1)])
def test_depth_may_have_a_channel_axis(root, shape):
    path = replace(root, "depth", lambda array: array.reshape(shape))
    depth = NYUD(root, "train").label(0, "depth")
    assert depth.dtype == np.float32
    np.testing.assert_array_equal(depth, np.load(path).reshape(SIZE).astype(np.float32))


@pytest.mark.parametrize(
    ("kind", "value"),
    [("depth", value) for value in (0, -2, np.nan, np.inf, -np.inf, 1e200)]
    + [("normal", value) for value in ((0, 0, 0), (np.nan, 0, 1), (0, np.inf, 0), (1e200, 0, 0))],
)
def test_invalid_depth_and_normals_are_missing(root, kind, value):
    replace(root, kind, put(value))
    label = NYUD(root, "train").label(0, "normals" if kind == "normal" else kind)
    assert np.isnan(label[0, 0]).all()
    assert np.isnan(label).sum() == label[0, 0].size


def test_normals_are_normalized_to_unit_length(root):
    replace(root, "normal", put((0.3, 0, -0.4)))
    normals = NYUD(root, "train").label(0, "normals")
    assert normals.dtype == np.float32
    np.testing.assert_allclose(normals[0, 0], (0.6, 0, -0.8), rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(normals, axis=-1), 1, rtol=1e-6)


def test_entirely_missing_labels_can_be_read(root):
    for kind, task in (("normal", "normals"), ("depth", "depth")):
        replace(root, kind, np.zeros_like)
        assert np.isnan(NYUD(root, "train").label(0, task)).all()


def test_changing_arrays_does_not_change_files(root):
    dataset = NYUD(root, "train")
    for read in (lambda: dataset.image(0), *(lambda task=task: dataset.label(0, task) for task in ALL)):
        before = read().copy()
        read()[:] = 0
        np.testing.assert_array_equal(read(), before)


def test_files_are_closed(root):
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        check_all(root)


# Checking


@pytest.mark.parametrize("change", ["no root", "no split", "empty split"])
def test_missing_folders_are_reported_with_the_layout(root, change):
    if change == "no split":
        (root / "val").rename(root / "validation")
    for path in (root / "val").glob("*/*.npy") if change == "empty split" else ():
        path.unlink()
    with pytest.raises(DataError, match=LAYOUT):
        NYUD(root / "nowhere" if change == "no root" else root, "val")


def test_unknown_splits_and_tasks_are_rejected(root):
    with pytest.raises(HTTError, match="train or val, got 'test'"):
        NYUD(root, "test")
    with pytest.raises(HTTError, match="edges"):
        NYUD(root, "train").label(0, "edges")


def test_all_files_not_named_by_integers_are_reported(root):
    for kind in ("image", "depth"):
        (root / "train" / kind / "living-room.npy").write_bytes(b"")
    with pytest.raises(HTTError) as error:
        NYUD(root, "train")
    assert len(error.value.errors) == 2
    assert "image/living-room.npy" in str(error.value)


@pytest.mark.parametrize("task", ALL)
def test_missing_labels_are_reported_unless_hidden(root, task):
    dataset = NYUD(root, "train")
    (root / "train" / {"semseg": "label", "depth": "depth", "normals": "normal"}[task] / "2.npy").unlink()
    for read in (lambda: check_all(root), lambda: dataset.label(2, task)):
        with pytest.raises(DataError, match=r"2\.npy is missing"):
            read()
    dataset.check({"2": [other for other in ALL if other != task]})


def test_labels_without_their_image_are_reported(root):
    (root / "train" / "image" / "2.npy").unlink()
    dataset = NYUD(root, "train")
    assert dataset.ids == ["0", "1", "2", "10"]
    for read in (lambda: check_all(root), lambda: dataset.image(2), lambda: dataset.label(2, "depth")):
        with pytest.raises(HTTError, match=r"image.2\.npy is missing"):
            read()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [0, 5, 60, 500, -1, None])
def test_check_names_truncated_and_longer_files(root, kind, length):
    path = root / "train" / kind / "1.npy"
    path.write_bytes(path.read_bytes() + b"1" if length is None else path.read_bytes()[:length])
    with pytest.raises(DataError, match=rf"{kind}.1\.npy is corrupt"):
        check_all(root)


class Trap:
    def __reduce__(self):
        return (pytest.fail, ("a file was unpickled",))


@pytest.mark.parametrize("kind", KINDS)
def test_files_are_never_unpickled(root, kind):
    replace(root, kind, lambda array: np.array([Trap()], object))
    with pytest.raises(DataError, match=rf"{kind}.0\.npy"):
        check_all(root)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, 127), value=st.integers(0, 255))
def test_a_corrupt_header_is_read_or_reported(root, position, value):
    content = (root / "train" / "depth" / "1.npy").read_bytes()
    path = root / "train" / "depth" / "0.npy"
    path.write_bytes(content[:position] + bytes([value]) + content[position + 1 :])
    try:
        assert NYUD(root, "train").label(0, "depth").shape == SIZE
    except DataError as error:
        assert "0.npy" in str(error)  # noqa: PT017 - either outcome is right


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("image", lambda a: a[..., 0]),
        ("image", lambda a: a.transpose(2, 0, 1)),
        ("image", lambda a: (a * 255).astype(np.uint8)),
        ("image", lambda a: a[:0]),
        ("label", lambda a: a[..., None]),
        ("label", lambda a: a[0]),
        ("label", lambda a: a > 3),
        ("depth", lambda a: np.repeat(a, 3, axis=-1)),
        ("depth", lambda a: a.astype(np.int64)),
        ("normal", lambda a: a[..., :2]),
        ("normal", lambda a: a.astype(np.complex64)),
        ("label", lambda a: a[:-1]),
        ("normal", lambda a: a.transpose(1, 0, 2)),
    ],
)
def test_check_names_other_shapes_types_and_sizes(root, kind, change):
    replace(root, kind, change)
    with pytest.raises(DataError, match=rf"{kind}.0\.npy must"):
        check_all(root)


@pytest.mark.parametrize("value", [-2, 13, 255, 0.5, np.nan, np.inf])
def test_unknown_classes_are_rejected(root, value):
    replace(root, "label", put(value))
    with pytest.raises(DataError, match=r"label.0\.npy .* 0 to 12, or -1"):
        NYUD(root, "train").label(0, "semseg")


@pytest.mark.parametrize("value", [-0.01, 1.01, np.nan, np.inf])
def test_colors_out_of_range_are_rejected(root, value):
    replace(root, "image", put(value))
    with pytest.raises(DataError, match=r"image.0\.npy must have colors"):
        NYUD(root, "train").image(0)


def test_images_and_normals_in_bytes_are_rejected(root):
    replace(root, "image", lambda array: array * 255)
    replace(root, "normal", lambda array: (array + 1) * 127.5)
    with pytest.raises(DataError, match="Divide"):
        NYUD(root, "train").image(0)
    with pytest.raises(DataError, match="unit vectors"):
        NYUD(root, "train").label(0, "normals")


def test_depth_threshold_follows_the_protocol_of_the_mask(root, tmp_path):
    def threshold(labels):
        data = NYUDDataModule(str(root), labels=str(labels), seed=0)
        return next(task.confidence_threshold for task in data.tasks if task.name == "depth"), data

    random, data = threshold("random-label")
    saved = tmp_path / "label_mask.json"
    data.label_mask(data.build_dataset("train")).save(saved)
    assert random == threshold(saved)[0] == 0.95
    assert threshold("one-label")[0] == threshold("full")[0] == 0.85
    saved.write_text("corrupt")
    assert threshold(saved)[0] == 0.85


def test_hidden_files_are_skipped(root):
    (root / "train" / "image" / "._0.npy").write_bytes(b"metadata of another system")
    assert NYUD(root, "train").ids == ["0", "1", "2", "10"]
