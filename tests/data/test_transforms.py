import pickle

import albumentations
import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from htt_lightning.data.transforms import AugmentConfig, EvalTransform, TrainTransform
from htt_lightning.errors import ConfigError
from htt_lightning.tasks import HumanParts, SemSeg
from tests.data.aligned import GEOMETRY, STILL, TASKS, assert_same, few, scene, seeds, sizes, train


def scaled_by(factor, **changes):
    return AugmentConfig(scale_range=(factor, factor), photometric_prob=0, **changes)


@few
@given(sizes, seeds)
def test_flip_twice_is_the_identity(size, seed):
    arrays = scene(*size, seed)
    once, _ = train(arrays, scaled_by(1, hflip_prob=1))
    twice, valid = train(once, scaled_by(1, hflip_prob=1))
    assert_same(twice, arrays)
    assert valid.all()


def test_flip_mirrors_all_and_negates_x_of_normals():
    arrays = scene(holes=0)
    flipped, _ = train(arrays, scaled_by(1, hflip_prob=1))
    for key in ("image", "semseg", "edges", "depth"):
        np.testing.assert_array_equal(flipped[key], arrays[key][:, ::-1])
    np.testing.assert_array_equal(flipped["normals"], arrays["normals"][:, ::-1] * [-1, 1, 1])


@few
@given(sizes, sizes, seeds)
def test_image_and_maps_stay_aligned(size, crop, seed):
    arrays, valid = train(scene(*size, seed, holes=0), GEOMETRY, crop, seed)
    inside = {key: array[valid].astype(float) for key, array in arrays.items()}
    # Nearest neighbors lie within half a pixel (2.5 levels) of the interpolated position, plus rounding.
    assert np.abs(inside["image"][:, 0] - 5 * inside["semseg"]).max() <= 3.01
    assert np.abs(inside["image"][:, 1] - 5 * inside["edges"]).max() <= 3.01
    factor = (1 + inside["semseg"]) / inside["depth"]
    np.testing.assert_allclose(factor, factor[0], rtol=1e-5)
    assert 0.5 <= factor[0] <= 2


@pytest.mark.parametrize("factor", [0.5, 0.77, 1.0, 1.4, 2.0])
def test_scale_divides_metric_depth(factor):
    arrays, valid = train(scene(holes=0), scaled_by(factor), seed=3)
    expected = (1 + arrays["semseg"][valid].astype(float)) / factor
    np.testing.assert_allclose(arrays["depth"][valid], expected, rtol=1e-6)


@pytest.mark.parametrize(("factor", "inner"), [(0.5, (18, 23)), (0.75, (27, 35)), (0.999, (35, 46))])
def test_scale_truncates_the_size(factor, inner):
    _, valid = train(scene(36, 47), scaled_by(factor))
    assert (valid.any(1).sum(), valid.any(0).sum()) == inner


def test_scale_range_is_drawn_uniformly():
    arrays = {"image": scene(100, 10)["image"]}
    transform = TrainTransform((), AugmentConfig(photometric_prob=0), (200, 10))
    rng = np.random.default_rng(0)
    heights = np.array([transform(arrays, rng)[1].any(1).sum() for _ in range(600)])
    counts, _ = np.histogram(heights, bins=6, range=(50, 200))
    assert heights.min() < 55
    assert heights.max() > 195
    assert counts.min() > 60


def test_scale_values_are_drawn_equally_often():
    augment = AugmentConfig(scale_values=(1, 1.2, 1.5), hflip_prob=0, photometric_prob=0)
    transform = TrainTransform(TASKS, augment, None)
    arrays = {"image": np.zeros((12, 16, 3), np.uint8), "depth": np.ones((12, 16), np.float32)}
    factors = [1 / transform(arrays, np.random.default_rng(seed))[0]["depth"][0, 0] for seed in range(600)]
    values, counts = np.unique(np.round(factors, 4), return_counts=True)
    np.testing.assert_allclose(values, [1, 1.2, 1.5])
    assert (abs(counts - 200) < 3 * np.sqrt(600 * 2 / 9)).all()


@few
@given(st.floats(1, 2), seeds)
def test_scale_keeps_the_normal_of_a_plane(factor, seed):
    height, width, normal = 30, 40, np.array([0.6, 0, 0.8], np.float32)
    depth = 2 + np.indices((height, width))[1] / 20  # grows with the column
    plane = {
        "image": np.zeros((height, width, 3), np.uint8),
        "depth": depth.astype(np.float32),
        "normals": np.broadcast_to(normal, (height, width, 3)).copy(),
    }
    scaled, valid = train(plane, scaled_by(factor, hflip_prob=0), seed=seed)
    assert valid.all()
    np.testing.assert_array_equal(scaled["normals"], plane["normals"])
    slope = np.diff(scaled["depth"], axis=1)
    assert (np.diff(scaled["depth"], axis=0) == 0).all()
    step = 1 / 20 / factor  # of one column before scaling
    assert ((abs(slope) < 1e-6) | (abs(slope - step) < 1e-6)).all()
    assert abs(slope.mean() - step / factor) < 2 * step / width
    assert depth.min() / factor - 1e-6 <= scaled["depth"].min() <= scaled["depth"].max() <= depth.max() / factor + 1e-6


