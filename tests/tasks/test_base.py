"""What tasks share: configs, geometry of numpy maps, missing maps, gains, and what their constructors refuse."""

import dataclasses
import json
import math
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from htt_lightning.errors import HTTError
from htt_lightning.tasks import IGNORE_INDEX, Depth, Edges, HumanParts, Normals, Saliency, SemSeg, Task
from tests.tasks.samples import TASKS, is_missing, lose, random_target

EVERY_TASK = pytest.mark.parametrize("task", TASKS, ids=lambda t: t.name)
CHANGED = (
    SemSeg(name="rooms", weight=0.5, classes=("a", "b"), absent="zero"),
    HumanParts(weight=2.0),
    Saliency(weight=5.0),
    Edges(weight=50.0, positive=0.9, tolerance=0.0075, thresholds=9),
    Depth(bins=50, near=0.01, far=0.4922, bin_weight=0.2),
    Normals(directions="published", weight=10.0),
)
few = settings(max_examples=25)
sides = st.integers(1, 12)


def numpy_map(task: Task, height: int, width: int, seed: int = 0) -> np.ndarray:
    """A target as a dataset reads it: uint8 ``h w``, or float32 ``h w`` or ``h w c``."""
    target = random_target(task, b=1, h=height, w=width, seed=seed)[0].numpy()
    if task.channels is None:
        return target.astype(np.uint8)
    return target[0] if task.channels == 1 else np.ascontiguousarray(np.moveaxis(target, 0, -1))


# Configs


@pytest.mark.parametrize("task", [*TASKS, *CHANGED], ids=lambda t: t.name)
def test_a_task_comes_back_from_its_config(task):
    again = Task.from_config(json.loads(json.dumps(task.to_config())))
    assert again == task
    assert type(again) is type(task)
    assert hash(again) == hash(task)


def test_a_config_names_the_class_and_every_field():
    config = Depth().to_config()
    assert config["class_path"] == "htt_lightning.tasks.depth.Depth"
    assert config["init_args"] == {
        "name": "depth",
        "weight": 1.0,
        "threshold": 0.85,
        "beta": 1.0,
        "val_images": None,
        "bins": 30,
        "near": 0.67,
        "far": 10.0,
        "bin_weight": 0.1,
        "sharpness": 5.0,
    }


@pytest.mark.parametrize("path", ["nowhere.Flow", "htt_lightning.tasks.Flow", "Depth", "", "htt_lightning.tasks."])
def test_a_class_that_cannot_be_imported_is_an_error_that_names_it(path):
    with pytest.raises(HTTError, match="cannot be imported") as caught:
        Task.from_config({"class_path": path, "init_args": {}})
    assert repr(path) in str(caught.value)


@pytest.mark.parametrize(
    "path", ["math.pi", "pathlib.Path", "htt_lightning.tasks.IGNORE_INDEX", "htt_lightning.tasks.base"]
)
def test_what_is_no_task_is_an_error_that_names_it(path):
    with pytest.raises(HTTError, match="is not a Task") as caught:
        Task.from_config({"class_path": path, "init_args": {}})
    assert path in str(caught.value)


@EVERY_TASK
def test_a_task_cannot_be_changed_and_travels_between_processes(task):
    with pytest.raises(dataclasses.FrozenInstanceError):
        task.weight = 2.0
    assert pickle.loads(pickle.dumps(task)) == task
    assert dataclasses.replace(task, weight=2.0) != task


def test_every_task_has_its_own_name_and_as_many_tokens_as_the_method_says():
    tokens = {task.name: task.num_tokens for task in TASKS}
    assert tokens == {"semseg": 5, "human_parts": 7, "saliency": 2, "edges": 1, "depth": 30, "normals": 40}


# Gains


@EVERY_TASK
def test_a_gain_is_positive_for_a_better_headline(task):
    better, worse = (60.0, 40.0) if task.higher_is_better else (40.0, 60.0)
    assert task.gain(better, 50.0) == pytest.approx(20)
    assert task.gain(worse, 50.0) == pytest.approx(-20)
    assert task.gain(50.0, 50.0) == 0
    assert math.isnan(task.gain(1.0, 0.0))


def test_accuracies_go_up_and_errors_go_down():
    up = {task.name for task in TASKS if task.higher_is_better}
    assert up == {"semseg", "human_parts", "saliency", "edges"}


# Geometry


@EVERY_TASK
@given(height=sides, width=sides, seed=st.integers(0, 99))
@few
def test_flipping_twice_changes_nothing(task, height, width, seed):
    array = numpy_map(task, height, width, seed)
    kept = array.copy()
    once = task.flip(array)
    assert once.dtype == array.dtype
    assert once.flags.c_contiguous
    np.testing.assert_array_equal(task.flip(once), array)
    np.testing.assert_array_equal(array, kept)


