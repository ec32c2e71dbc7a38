import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from htt_lightning.data.transforms import AugmentConfig, EvalTransform, TrainTransform
from htt_lightning.errors import HTTError
from htt_lightning.io.arrays import resize_nearest
from htt_lightning.tasks import HumanParts, SemSeg
from tests.data.aligned import GEOMETRY, STILL, TASKS, assert_same, few, scene, seeds, sizes, train


@few
@given(sizes, seeds)
def test_flipping_twice_changes_nothing(size, seed):
    arrays = scene(*size, seed)
    flip = AugmentConfig(scale_range=(1, 1), hflip_prob=1, photometric_prob=0)
    once, _ = train(arrays, flip)
    twice, valid = train(once, flip)
    assert_same(twice, arrays)
    assert valid.all()


def test_a_flip_mirrors_everything_and_turns_x_of_the_normals_round():
    arrays = scene(holes=0)
    flipped, _ = train(arrays, AugmentConfig(scale_range=(1, 1), hflip_prob=1, photometric_prob=0))
    for key in ("image", "semseg", "edges", "depth"):
        np.testing.assert_array_equal(flipped[key], arrays[key][:, ::-1])
    np.testing.assert_array_equal(flipped["normals"], arrays["normals"][:, ::-1] * [-1, 1, 1])


@few
@given(sizes, sizes, seeds)
def test_image_and_maps_stay_aligned_through_the_whole_chain(size, crop, seed):
    arrays, valid = train(scene(*size, seed, holes=0), GEOMETRY, crop, seed)
    inside = {key: array[valid].astype(float) for key, array in arrays.items()}
    # Nearest neighbours lie within half a pixel (2.5 levels) of the interpolated position, rounding aside.
    assert np.abs(inside["image"][:, 0] - 5 * inside["semseg"]).max() <= 3.01
    assert np.abs(inside["image"][:, 1] - 5 * inside["edges"]).max() <= 3.01
    factor = (1 + inside["semseg"]) / inside["depth"]
    np.testing.assert_allclose(factor, factor[0], rtol=1e-5)
    assert 0.5 <= factor[0] <= 2


@pytest.mark.parametrize("factor", [0.5, 0.77, 1.0, 1.4, 2.0])
def test_metric_depth_is_divided_by_the_factor_of_scaling(factor):
    arrays, valid = train(scene(holes=0), AugmentConfig(scale_range=(factor, factor), photometric_prob=0), seed=3)
    expected = (1 + arrays["semseg"][valid].astype(float)) / factor
    np.testing.assert_allclose(arrays["depth"][valid], expected, rtol=1e-6)


@pytest.mark.parametrize(("factor", "inner"), [(0.5, (18, 23)), (0.75, (27, 35)), (0.999, (35, 46))])
def test_the_scaled_size_is_truncated(factor, inner):
    _, valid = train(scene(36, 47), AugmentConfig(scale_range=(factor, factor), photometric_prob=0))
    assert (valid.any(1).sum(), valid.any(0).sum()) == inner


def test_factors_are_spread_evenly_over_their_range():
    arrays = {"image": scene(100, 10)["image"]}
    transform = TrainTransform((), AugmentConfig(photometric_prob=0), (200, 10))
    rng = np.random.default_rng(0)
    heights = np.array([transform(arrays, rng)[1].any(1).sum() for _ in range(600)])
    counts, _ = np.histogram(heights, bins=6, range=(50, 200))
    assert heights.min() < 55
    assert heights.max() > 195
    assert counts.min() > 60


def test_factors_are_chosen_from_those_given_each_as_often():
    transform = TrainTransform(TASKS, AugmentConfig(scale_values=(1, 1.2, 1.5), hflip_prob=0, photometric_prob=0), None)
    depth = np.ones((12, 16), np.float32)
    arrays = {"image": np.zeros((12, 16, 3), np.uint8), "depth": depth}
    factors = [1 / transform(arrays, np.random.default_rng(seed))[0]["depth"][0, 0] for seed in range(600)]
    values, counts = np.unique(np.round(factors, 4), return_counts=True)
    np.testing.assert_allclose(values, [1, 1.2, 1.5])
    assert (abs(counts - 200) < 3 * np.sqrt(600 * 2 / 9)).all()


@few
@given(st.floats(1, 2), seeds)
def test_a_scaled_plane_keeps_its_normal_and_divides_its_depth(factor, seed):
    height, width, normal = 30, 40, np.array([0.6, 0, 0.8], np.float32)
    depth = 2 + np.indices((height, width))[1] / 20  # grows with the column
    plane = {
        "image": np.zeros((height, width, 3), np.uint8),
        "depth": depth.astype(np.float32),
        "normals": np.broadcast_to(normal, (height, width, 3)).copy(),
    }
    scaled, valid = train(
        plane, AugmentConfig(scale_range=(factor, factor), hflip_prob=0, photometric_prob=0), seed=seed
    )
    assert valid.all()
    np.testing.assert_array_equal(scaled["normals"], plane["normals"])
    slope = np.diff(scaled["depth"], axis=1)
    assert (np.diff(scaled["depth"], axis=0) == 0).all()
    step = 1 / 20 / factor  # of one column before scaling
    assert ((abs(slope) < 1e-6) | (abs(slope - step) < 1e-6)).all()
    assert abs(slope.mean() - step / factor) < 2 * step / width
    assert depth.min() / factor - 1e-6 <= scaled["depth"].min() <= scaled["depth"].max() <= depth.max() / factor + 1e-6


