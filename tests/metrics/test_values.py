"""Values of cases that can be worked out by hand."""

from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from htt_lightning.metrics import BoundaryFMeasure, DepthErrors, MaxFMeasure, NormalErrors, SegmentationScores
from tests.metrics.plain import boundary_counts, boundary_f, depth_case, index_maps, normal_case
from tests.metrics.test_pooled import SEEDS, values

UP = torch.tensor([0.0, 0, 1]).view(1, 3, 1, 1)


def tilted(degrees):
    """Unit normals that lean by so many degrees, ``1 3 1 n``, and as many that do not."""
    angle = torch.deg2rad(torch.as_tensor(degrees, dtype=torch.float64))
    return torch.stack([angle.sin(), 0 * angle, angle.cos()])[None, :, None].float(), UP.expand(-1, -1, -1, len(angle))


@given(seed=SEEDS)
def test_perfect_prediction_has_best_values(seed):
    classes, _ = index_maps(seed, 4)
    scores = values(SegmentationScores(4), classes.where(classes != 255, 0), classes)
    depth, normals = depth_case(seed)[1], normal_case(seed)[1]
    errors, angles = values(DepthErrors(), depth, depth), values(NormalErrors(), 3 * normals, normals)
    binary, _ = index_maps(seed, 2)
    binary[0, 0, 0] = 1
    edges = values(BoundaryFMeasure(0.0), (binary == 1).float(), binary)
    salient = values(MaxFMeasure(), (binary == 1).float(), binary)
    for result in scores, errors, angles, edges, salient:
        for name, value in result.items():
            share = name[:5] in ("delta", "withi") or result in (scores, edges, salient)
            assert value.item() == pytest.approx(100 if share else 0, rel=1e-12, abs=1e-4), name


def test_absent_classes_are_skipped_or_zero():
    target = torch.tensor([[[0, 1, 255]]])
    pred = torch.tensor([[[0, 1, 2]]])
    assert values(SegmentationScores(4), pred, target)["miou"] == 100
    assert values(SegmentationScores(4, absent_classes="zero"), pred, target)["miou"] == 50


def test_class_in_the_prediction_alone_is_present():
    result = values(SegmentationScores(4), torch.tensor([[[0, 3]]]), torch.tensor([[[0, 0]]]))
    assert result == {"miou": 25, "pixel_acc": 50}


@pytest.mark.parametrize("wrong", [-1, 4])
def test_unknown_predicted_class_raises(wrong):
    with pytest.raises(ValueError, match=r"\[0, 4\)"):
        SegmentationScores(4).update(torch.tensor([[[wrong]]]), torch.tensor([[[1]]]))


def test_depth_errors_of_two_pixels():
    pred, target = torch.tensor([2.0, 8.0]).view(1, 1, 1, 2), torch.tensor([1.0, 4.0]).view(1, 1, 1, 2)
    result = values(DepthErrors(), pred, target)
    assert result["abs_err"] == 2.5
    assert result["abs_rel"] == 1
    assert result["rmse"].item() == pytest.approx(8.5**0.5)
    assert result["rmse_log"].item() == pytest.approx(np.log(2))
    assert [result[f"delta{k}"] for k in (1, 2, 3)] == [0, 0, 0]


@pytest.mark.parametrize("power", [1, 2, 3])
@pytest.mark.parametrize("sign", [-1, 1])
def test_delta_excludes_its_limit(power, sign):
    target = torch.full((1, 1, 1, 1), 2.0)
    pred = target * 1.25**power if sign > 0 else target
    target = target if sign > 0 else pred * 1.25**power
    result = values(DepthErrors(), pred, target)
    assert [result[f"delta{k}"] for k in (1, 2, 3)] == [100.0 * (k > power) for k in (1, 2, 3)]


def test_depth_is_clamped_to_positive():
    target = torch.ones(1, 1, 1, 1)
    result = values(DepthErrors(), -target, target)
    assert result["abs_err"] == result["abs_rel"] == result["rmse"] == 1
    assert result["rmse_log"].item() == pytest.approx(-np.log(1e-9), rel=1e-6)


def test_small_angles_keep_their_digits():
    assert values(NormalErrors(), *tilted([1e-3]))["mean"].item() == pytest.approx(1e-3, rel=1e-3)


def test_angles_of_opposite_and_zero_vectors():
    for pred, angle in ((-UP, 180), (0 * UP, 90)):
        result = values(NormalErrors(), pred, UP)
        assert [result[name].item() for name in ("mean", "median", "rmse")] == pytest.approx([angle] * 3)


@given(angles=st.lists(st.floats(0, 180), min_size=1, max_size=40), cuts=st.lists(st.integers(0, 40), max_size=3))
def test_median_is_pooled_over_batches(angles, cuts):
    metric = NormalErrors()
    pred, target = tilted(angles)
    for begin, end in zip(sorted([0, *cuts]), [*sorted(cuts), len(angles)], strict=True):
        metric.update(pred[..., begin:end], target[..., begin:end])
    assert metric.compute()["median"].item() == pytest.approx(np.median(angles), abs=0.0051)


def test_within_counts_angles_below_its_limit():
    pred, target = tilted([0, 11.2, 11.3, 22.4, 22.6, 29.9, 30.1, 170])
    result = values(NormalErrors(), pred, target)
    assert [result[f"within_{limit}"] for limit in (11.25, 22.5, 30)] == [25, 50, 75]


@pytest.mark.parametrize("metric", [MaxFMeasure, BoundaryFMeasure])
def test_f_measure_without_pixels_is_zero(metric):
    empty, full = torch.zeros(1, 4, 5), torch.ones(1, 4, 5)
    for pred, target in ((empty, empty), (full, empty), (empty, full)):
        primary_metric, other = values(metric(), pred, target.long()).values()
        assert primary_metric == 0
        # The sigmoid of zero is a half: max_f_double_sigmoid predicts everything below that threshold.
        assert other == (100 if metric is MaxFMeasure and target.any() else 0)