def test_scale_resizes_the_image_bilinearly():
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    scaled, _ = train({"image": image}, scaled_by(1.5, hflip_prob=0), (30, 45))
    np.testing.assert_array_equal(scaled["image"], cv2.resize(image, (45, 30)))


@few
@given(sizes, sizes, seeds)
def test_maps_get_no_new_values_and_no_new_holes(size, crop, seed):
    before = scene(*size, seed)
    after, valid = train(before, GEOMETRY, crop, seed)
    missing = after["semseg"] == 255
    np.testing.assert_array_equal(np.isnan(after["depth"]), missing)
    np.testing.assert_array_equal(np.isnan(after["normals"]), np.repeat(missing[..., None], 3, -1))
    assert missing[~valid].all()
    np.testing.assert_array_equal(after["edges"] == 255, ~valid)
    for key in ("semseg", "edges"):
        assert set(np.unique(after[key])) <= set(np.unique(before[key])) | {255}
    length = np.linalg.norm(after["normals"], axis=-1)
    np.testing.assert_allclose(length[np.isfinite(length)], 1, rtol=1e-5)


@few
@given(sizes, sizes, st.booleans(), seeds)
def test_results_have_the_size_of_the_crop(size, crop, own, seed):
    augment = AugmentConfig(crop=crop) if own else AugmentConfig()
    arrays, valid = train(scene(*size, seed), augment, (64, 64) if own else crop, seed)
    assert {array.shape[:2] for array in (*arrays.values(), valid)} == {crop}
    types = {"image": np.uint8, "semseg": np.uint8, "edges": np.uint8, "depth": np.float32, "normals": np.float32}
    assert {key: array.dtype for key, array in arrays.items()} == types
    assert valid.dtype == bool


@pytest.mark.parametrize("factor", [0.6, 1.9])
def test_results_keep_the_image_size_by_default(factor):
    arrays, valid = train(scene(17, 31), AugmentConfig(scale_range=(factor, factor)))
    assert arrays["image"].shape[:2] == arrays["normals"].shape[:2] == valid.shape == (17, 31)


@pytest.mark.parametrize("pad", [EvalTransform(TASKS, (8, 8)), lambda arrays: train(arrays, None, (8, 8))])
def test_padding_is_centered_mean_colored_and_missing(pad):
    before = scene(3, 5, holes=0)
    after, valid = pad(before)
    window = slice(2, 5), slice(1, 6)
    expected = np.zeros((8, 8), bool)
    expected[window] = True
    np.testing.assert_array_equal(valid, expected)
    for key, array in before.items():
        np.testing.assert_array_equal(after[key][window], array)
    assert (after["image"][~valid] == (124, 116, 104)).all()
    assert (after["semseg"][~valid] == 255).all()
    assert np.isnan(after["depth"][~valid]).all()
    assert np.isnan(after["normals"][~valid]).all()


def test_eval_transform_pads_the_short_side_only():
    after, valid = EvalTransform(TASKS, (8, 8))(scene(20, 5))
    assert after["image"].shape == (20, 8, 3)
    assert valid.any(0).tolist() == [False, True, True, True, True, True, False, False]


def test_eval_transform_keeps_float_images():
    image = np.full((2, 2, 3), 0.25, np.float32)
    after, valid = EvalTransform((), (4, 4))({"image": image})
    assert after["image"].dtype == np.float32
    np.testing.assert_array_equal(after["image"][~valid], np.float32([(0.485, 0.456, 0.406)] * 12))
    assert (after["image"][valid] == 0.25).all()


@pytest.mark.parametrize("transform", [EvalTransform(TASKS, None), lambda a: train(a, None), lambda a: train(a, STILL)])
def test_disabled_steps_change_nothing(transform):
    after, valid = transform(scene())
    assert_same(after, scene())
    assert valid.all()


def test_train_transform_rounds_float_images():
    image = np.linspace(0, 1, 30, dtype=np.float32).reshape(2, 5, 3)
    after, _ = train({"image": image}, None)
    assert after["image"].dtype == np.uint8
    np.testing.assert_array_equal(after["image"], np.rint(image * 255))


@pytest.mark.parametrize("kept", [(), ("depth",), ("semseg", "normals")])
def test_maps_without_label_or_task_do_not_appear(kept):
    before = {key: array for key, array in scene().items() if key in ("image", *kept)}
    for after, _ in (train(before, AugmentConfig()), EvalTransform(TASKS, (50, 50))(before)):
        assert set(after) == {"image", *kept}
    after, _ = train(scene(), AugmentConfig(), tasks=TASKS[1:2])
    assert set(after) == {"image", "depth"}


