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
    SemSeg(name="rooms", loss_weight=0.5, classes=("a", "b"), absent_classes="zero"),
    HumanParts(loss_weight=2.0),
    Saliency(loss_weight=5.0),
    Edges(loss_weight=50.0, pos_weight=0.9, tolerance=0.0075, num_thresholds=9),
    Depth(num_bins=50, min_depth=0.01, max_depth=0.4922, bin_loss_weight=0.2),
    Normals(bin_directions="published", loss_weight=10.0),
)
few = settings(max_examples=25)
sides = st.integers(1, 12)


def numpy_map(task: Task, height: int, width: int, seed: int = 0) -> np.ndarray:
    """A target as a dataset reads it: uint8 ``h w``, or float32 ``h w`` or ``h w c``."""
    target = random_target(task, b=1, h=height, w=width, seed=seed)[0].numpy()
    if task.field_channels is None:
        return target.astype(np.uint8)
    return target[0] if task.field_channels == 1 else np.ascontiguousarray(np.moveaxis(target, 0, -1))


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
        "loss_weight": 1.0,
        "confidence_threshold": 0.85,
        "pseudo_label_weight": 1.0,
        "max_val_images": None,
        "num_bins": 30,
        "min_depth": 0.67,
        "max_depth": 10.0,
        "bin_loss_weight": 0.1,
        "confidence_inv_temperature": 5.0,
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
        task.loss_weight = 2.0
    assert pickle.loads(pickle.dumps(task)) == task
    assert dataclasses.replace(task, loss_weight=2.0) != task


def test_every_task_has_its_own_name_and_as_many_tokens_as_the_method_says():
    tokens = {task.name: task.num_tokens for task in TASKS}
    assert tokens == {"semseg": 5, "human_parts": 7, "saliency": 2, "edges": 1, "depth": 30, "normals": 40}


# Gains


@EVERY_TASK
def test_a_gain_is_positive_for_a_better_headline(task):
    better, worse = (60.0, 40.0) if task.higher_is_better else (40.0, 60.0)
    assert task.relative_gain(better, 50.0) == pytest.approx(20)
    assert task.relative_gain(worse, 50.0) == pytest.approx(-20)
    assert task.relative_gain(50.0, 50.0) == 0
    assert math.isnan(task.relative_gain(1.0, 0.0))


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
    zoomed = task.rescale_values(array, factor)
    assert zoomed.dtype == array.dtype
    if isinstance(task, Depth):
        np.testing.assert_allclose(zoomed, array / factor, rtol=1e-6)
    else:
        np.testing.assert_array_equal(zoomed, array)


@EVERY_TASK
def test_a_missing_map_has_no_label_and_the_shape_and_type_of_any_other(task):
    missing, usual = task.empty_target(4, 5), numpy_map(task, 4, 5)
    assert missing.shape == usual.shape
    assert missing.dtype == usual.dtype
    assert np.isnan(missing).all() if task.field_channels else (missing == IGNORE_INDEX).all()
    for geometry in (task.flip, task.postprocess_target, lambda array: task.rescale_values(array, 2.0)):
        np.testing.assert_array_equal(geometry(task.empty_target(4, 5)), missing)


def test_a_crop_without_people_has_no_parts():
    background = np.zeros((4, 5), np.uint8)
    background[0] = IGNORE_INDEX
    kept = background.copy()
    settled = HumanParts().postprocess_target(background)
    assert settled.dtype == np.uint8
    np.testing.assert_array_equal(settled, HumanParts().empty_target(4, 5))
    np.testing.assert_array_equal(background, kept)


def test_a_crop_with_one_pixel_of_a_person_keeps_its_parts():
    parts = np.zeros((4, 5), np.uint8)
    parts[0], parts[3, 4] = IGNORE_INDEX, 6
    np.testing.assert_array_equal(HumanParts().postprocess_target(parts.copy()), parts)


@EVERY_TASK
def test_maps_of_every_other_task_are_settled_already(task):
    array = numpy_map(task, 5, 6)
    np.testing.assert_array_equal(task.postprocess_target(array), array)
    if not isinstance(task, HumanParts) and task.field_channels is None:
        np.testing.assert_array_equal(task.postprocess_target(np.zeros_like(array)), np.zeros_like(array))


# Constructors


@pytest.mark.parametrize(
    "arguments",
    [
        {"min_depth": 10.0, "max_depth": 10.0},
        {"min_depth": 11.0},
        {"min_depth": 0.0},
        {"min_depth": -1.0},
        {"num_bins": 1},
        {"min_depth": math.nan},
    ],
)
def test_depth_refuses_bins_that_are_no_range(arguments):
    with pytest.raises(HTTError, match="max_depth"):
        Depth(**arguments)


def test_normals_refuse_another_number_of_published_directions():
    with pytest.raises(HTTError, match="40 published directions, not 30"):
        Normals(bin_directions="published", num_bins=30)


def test_normals_refuse_a_single_direction():
    with pytest.raises(HTTError, match="bins >= 2"):
        Normals(num_bins=1)


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
            dataclasses.replace(task, confidence_threshold=threshold)
    with pytest.raises(HTTError, match="pseudo_label_cutoff"):
        Edges(pseudo_label_cutoff=2)


@pytest.mark.parametrize("task", TASKS, ids=lambda t: t.name)
def test_a_packed_map_comes_back(task):
    array = numpy_map(task, 6, 7)
    array = np.where(np.isnan(array), 1 / math.sqrt(3), array) if task.field_channels else array
    packed = task.compress(array)
    assert packed.itemsize <= 2
    np.testing.assert_allclose(task.decompress(packed), array, rtol=1e-3, atol=0.01 if task.field_channels == 3 else 0)
    assert task.decompress(packed).dtype == array.dtype
