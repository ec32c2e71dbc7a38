import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from htt_lightning.data.datasets.nyud import NYUD, NYUDDataModule
from htt_lightning.errors import HTTError

SIZE = (24, 32)
ALL = ("semseg", "depth", "normals")
TREE = "label/0.npy"


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
    """Rewrite one training file with what ``change`` makes of its array; its path."""
    path = root / "train" / kind / f"{name}.npy"
    np.save(path, change(np.load(path)), allow_pickle=True)
    return path


def put(value, where=(0, 0)):
    def change(array):
        array[where] = value
        return array

    return change


def check_all(root):
    source = NYUD(root, "train")
    source.check(dict.fromkeys(source.ids, ALL))


def test_the_root_may_hold_the_dataset_folder_or_be_it(root):
    assert NYUD(root, "train").ids == NYUD(str(root.parent), "train").ids


def test_ids_are_file_names_in_natural_order(root):
    assert NYUD(root, "train").ids == ["0", "1", "2", "10"]
    assert NYUD(root, "val").ids == ["0", "1"]
    np.testing.assert_allclose(
        NYUD(root, "train").image(3), np.load(root / "train" / "image" / "10.npy"), rtol=0, atol=1e-7
    )


def test_images_are_float32_within_zero_and_one(root):
    image = NYUD(root, "train").image(0)
    assert image.dtype == np.float32
    assert image.shape == (*SIZE, 3)
    replace(root, "image", lambda array: put(-0.0005)(put(1.0005, (1, 1))(array)))
    image = NYUD(root, "train").image(0)
    assert image.min() == 0
    assert image.max() == 1


@pytest.mark.parametrize("dtype", ["float64", "float32", "int64", "int8"])
def test_minus_one_becomes_255_in_semseg_and_all_else_stays(root, dtype):
    path = replace(root, "label", lambda array: array.astype(dtype))
    label, stored = NYUD(root, "train").label(0, "semseg"), np.load(path)
    assert label.dtype == np.uint8
    assert (label[stored == -1] == 255).all()
    np.testing.assert_array_equal(label[stored >= 0], stored[stored >= 0])


@pytest.mark.parametrize("shape", [SIZE, (*SIZE, 1)])
def test_depth_comes_with_and_without_a_channel_axis(root, shape):
    path = replace(root, "depth", lambda array: array.reshape(shape))
    depth = NYUD(root, "train").label(0, "depth")
    assert depth.dtype == np.float32
    np.testing.assert_array_equal(depth, np.load(path).reshape(SIZE).astype(np.float32))


@pytest.mark.parametrize("value", [0, -2, np.nan, np.inf, -np.inf, 1e200])
def test_depth_that_is_not_positive_and_finite_is_missing(root, value):
    replace(root, "depth", put(value))
    depth = NYUD(root, "train").label(0, "depth")
    assert np.isnan(depth[0, 0])
    assert np.isnan(depth).sum() == 1


@pytest.mark.parametrize("value", [(0, 0, 0), (np.nan, 0, 1), (0, np.inf, 0), (1e200, 0, 0)])
def test_normals_of_no_direction_are_missing_in_all_channels(root, value):
    replace(root, "normal", put(value))
    normals = NYUD(root, "train").label(0, "normals")
    assert np.isnan(normals[0, 0]).all()
    assert np.isnan(normals).sum() == 3


def test_normals_are_brought_to_unit_length(root):
    replace(root, "normal", put((0.3, 0, -0.4)))
    normals = NYUD(root, "train").label(0, "normals")
    assert normals.dtype == np.float32
    np.testing.assert_allclose(normals[0, 0], (0.6, 0, -0.8), rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(normals, axis=-1), 1, rtol=1e-6)


def test_entirely_missing_labels_are_read_without_complaint(root):
    replace(root, "normal", np.zeros_like)
    replace(root, "depth", np.zeros_like)
    source = NYUD(root, "train")
    assert np.isnan(source.label(0, "normals")).all()
    assert np.isnan(source.label(0, "depth")).all()


