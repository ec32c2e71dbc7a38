"""Config, geometry, encodings and constructors of every task."""

import dataclasses
import json
import math
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from htt_lightning.errors import CheckpointError, ConfigError
from htt_lightning.tasks import IGNORE_INDEX, Depth, Edges, HumanParts, InverseDepth, Normals, Saliency, SemSeg, Task
from htt_lightning.tasks.serialization import check_same_tasks
from tests.tasks.samples import TASKS, output_of, random_logits, random_target

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
def test_config_round_trip(task):
    again = Task.from_config(json.loads(json.dumps(task.to_config())))
    assert again == task
    assert type(again) is type(task)
    assert hash(again) == hash(task)


def test_config_holds_class_and_all_fields():
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


@pytest.mark.parametrize(
    "path",
    ["nowhere.Flow", "htt_lightning.tasks.Flow", "Depth", "", "htt_lightning.tasks.", "math.pi", "pathlib.Path",
     "htt_lightning.tasks.IGNORE_INDEX", "htt_lightning.tasks.base"],
)  # fmt: skip
def test_from_config_names_a_bad_class(path):
    with pytest.raises(ConfigError) as caught:
        Task.from_config({"class_path": path, "init_args": {}})
    assert repr(path) in str(caught.value)


@pytest.mark.parametrize(
    ("config", "word"),
    [
        ("depth", "class_path"),
        ({"class_path": "htt_lightning.tasks.Depth", "init_args": {"bins": 3}}, "bins"),
        ({"class_path": "htt_lightning.tasks.Depth", "init_args": {"num_bins": 1}}, "num_bins"),
    ],
)
def test_from_config_names_bad_arguments(config, word):
    with pytest.raises(ConfigError, match=word):
        Task.from_config(config)


@EVERY_TASK
def test_task_is_frozen_and_picklable(task):
    with pytest.raises(dataclasses.FrozenInstanceError):
        task.loss_weight = 2.0
    assert pickle.loads(pickle.dumps(task)) == task
    assert dataclasses.replace(task, loss_weight=2.0) != task


def test_output_settings_leave_out_training_and_metrics():
    edges = Edges(tolerance=0.0075, num_thresholds=3, test_thresholds=7, thin_predictions=True, max_val_images=9)
    assert edges.output_settings == Edges().output_settings != Edges(pos_weight=0.9).output_settings
    assert HumanParts(absent_classes="zero").output_settings == HumanParts().output_settings


def test_check_same_tasks_compares_names_and_output_settings():
    trained = [Depth(loss_weight=3).to_config(), Edges().to_config()]
    check_same_tasks([Depth(), Edges()], trained, "x.ckpt")
    for tasks, word in (([Edges(), Depth()], "data.tasks"), ([Depth(max_depth=20), Edges()], "max_depth")):
        with pytest.raises(CheckpointError, match=word):
            check_same_tasks(tasks, trained, "x.ckpt")


def test_num_tokens_follow_the_method():
    tokens = {task.name: task.num_tokens for task in TASKS}
    assert tokens == {"semseg": 5, "human_parts": 7, "saliency": 2, "edges": 1, "depth": 30, "normals": 40}


@EVERY_TASK
def test_relative_gain_is_positive_if_better(task):
    better, worse = (60.0, 40.0) if task.higher_is_better else (40.0, 60.0)
    assert task.relative_gain(better, 50.0) == pytest.approx(20)
    assert task.relative_gain(worse, 50.0) == pytest.approx(-20)


# Geometry


@EVERY_TASK
@given(height=sides, width=sides, seed=st.integers(0, 99))
@few
def test_flip_is_its_own_inverse(task, height, width, seed):
    array = numpy_map(task, height, width, seed)
    kept = array.copy()
    once = task.flip(array)
    assert once.dtype == array.dtype
    assert once.flags.c_contiguous
    np.testing.assert_array_equal(task.flip(once), array)
    np.testing.assert_array_equal(array, kept)


@EVERY_TASK
def test_flip_mirrors_columns_and_x_of_normals(task):
    array = numpy_map(task, 4, 5)
    sign = np.array([-1, 1, 1]) if isinstance(task, Normals) else 1
    np.testing.assert_array_equal(task.flip(array), sign * array[:, ::-1])