@pytest.mark.parametrize("scaled", [(20, 31), (7, 11), (40, 50)])
def test_vectors_are_enlarged_as_their_components_are(scaled):
    vectors = np.random.default_rng(0).normal(size=(17, 23, 3)).astype(np.float32)
    vectors[3:9, 4:8] = np.nan
    kept = {"scaled": scaled, "rows": slice(1, scaled[0] - 1), "columns": slice(2, scaled[1])}
    apart = np.stack([resize_nearest(component, **kept) for component in np.moveaxis(vectors, -1, 0)], axis=-1)
    np.testing.assert_array_equal(resize_nearest(vectors, **kept), apart)


def test_scaling_the_image_is_bilinear():
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    scaled, _ = train(
        {"image": image}, AugmentConfig(scale_range=(1.5, 1.5), hflip_prob=0, photometric_prob=0), (30, 45)
    )
    np.testing.assert_array_equal(scaled["image"], cv2.resize(image, (45, 30)))


@few
@given(sizes, sizes, seeds)
def test_missing_stays_missing_and_never_spreads(size, crop, seed):
    arrays, valid = train(scene(*size, seed), GEOMETRY, crop, seed)
    missing = arrays["semseg"] == 255
    np.testing.assert_array_equal(np.isnan(arrays["depth"]), missing)
    np.testing.assert_array_equal(np.isnan(arrays["normals"]), np.repeat(missing[..., None], 3, -1))
    assert missing[~valid].all()
    np.testing.assert_array_equal(arrays["edges"] == 255, ~valid)


@few
@given(sizes, sizes, seeds)
def test_labels_take_no_new_values_and_normals_stay_unit(size, crop, seed):
    before = scene(*size, seed)
    after, _ = train(before, GEOMETRY, crop, seed)
    for key in ("semseg", "edges"):
        assert set(np.unique(after[key])) <= set(np.unique(before[key])) | {255}
    length = np.linalg.norm(after["normals"], axis=-1)
    np.testing.assert_allclose(length[np.isfinite(length)], 1, rtol=1e-5)


@few
@given(sizes, sizes, st.booleans(), seeds)
def test_training_images_all_have_the_size_of_the_crop(size, crop, own, seed):
    augment = AugmentConfig(crop=crop) if own else AugmentConfig()
    arrays, valid = train(scene(*size, seed), augment, (64, 64) if own else crop, seed)
    assert {array.shape[:2] for array in (*arrays.values(), valid)} == {crop}
    assert {key: array.dtype for key, array in arrays.items()} == {
        "image": np.uint8,
        "semseg": np.uint8,
        "edges": np.uint8,
        "depth": np.float32,
        "normals": np.float32,
    }
    assert valid.dtype == bool


@pytest.mark.parametrize("factor", [0.6, 1.9])
def test_without_any_size_images_keep_their_own(factor):
    arrays, valid = train(scene(17, 31), AugmentConfig(scale_range=(factor, factor)))
    assert arrays["image"].shape[:2] == arrays["normals"].shape[:2] == valid.shape == (17, 31)


@pytest.mark.parametrize("pad", [EvalTransform(TASKS, (8, 8)), lambda arrays: train(arrays, None, (8, 8))])
def test_padding_is_centred_mean_coloured_missing_and_not_valid(pad):
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


def test_evaluation_draws_nothing():
    rng = np.random.default_rng(0)
    EvalTransform(TASKS, (40, 50))(scene(), rng)
    assert rng.random() == np.random.default_rng(0).random()


def test_padding_concerns_only_the_side_that_is_too_short():
    after, valid = EvalTransform(TASKS, (8, 8))(scene(20, 5))
    assert after["image"].shape == (20, 8, 3)
    assert valid.any(0).tolist() == [False, True, True, True, True, True, False, False]


def test_evaluation_keeps_float_images_and_pads_them_with_the_exact_mean():
    image = np.full((2, 2, 3), 0.25, np.float32)
    after, valid = EvalTransform((), (4, 4))({"image": image})
    assert after["image"].dtype == np.float32
    np.testing.assert_array_equal(after["image"][~valid], np.float32([(0.485, 0.456, 0.406)] * 12))
    assert (after["image"][valid] == 0.25).all()


@pytest.mark.parametrize("transform", [EvalTransform(TASKS, None), lambda arrays: train(arrays, None)])
def test_without_augmentation_and_size_nothing_changes(transform):
    before = scene()
    after, valid = transform(before)
    assert_same(after, before)
    assert valid.all()


def test_switched_off_steps_change_nothing():
    assert_same(train(scene(), STILL)[0], scene())