def test_results_may_be_changed_without_changing_the_files(root):
    source = NYUD(root, "train")
    for read in (lambda: source.image(0), *(lambda task=task: source.label(0, task) for task in ALL)):
        before = read().copy()
        read()[:] = 0
        np.testing.assert_array_equal(read(), before)


def test_a_sound_split_passes_the_check(root):
    check_all(root)
    NYUD(root, "val").check({"0": ALL, "1": ALL})


def test_a_missing_root_is_answered_with_the_expected_tree(tmp_path):
    with pytest.raises(HTTError, match=TREE) as error:
        NYUD(tmp_path / "nowhere", "train")
    assert "nowhere" in str(error.value)


def test_a_missing_split_is_answered_with_the_expected_tree(root):
    (root / "val").rename(root / "validation")
    with pytest.raises(HTTError, match=TREE):
        NYUD(root, "val")


def test_an_unknown_split_is_refused(root):
    with pytest.raises(HTTError, match="train or val"):
        NYUD(root, "test")


def test_an_empty_split_is_refused(root):
    for path in (root / "val").glob("*/*.npy"):
        path.unlink()
    with pytest.raises(HTTError, match=r"val.image is missing or holds no \.npy file[\s\S]*654 samples"):
        NYUD(root, "val")


def test_images_not_named_by_an_integer_are_refused(root):
    path = root / "train" / "image" / "0.npy"
    path.with_name("living-room.npy").write_bytes(path.read_bytes())
    with pytest.raises(HTTError, match=r"living-room\.npy"):
        NYUD(root, "train")


def test_a_missing_label_folder_is_answered_with_the_expected_tree(root):
    (root / "train" / "depth").rename(root / "train" / "depths")
    with pytest.raises(HTTError, match=r"depth.0\.npy is missing") as error:
        check_all(root)
    assert TREE in str(error.value)
    assert "... and 1 more" in str(error.value)


@pytest.mark.parametrize("task", ALL)
def test_an_image_without_its_label_is_refused_unless_the_label_is_hidden(root, task):
    source = NYUD(root, "train")
    path = root / "train" / {"semseg": "label", "depth": "depth", "normals": "normal"}[task] / "2.npy"
    path.unlink()
    with pytest.raises(HTTError, match=r"2\.npy is missing"):
        check_all(root)
    with pytest.raises(HTTError, match=r"2\.npy is missing"):
        source.label(2, task)
    source.check({"2": [other for other in ALL if other != task]})


def test_labels_without_their_image_are_refused(root):
    (root / "train" / "image" / "2.npy").unlink()
    (root / "train" / "image" / "10.npy").unlink()
    source = NYUD(root, "train")
    assert source.ids == ["0", "1", "2", "10"]
    with pytest.raises(HTTError, match=r"image.2\.npy is missing[\s\S]*image.10\.npy is missing"):
        check_all(root)
    for read in (source.image, lambda index: source.label(index, "depth")):
        with pytest.raises(HTTError, match=r"image.2\.npy is missing"):
            read(2)


def test_a_sample_of_another_size_is_refused_unless_images_are_resized(root):
    for kind in ("image", "label", "depth", "normal"):
        replace(root, kind, lambda array: array[:, :20], name="2")
    with pytest.raises(HTTError, match=r"image.2\.npy is \(24, 20\), but the first image \(24, 32\).*image_size"):
        check_all(root)
    NYUD(root, "train", uniform_size=False).check({"2": ALL})


def test_an_unknown_task_is_refused(root):
    with pytest.raises(HTTError, match="edges"):
        NYUD(root, "train").label(0, "edges")


@pytest.mark.parametrize("kind", ["image", "label", "depth", "normal"])
@pytest.mark.parametrize("length", [0, 5, 60, 500, -1])
def test_a_truncated_file_is_named_by_the_check(root, kind, length):
    path = root / "train" / kind / "1.npy"
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(HTTError, match=rf"{kind}.1\.npy is truncated"):
        check_all(root)