@EVERY_TASK
@given(scale=st.floats(0.25, 4))
@few
def test_rescale_values_divides_depth_alone(task, scale):
    array = numpy_map(task, 5, 6)
    rescaled = task.rescale_values(array, scale)
    assert rescaled.dtype == array.dtype
    np.testing.assert_allclose(rescaled, array / scale if isinstance(task, Depth) else array, rtol=1e-6)


@EVERY_TASK
def test_empty_target_is_missing_and_has_the_usual_form(task):
    missing, usual = task.empty_target(4, 5), numpy_map(task, 4, 5)
    assert (missing.shape, missing.dtype) == (usual.shape, usual.dtype)
    assert np.isnan(missing).all() if task.field_channels else (missing == IGNORE_INDEX).all()
    for geometry in (task.flip, task.postprocess_target, lambda array: task.rescale_values(array, 2.0)):
        np.testing.assert_array_equal(geometry(task.empty_target(4, 5)), missing)


def test_human_parts_without_people_are_missing():
    background = np.zeros((4, 5), np.uint8)
    background[0] = IGNORE_INDEX
    kept = background.copy()
    np.testing.assert_array_equal(HumanParts().postprocess_target(background), HumanParts().empty_target(4, 5))
    np.testing.assert_array_equal(background, kept)
    background[3, 4] = 6
    np.testing.assert_array_equal(HumanParts().postprocess_target(background.copy()), background)


@EVERY_TASK
def test_postprocess_target_changes_no_usual_map(task):
    array = numpy_map(task, 5, 6)
    np.testing.assert_array_equal(task.postprocess_target(array), array)


# Encodings


@EVERY_TASK
def test_decompress_inverts_compress(task):
    array = numpy_map(task, 6, 7)
    array = np.where(np.isnan(array), 1 / math.sqrt(3), array) if task.field_channels else array
    stored = task.compress(array)
    assert stored.itemsize <= 2
    restored = task.decompress(stored)
    assert restored.dtype == array.dtype
    np.testing.assert_allclose(restored, array, rtol=1e-3, atol=0.01 if task.field_channels == 3 else 0)


MANY = (SemSeg(classes=tuple(map(str, range(count)))) for count in (256, 257))


@pytest.mark.parametrize("task", [*TASKS, *MANY, InverseDepth(), Depth(max_depth=66.0)], ids=lambda t: type(t).__name__)
def test_units_are_those_of_the_decoded_values(task):
    expected = {
        "SemSeg": ("class index", "class index" if task.num_tokens <= 256 else None),
        "HumanParts": ("class index", "class index"),
        "Saliency": ("probability", None),
        "Edges": ("probability", None),
        "Depth": ("m", "mm" if task.name == "depth" and task.output_range[1] == 10 else None),
        "InverseDepth": ("inverse depth", None),
        "Normals": ("unit vector: x right, y up, z to the camera", "x y z = 2 * r g b / 255 - 1"),
    }[type(task).__name__]
    assert (task.output_unit, task.png_unit) == expected
    decoded = task.decode(output_of(random_logits(task, b=1)), (6, 7))[0].numpy()
    assert (task.to_png(decoded) is None) == (task.png_unit is None)


# Constructors


@pytest.mark.parametrize("name", ["depth-lidar", "depth.lidar", "1st", "", "a b"])
def test_name_must_be_an_identifier(name):
    with pytest.raises(ConfigError, match="name of a task") as caught:
        Depth(name=name)
    assert repr(name) in str(caught.value)


@pytest.mark.parametrize(
    ("build", "field"),
    [
        (lambda: Depth(min_depth=10.0, max_depth=10.0), "min_depth"),
        (lambda: Depth(min_depth=0.0), "min_depth"),
        (lambda: Depth(min_depth=math.nan), "min_depth"),
        (lambda: Depth(num_bins=1), "num_bins"),
        (lambda: Normals(num_bins=1), "num_bins"),
        (lambda: Normals(bin_directions="published", num_bins=30), "num_bins"),
        (lambda: InverseDepth(scale_with_zoom="divided"), "scale_with_zoom"),
        (lambda: Edges(pseudo_label_cutoff=2), "pseudo_label_cutoff"),
        (lambda: Edges(max_val_images=0), "max_val_images"),
        (lambda: SemSeg().num_tokens, "classes"),
        *((lambda t=t: Saliency(confidence_threshold=t), "confidence_threshold") for t in (-0.1, 1.5, math.nan)),
    ],
)
def test_bad_fields_are_named(build, field):
    with pytest.raises(ConfigError, match=field):
        build()