def unbalanced():
    """Sky with two small strips of grass and water at the right end of a wide image."""
    semseg = np.zeros((20, 200), np.uint8)
    semseg[:10, 170:], semseg[10:, 170:] = 1, 2
    return {"image": np.repeat(semseg[..., None] * 100, 3, -1).astype(np.uint8), "semseg": semseg}


def class_shares(semseg):
    counts = np.bincount(semseg.ravel(), minlength=256)[:255]
    return counts[counts > 0] / counts.sum()


@pytest.mark.parametrize("labeled", ["semseg", "objects"])
def test_crops_are_redrawn_until_balanced(labeled):
    tasks = SemSeg(classes=("a", "b", "c")), SemSeg(name="objects", classes=("a", "b", "c"))
    arrays = unbalanced()
    arrays[labeled] = arrays.pop("semseg")
    for seed in range(10):
        augment = scaled_by(1, crop=(20, 30), max_crop_attempts=500)
        shares = class_shares(train(arrays, augment, seed=seed, tasks=tasks)[0][labeled])
        assert len(shares) > 1
        assert shares.max() < 0.75


def test_crops_keep_the_last_attempt():
    arrays = unbalanced()
    arrays["semseg"][:] = 1
    after, _ = train(arrays, AugmentConfig(crop=(20, 30)))
    assert (after["semseg"] == 1).any()


def test_crops_ignore_hidden_labels():
    arrays = unbalanced() | {"depth": np.arange(4000, dtype=np.float32).reshape(20, 200)}
    hidden = {key: arrays[key] for key in ("image", "depth")}
    steered = 0
    for seed in range(20):
        once = scaled_by(1, hflip_prob=0, crop=(20, 30), max_crop_attempts=1)
        many = scaled_by(1, hflip_prob=0, crop=(20, 30))
        first, _ = train(arrays, once, seed=seed)
        np.testing.assert_array_equal(train(hidden, many, seed=seed)[0]["depth"], first["depth"])
        steered += not np.array_equal(train(arrays, many, seed=seed)[0]["depth"], first["depth"])
    assert steered > 10


def test_crops_reach_both_ends_of_the_image():
    augment = scaled_by(1, hflip_prob=0, crop=(36, 46))
    assert {int(train(scene(), augment, seed=k)[0]["image"][0, 0, 0]) // 5 for k in range(40)} == {0, 1, 2}


def test_crops_without_people_have_no_human_parts():
    parts = HumanParts()
    arrays = {"image": np.zeros((10, 10, 3), np.uint8), "human_parts": np.zeros((10, 10), np.uint8)}
    for transform in (lambda a: train(a, AugmentConfig(), tasks=(parts,)), EvalTransform((parts,), None)):
        arrays["human_parts"][:] = 0
        assert (transform(arrays)[0]["human_parts"] == 255).all()
        arrays["human_parts"][:] = 3
        assert (transform(arrays)[0]["human_parts"] == 3).any()


def test_extra_transforms_change_the_image_alone():
    still = {"scale_range": (1, 1), "hflip_prob": 0, "photometric_prob": 0}
    noise = AugmentConfig(**still, extra=(albumentations.GaussNoise(p=1.0),))
    after, _ = train(scene(), noise, seed=1)
    assert (after["image"] != scene()["image"]).mean() > 0.5
    assert_same({**after, "image": scene()["image"]}, scene())
    np.random.default_rng(7).random()
    assert_same(train(scene(), noise, seed=1)[0], after)
    assert (train(scene(), noise, seed=2)[0]["image"] != after["image"]).any()
    gray = AugmentConfig(**still | {"photometric_prob": 1}, extra=(albumentations.ToGray(p=1.0),))
    assert np.ptp(train(scene(), gray)[0]["image"], axis=-1).max() == 0  # color distortion comes after it


def test_inputs_stay_unchanged():
    before = scene()
    for transform in (
        lambda a: train(a, AugmentConfig(hflip_prob=1, photometric_prob=1)),
        EvalTransform(TASKS, (99, 99)),
    ):
        transform(before)
        assert_same(before, scene())


def test_transforms_can_be_pickled():
    transform = TrainTransform(TASKS, AugmentConfig(), (30, 30))
    copy = pickle.loads(pickle.dumps(transform))
    assert_same(transform(scene(), np.random.default_rng(1))[0], copy(scene(), np.random.default_rng(1))[0])


@pytest.mark.parametrize(
    "wrong",
    [{"scale_range": (0, 1)}, {"scale_range": (2, 1)}, {"scale_range": (1, float("inf"))},
     {"scale_range": (float("nan"), 1)}, {"scale_range": None}, {"scale_values": (1, 0)}, {"crop": (0, 5)},
     {"max_crop_attempts": 0}, {"cat_max_ratio": 0}, {"hflip_prob": 1.1}, {"hflip_prob": None},
     {"photometric_prob": -0.1}, {"extra": (albumentations.Morphological(),)}],
)  # fmt: skip
def test_augment_config_validates_its_values(wrong):
    with pytest.raises(ConfigError, match=rf"data\.augment\.{next(iter(wrong))} "):
        AugmentConfig(**wrong)