@EVERY_TASK
def test_a_flip_mirrors_columns_and_turns_only_the_x_of_normals(task):
    array = numpy_map(task, 4, 5)
    flipped = task.flip(array)
    sign = np.array([-1, 1, 1]) if isinstance(task, Normals) else 1
    for y, x in np.ndindex(4, 5):
        np.testing.assert_array_equal(flipped[y, x], sign * array[y, 4 - x])


@EVERY_TASK
@given(factor=st.floats(0.25, 4))
@few
def test_a_zoom_divides_depth_and_leaves_every_other_map_alone(task, factor):
    array = numpy_map(task, 5, 6)
    zoomed = task.zoom(array, factor)
    assert zoomed.dtype == array.dtype
    if isinstance(task, Depth):
        np.testing.assert_allclose(zoomed, array / factor, rtol=1e-6)
    else:
        np.testing.assert_array_equal(zoomed, array)


@EVERY_TASK
def test_a_missing_map_has_no_label_and_the_shape_and_type_of_any_other(task):
    missing, usual = task.missing(4, 5), numpy_map(task, 4, 5)
    assert missing.shape == usual.shape
    assert missing.dtype == usual.dtype
    assert np.isnan(missing).all() if task.channels else (missing == IGNORE_INDEX).all()
    for geometry in (task.flip, task.settle, lambda array: task.zoom(array, 2.0)):
        np.testing.assert_array_equal(geometry(task.missing(4, 5)), missing)


def test_a_crop_without_people_has_no_parts():
    background = np.zeros((4, 5), np.uint8)
    background[0] = IGNORE_INDEX
    kept = background.copy()
    settled = HumanParts().settle(background)
    assert settled.dtype == np.uint8
    np.testing.assert_array_equal(settled, HumanParts().missing(4, 5))
    np.testing.assert_array_equal(background, kept)


def test_a_crop_with_one_pixel_of_a_person_keeps_its_parts():
    parts = np.zeros((4, 5), np.uint8)
    parts[0], parts[3, 4] = IGNORE_INDEX, 6
    np.testing.assert_array_equal(HumanParts().settle(parts.copy()), parts)


@EVERY_TASK
def test_maps_of_every_other_task_are_settled_already(task):
    array = numpy_map(task, 5, 6)
    np.testing.assert_array_equal(task.settle(array), array)
    if not isinstance(task, HumanParts) and task.channels is None:
        np.testing.assert_array_equal(task.settle(np.zeros_like(array)), np.zeros_like(array))


# Constructors


@pytest.mark.parametrize(
    "arguments",
    [{"near": 10.0, "far": 10.0}, {"near": 11.0}, {"near": 0.0}, {"near": -1.0}, {"bins": 1}, {"near": math.nan}],
)
def test_depth_refuses_bins_that_are_no_range(arguments):
    with pytest.raises(HTTError, match="near < far"):
        Depth(**arguments)


def test_normals_refuse_another_number_of_published_directions():
    with pytest.raises(HTTError, match="40 published directions, not 30"):
        Normals(directions="published", bins=30)


def test_normals_refuse_a_single_direction():
    with pytest.raises(HTTError, match="bins >= 2"):
        Normals(bins=1)


@EVERY_TASK
def test_samples_of_a_lost_target_are_missing(task):
    target = random_target(task, missing=0)
    assert not is_missing(task, target).any()
    assert is_missing(task, lose(task, target)).all()


# Discovery


@pytest.mark.parametrize("task", TASKS, ids=lambda t: t.name)
def test_a_threshold_is_a_probability(task):
    assert task.supports_pseudo_labels
    for threshold in (-0.1, 1.5, math.nan):
        with pytest.raises(HTTError, match=f"threshold of {task.name} must be in"):
            dataclasses.replace(task, threshold=threshold)
    with pytest.raises(HTTError, match="certain"):
        Edges(certain=2)


@pytest.mark.parametrize("task", TASKS, ids=lambda t: t.name)
def test_a_packed_map_comes_back(task):
    array = numpy_map(task, 6, 7)
    array = np.where(np.isnan(array), 1 / math.sqrt(3), array) if task.channels else array
    packed = task.pack(array)
    assert packed.itemsize <= 2
    np.testing.assert_allclose(task.unpack(packed), array, rtol=1e-3, atol=0.01 if task.channels == 3 else 0)
    assert task.unpack(packed).dtype == array.dtype