@pytest.mark.parametrize("content", [b"not an array at all" * 9, b"PK\x03\x04" + bytes(99)])
def test_a_file_that_is_no_npy_array_is_refused(root, content):
    (root / "train" / "image" / "0.npy").write_bytes(content)
    with pytest.raises(HTTError, match=r"0\.npy is truncated or no \.npy array"):
        NYUD(root, "train").image(0)


class Trap:
    def __reduce__(self):
        return (pytest.fail, ("a file was unpickled",))


@pytest.mark.parametrize("kind", ["image", "label", "depth", "normal"])
def test_files_are_never_unpickled(root, kind):
    replace(root, kind, lambda array: np.array([Trap()], object))
    with pytest.raises(HTTError, match=rf"{kind}.0\.npy"):
        check_all(root)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, 127), value=st.integers(0, 255))
def test_a_damaged_header_is_read_or_refused_with_a_message(root, position, value):
    sound = (root / "train" / "depth" / "1.npy").read_bytes()
    path = root / "train" / "depth" / "0.npy"
    path.write_bytes(sound[:position] + bytes([value]) + sound[position + 1 :])
    source = NYUD(root, "train")
    try:
        assert source.label(0, "depth").shape == SIZE
    except HTTError as error:
        assert "0.npy" in str(error)  # noqa: PT017 - either outcome is right


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("image", lambda a: a[..., 0]),
        ("image", lambda a: a[..., :2]),
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
        ("depth", lambda a: a[:, :-1]),
        ("normal", lambda a: a.transpose(1, 0, 2)),
    ],
)
def test_a_wrong_shape_type_or_size_is_named_by_the_check(root, kind, change):
    replace(root, kind, change)
    with pytest.raises(HTTError, match=rf"{kind}.0\.npy is"):
        check_all(root)


@pytest.mark.parametrize("value", [-2, 13, 255, 0.5, np.nan, np.inf])
def test_labels_other_than_the_classes_are_refused_by_check_and_reading(root, value):
    replace(root, "label", put(value))
    for refuse in (lambda: check_all(root), lambda: NYUD(root, "train").label(0, "semseg")):
        with pytest.raises(HTTError, match=r"label.0\.npy holds .* -1 \(missing\) to 12"):
            refuse()


@pytest.mark.parametrize("value", [-0.01, 1.01, np.nan, np.inf])
def test_colours_outside_zero_and_one_are_refused(root, value):
    replace(root, "image", put(value))
    with pytest.raises(HTTError, match=r"image.0\.npy holds colours"):
        NYUD(root, "train").image(0)


def test_colours_up_to_255_are_refused_with_a_hint(root):
    replace(root, "image", lambda array: array * 255)
    with pytest.raises(HTTError, match="divide"):
        NYUD(root, "train").image(0)


def test_normals_coded_as_colours_are_refused(root):
    replace(root, "normal", lambda array: (array + 1) * 127.5)
    with pytest.raises(HTTError, match="unit vectors"):
        NYUD(root, "train").label(0, "normals")


def test_hidden_labels_are_not_looked_at(root):
    for kind in ("label", "depth", "normal"):
        (root / "train" / kind / "0.npy").write_bytes(b"broken")
    NYUD(root, "train").check({"0": (), "1": ALL})


def test_nothing_warns_about_files_left_open(root):
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        check_all(root)


def test_the_threshold_of_depth_follows_the_protocol_however_the_mask_is_given(root, tmp_path):
    def threshold(labels):
        data = NYUDDataModule(str(root), labels=str(labels), seed=0)
        return next(task.confidence_threshold for task in data.tasks if task.name == "depth"), data

    random, data = threshold("random-label")
    saved = tmp_path / "label_mask.json"
    data.label_mask(data.build_dataset("train")).save(saved)
    assert random == threshold(saved)[0] == 0.95
    assert threshold("one-label")[0] == threshold("full")[0] == 0.85
    saved.write_text("nothing that can be read")
    assert threshold(saved)[0] == 0.85