def test_training_rounds_float_images_to_uint8():
    image = np.linspace(0, 1, 30, dtype=np.float32).reshape(2, 5, 3)
    after, _ = train({"image": image}, None)
    assert after["image"].dtype == np.uint8
    np.testing.assert_array_equal(after["image"], np.rint(image * 255))


@pytest.mark.parametrize("kept", [(), ("depth",), ("semseg", "normals")])
def test_tasks_without_a_label_and_maps_without_a_task_do_not_appear(kept):
    before = {key: array for key, array in scene().items() if key in ("image", *kept)}
    for after, _ in (train(before, AugmentConfig()), EvalTransform(TASKS, (50, 50))(before)):
        assert set(after) == {"image", *kept}
    after, _ = train(scene(), AugmentConfig(), tasks=TASKS[1:2])
    assert set(after) == {"image", "depth"}


def lopsided():
    """Sky with two small strips of grass and water at the right end of a wide image."""
    semseg = np.zeros((20, 200), np.uint8)
    semseg[:10, 170:], semseg[10:, 170:] = 1, 2
    return {"image": np.repeat(semseg[..., None] * 100, 3, -1).astype(np.uint8), "semseg": semseg}


def shares(semseg):
    counts = np.bincount(semseg.ravel(), minlength=256)[:255]
    return counts[counts > 0] / counts.sum()


def test_crops_are_drawn_again_until_no_class_dominates():
    often = AugmentConfig(scale_range=(1, 1), photometric_prob=0, crop=(20, 30), max_crop_attempts=500)
    for seed in range(20):
        share = shares(train(lopsided(), often, seed=seed)[0]["semseg"])
        assert len(share) > 1
        assert share.max() < 0.75


def test_the_classes_that_an_image_is_labelled_for_choose_its_crop():
    rooms, objects = SemSeg(classes=("a", "b", "c")), SemSeg(name="objects", classes=("a", "b", "c"))
    often = AugmentConfig(scale_range=(1, 1), photometric_prob=0, crop=(20, 30), max_crop_attempts=500)
    arrays = lopsided()
    arrays["objects"] = arrays.pop("semseg")
    for seed in range(5):
        assert shares(train(arrays, often, seed=seed, tasks=(rooms, objects))[0]["objects"]).max() < 0.75


def test_the_last_crop_is_kept_where_all_are_unbalanced():
    arrays = lopsided()
    arrays["semseg"][:] = 1
    after, _ = train(arrays, AugmentConfig(crop=(20, 30)))
    assert (after["semseg"] == 1).any()


def test_hidden_semantic_labels_do_not_choose_the_crop():
    arrays = lopsided() | {"depth": np.arange(4000, dtype=np.float32).reshape(20, 200)}
    hidden = {key: arrays[key] for key in ("image", "depth")}
    steered = 0
    for seed in range(20):
        once = AugmentConfig(scale_range=(1, 1), hflip_prob=0, photometric_prob=0, crop=(20, 30), max_crop_attempts=1)
        many = AugmentConfig(scale_range=(1, 1), hflip_prob=0, photometric_prob=0, crop=(20, 30))
        first, _ = train(arrays, once, seed=seed)
        np.testing.assert_array_equal(train(hidden, many, seed=seed)[0]["depth"], first["depth"])
        steered += not np.array_equal(train(arrays, many, seed=seed)[0]["depth"], first["depth"])
    assert steered > 10


def test_offsets_reach_both_ends_of_the_image():
    augment = AugmentConfig(scale_range=(1, 1), hflip_prob=0, photometric_prob=0, crop=(36, 46))
    firsts = {int(train(scene(), augment, seed=seed)[0]["image"][0, 0, 0]) // 5 for seed in range(40)}
    assert firsts == {0, 1, 2}


def test_a_crop_without_people_has_no_human_parts():
    parts = HumanParts()
    arrays = {"image": np.zeros((10, 10, 3), np.uint8), "human_parts": np.zeros((10, 10), np.uint8)}
    for transform in (lambda a: train(a, AugmentConfig(), tasks=(parts,)), EvalTransform((parts,), None)):
        arrays["human_parts"][:] = 0
        assert (transform(arrays)[0]["human_parts"] == 255).all()
        arrays["human_parts"][:] = 3
        assert (transform(arrays)[0]["human_parts"] == 3).any()


@pytest.mark.parametrize(
    "wrong",
    [
        {"scale_range": (0, 1)},
        {"scale_range": (2, 1)},
        {"scale_values": (1, 0)},
        {"scale_range": (1, float("inf"))},
        {"scale_range": (float("nan"), 1)},
        {"crop": (0, 5)},
        {"max_crop_attempts": 0},
        {"cat_max_ratio": 0},
        {"hflip_prob": 1.1},
        {"photometric_prob": -0.1},
        {"scale_range": None},
        {"hflip_prob": None},
    ],
)
def test_augmentation_out_of_range_is_refused_by_name(wrong):
    with pytest.raises(HTTError, match=rf"augment\.{next(iter(wrong))} "):
        AugmentConfig(**wrong)