@pytest.mark.parametrize("metric", [MaxFMeasure, BoundaryFMeasure])
def test_probability_equal_to_threshold_reaches_it(metric):
    target = torch.ones(1, 1, 1).long()
    for k in range(1, 20):
        below = metric()
        below.update(torch.full((1, 1, 1), k / 20), target)
        assert below.predicted.flatten()[:19].tolist() == [1] * k + [0] * (19 - k)


def test_double_sigmoid_leaves_four_thresholds():
    """Another sigmoid leaves 0.2007, 0.4055, 0.6190 and 0.8473."""
    limits = [0, 0.2007, 0.4055, 0.6190, 0.8473, 1]
    target = torch.tensor([[[0, 1]]])

    def legacy(low, high):
        return values(MaxFMeasure(), torch.tensor([[[low, high]]]), target)["max_f_double_sigmoid"].item()

    for below, above in pairwise(limits):
        assert legacy(below + 1e-3, above - 1e-3) < 100
    for limit in limits[1:-1]:
        assert legacy(limit - 1e-3, limit + 1e-3) == 100


def test_tolerance_is_relative_to_the_diagonal():
    pred, target = torch.zeros(1, 30, 40), torch.zeros(1, 30, 40).long()
    pred[0, 10, 10] = 1
    target[0, 10, 15] = 1
    assert values(BoundaryFMeasure(0.1001), pred, target) == {"ods_f": 100, "ois_f": 100}
    assert values(BoundaryFMeasure(0.0999), pred, target) == {"ods_f": 0, "ois_f": 0}


@pytest.mark.parametrize("distance", [4, 5, 6])
def test_padding_does_not_widen_the_tolerance(distance):
    pred, target = torch.zeros(1, 30, 40), torch.zeros(1, 30, 40).long()
    pred[0, 10, 10] = target[0, 10, 10 + distance] = 1
    alone = values(BoundaryFMeasure(0.11), pred, target)  # 5.5 pixels
    margins = (30, 20, 15, 25)
    padded = values(BoundaryFMeasure(0.11), F.pad(pred, margins, value=0.9), F.pad(target, margins, value=255))
    assert padded == alone == dict.fromkeys(("ods_f", "ois_f"), 100.0 * (distance < 5.5))


def test_boundaries_ignore_missing_pixels():
    pred, target = torch.ones(1, 8, 8), torch.full((1, 8, 8), 255)
    target[0, 2] = 1
    metric = BoundaryFMeasure()
    assert values(metric, pred, target)["ods_f"] == 100
    assert (metric.true, metric.pixels) == (8, 8)


def test_ois_f_has_a_threshold_per_image():
    """Each image is perfect at one threshold, and no threshold is good for both."""
    target = torch.zeros(2, 20, 20).long()
    target[:, 5] = 1
    pred = torch.zeros(2, 20, 20)
    pred[0, 5], pred[0, 15] = 0.9, 0.6
    pred[1, 5], pred[1, 15] = 0.4, 0.2
    result = values(BoundaryFMeasure(), pred, target)
    assert result["ois_f"] == 100
    counts = [
        boundary_counts(image >= 0.3, truth == 1, 0.3)
        for image, truth in zip(*(x.numpy() for x in (pred, target)), strict=True)
    ]
    assert result["ods_f"].item() == pytest.approx(boundary_f(np.sum(counts, 0))) == pytest.approx(80)


def test_ois_f_prefers_the_highest_threshold():
    target = torch.zeros(2, 20, 20).long()
    target[0, 5] = 1
    pred = torch.full((2, 20, 20), 0.5)
    pred[0] = target[0]
    assert values(BoundaryFMeasure(), pred, target)["ois_f"] == 100


@given(seed=SEEDS)
@settings(max_examples=30)
def test_ois_f_of_one_image_is_ods_f(seed):
    target, g = index_maps(seed, 2, b=1)
    result = values(BoundaryFMeasure(0.2), torch.rand(target.shape, generator=g), target)
    assert result["ois_f"].item() == pytest.approx(result["ods_f"].item(), nan_ok=True)


def test_thinning_helps_thick_predictions():
    target, pred = torch.zeros(1, 40, 40).long(), torch.zeros(1, 40, 40)
    target[0, 20, 3:37] = 1
    pred[0, 18:23, 3:37] = 0.8
    thick, thin = (values(BoundaryFMeasure(thin_predictions=flag), pred, target)["ods_f"] for flag in (False, True))
    assert thick < 40
    assert thin > 90


def test_bad_options_raise():
    with pytest.raises(ValueError, match="ascending"):
        MaxFMeasure([0.5, 0.1])
    with pytest.raises(ValueError, match="num_thresholds"):
        BoundaryFMeasure(num_thresholds=0)
    with pytest.raises(ValueError, match="tolerance"):
        BoundaryFMeasure(-0.1)


def test_confusion_is_summed_over_processes():
    metric = SegmentationScores(2)
    metric.update(torch.tensor([[[0, 1, 1]]]), torch.tensor([[[0, 0, 255]]]))
    assert metric.synced_confusion().tolist() == [[1, 1], [0, 0]]
    metric.distributed_available_fn = lambda: True
    metric.dist_sync_fn = lambda state, group: [state, 2 * state]  # another process has twice as many
    assert metric.synced_confusion().tolist() == [[3, 3], [0, 0]]
    assert metric.confusion.tolist() == [[1, 1], [0, 0]]
