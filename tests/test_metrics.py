import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from htt_lightning.metrics import AbsoluteError, BoundaryF, MaxF, MeanAngle, MeanIoU, MeanLoss
from tests.test_boundaries import largest_matching, pairs_within

SEEDS = st.integers(0, 2**32 - 1)


def generator(seed):
    return torch.Generator().manual_seed(seed)


def index_maps(seed, classes, b=4, h=5, w=6, missing=0.2):
    g = generator(seed)
    target = torch.randint(classes, (b, h, w), generator=g)
    target[torch.rand(b, h, w, generator=g) < missing] = 255
    return target, g


def class_case(seed):
    target, g = index_maps(seed, 4)
    return torch.randint(5, target.shape, generator=g), target


def probability_case(seed):
    target, g = index_maps(seed, 2)
    return torch.randint(21, target.shape, generator=g) / 20, target


def depth_case(seed):
    g = generator(seed)
    target = torch.rand(4, 1, 5, 6, generator=g) * 10
    marks = torch.tensor([torch.nan, 0, -1, torch.inf])
    spoiled = torch.rand(target.shape, generator=g) < 0.3
    target[spoiled] = marks[torch.randint(4, (int(spoiled.sum()),), generator=g)]
    return torch.randn(target.shape, generator=g) * 5, target


def normal_case(seed):
    g = generator(seed)
    target = torch.randn(4, 3, 5, 6, generator=g)
    target[:, 1][torch.rand(4, 5, 6, generator=g) < 0.2] = torch.nan
    target[(torch.rand(4, 1, 5, 6, generator=g) < 0.1).expand(-1, 3, -1, -1)] = 0
    return torch.randn(target.shape, generator=g), target


def expected_iou(pred, target, absent):
    pred, target = pred.numpy(), target.numpy()
    ious = []
    for c in range(5):
        p, t = (pred == c) & (target != 255), target == c
        if (p | t).any():
            ious.append(100 * (p & t).sum() / (p | t).sum())
        elif absent == "zero":
            ious.append(0)
    return np.mean(ious)


def expected_error(pred, target):
    pred, target = (x.double().numpy().ravel() for x in (pred, target))
    return np.mean([abs(max(p, 1e-9) - t) for p, t in zip(pred, target, strict=True) if 0 < t < np.inf])


def expected_angle(pred, target):
    pred, target = (x.double().numpy().transpose(0, 2, 3, 1).reshape(-1, 3) for x in (pred, target))
    angles = []
    for p, t in zip(pred, target, strict=True):
        if np.isfinite(t).all() and t.any():
            cosine = p @ t / np.linalg.norm(p) / np.linalg.norm(t)
            angles.append(np.degrees(np.arccos(np.clip(cosine, -1, 1))))
    return np.mean(angles)


def expected_max_f(pred, target):
    pred, target = pred.numpy()[target.numpy() != 255], target.numpy()[target.numpy() != 255]
    scores = []
    for k in range(1, 20):
        binary = pred >= np.float32(0.05 * k)
        hits = (binary & (target == 1)).sum()
        with np.errstate(invalid="ignore"):
            precision, recall = hits / binary.sum(), hits / (target == 1).sum()
            scores.append(np.nan_to_num(1.3 * precision * recall / (0.3 * precision + recall)))
    return 100 * max(scores)


def expected_boundary_f(pred, target, tolerance):
    pred, target = pred.numpy(), target.numpy()
    scores = []
    for k in range(1, 20):
        matched = predicted = true = 0
        for p, t in zip(pred, target, strict=True):
            binary = (p >= np.float32(k / 20)) & (t != 255)
            matched += largest_matching(pairs_within(binary, t == 1, tolerance * np.hypot(*p.shape)))
            predicted, true = predicted + binary.sum(), true + (t == 1).sum()
        precision, recall = matched / max(predicted, 1), matched / max(true, 1)
        scores.append(2 * precision * recall / (precision + recall) if matched else 0)
    return 100 * max(scores)


CASES = {
    "iou skip": (lambda: MeanIoU(5), class_case, lambda p, t: expected_iou(p, t, "skip")),
    "iou zero": (lambda: MeanIoU(5, absent="zero"), class_case, lambda p, t: expected_iou(p, t, "zero")),
    "error": (AbsoluteError, depth_case, expected_error),
    "angle": (MeanAngle, normal_case, expected_angle),
    "max f": (MaxF, probability_case, expected_max_f),
    "boundary f": (lambda: BoundaryF(0.2), probability_case, lambda p, t: expected_boundary_f(p, t, 0.2)),
}
every_metric = pytest.mark.parametrize(("make", "case", "expected"), CASES.values(), ids=CASES)


def value(metric, pred, target):
    metric.update(pred, target)
    return metric.compute()


@every_metric
@settings(deadline=None)
@given(seed=SEEDS)
def test_metric_equals_its_plain_definition(make, case, expected, seed):
    pred, target = case(seed)
    # Single precision per pixel, double precision in the sums.
    assert value(make(), pred, target).item() == pytest.approx(expected(pred, target), rel=1e-5, abs=1e-9)


@every_metric
@settings(deadline=None)
@given(seed=SEEDS, cut=st.integers(1, 3))
def test_pieces_and_merged_metrics_add_up_to_the_whole(make, case, expected, seed, cut):
    pred, target = case(seed)
    whole, pieces, left, right = (make() for _ in range(4))
    whole.update(pred, target)
    for metric, part in ((left, slice(cut)), (right, slice(cut, None))):
        metric.update(pred[part], target[part])
        pieces.update(pred[part], target[part])
    left.merge_state(right)
    torch.testing.assert_close(pieces.compute(), whole.compute())
    torch.testing.assert_close(left.compute(), whole.compute())


@every_metric
@settings(deadline=None)
@given(seed=SEEDS, order=st.permutations(range(4)))
def test_order_of_images_does_not_matter(make, case, expected, seed, order):
    pred, target = case(seed)
    torch.testing.assert_close(value(make(), pred[order], target[order]), value(make(), pred, target))


@every_metric
def test_inputs_are_left_alone_even_when_they_need_gradients(make, case, expected):
    pred, target = case(0)
    if pred.is_floating_point():
        pred.requires_grad_()
    copies = pred.detach().clone(), target.clone()
    result = value(make(), pred, target)
    assert torch.equal(pred, copies[0])
    torch.testing.assert_close(target, copies[1], rtol=0, atol=0, equal_nan=True)
    assert not result.requires_grad


@every_metric
def test_no_update_and_no_valid_pixel_give_nan_without_a_warning(make, case, expected):
    pred, target = case(0)
    missing = torch.full_like(target, torch.nan if target.is_floating_point() else 255)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert make().compute().isnan()
        metric = make()
        assert value(metric, pred, missing).isnan()
        metric.update(pred, target)
        assert metric.compute().item() == pytest.approx(expected(pred, target), rel=1e-5)
        metric.reset()
        assert metric.compute().isnan()


@every_metric
def test_half_precision_predictions_are_taken_to_single_precision(make, case, expected):
    pred, target = case(0)
    if pred.is_floating_point():
        for dtype in (torch.bfloat16, torch.float16, torch.float64):
            low = pred.to(dtype)
            assert torch.equal(value(make(), low, target), value(make(), low.float(), target))


@every_metric
def test_states_are_sums_in_double_precision_or_counts(make, case, expected):
    metric = make().bfloat16()
    metric.update(*case(0))
    states = metric.metric_state
    assert states
    assert all(isinstance(state, Tensor) for state in states.values())
    assert {state.dtype for state in states.values()} <= {torch.float64, torch.int64}
    assert metric.compute().dtype == torch.float64
    assert metric.full_state_update is False


@every_metric
def test_updates_inside_and_outside_inference_mode_mix(make, case, expected):
    pred, target = case(0)
    metric = make()
    with torch.inference_mode():
        metric.update(pred[:2], target[:2])
    metric.update(pred[2:], target[2:])
    torch.testing.assert_close(metric.compute(), value(make(), pred, target))


@every_metric
def test_forward_returns_the_figure_of_the_batch(make, case, expected):
    pred, target = case(0)
    metric = make()
    metric(pred[:2], target[:2])
    torch.testing.assert_close(metric(pred[2:], target[2:]), value(make(), pred[2:], target[2:]))
    torch.testing.assert_close(metric.compute(), value(make(), pred, target))


@settings(deadline=None)
@given(seed=SEEDS)
def test_a_perfect_prediction_has_the_best_value(seed):
    classes, _ = index_maps(seed, 4)
    assert value(MeanIoU(4), classes.where(classes != 255, 0), classes) == 100
    depth, normals = depth_case(seed)[1], normal_case(seed)[1]
    assert value(AbsoluteError(), depth, depth) == 0
    assert value(MeanAngle(), 3 * normals, normals).item() == pytest.approx(0, abs=1e-4)
    binary, _ = index_maps(seed, 2)
    binary[0, 0, 0] = 1
    for metric in MaxF(), BoundaryF(0.0):
        assert value(metric, (binary == 1).float(), binary).item() == pytest.approx(100, rel=1e-12)


def test_absent_classes_are_skipped_or_count_as_zero():
    target = torch.tensor([[[0, 1, 255]]])
    pred = torch.tensor([[[0, 1, 2]]])
    assert value(MeanIoU(4), pred, target) == 100
    assert value(MeanIoU(4, absent="zero"), pred, target) == 50


def test_a_class_in_the_prediction_alone_is_not_absent():
    assert value(MeanIoU(4), torch.tensor([[[0, 3]]]), torch.tensor([[[0, 0]]])) == 25


@pytest.mark.parametrize("wrong", [-1, 4])
def test_a_predicted_class_that_does_not_exist_is_refused(wrong):
    with pytest.raises(ValueError, match=r"\[0, 4\)"):
        MeanIoU(4).update(torch.tensor([[[wrong]]]), torch.tensor([[[1]]]))


def test_small_angles_keep_their_digits():
    angle = 1e-3
    target = torch.tensor([0.0, 0, 1]).view(1, 3, 1, 1)
    pred = torch.tensor([np.sin(np.radians(angle)), 0, np.cos(np.radians(angle))]).float().view(1, 3, 1, 1)
    assert value(MeanAngle(), pred, target).item() == pytest.approx(angle, rel=1e-3)


def test_opposite_normals_are_180_degrees_apart_and_a_zero_vector_90():
    target = torch.tensor([0.0, 0, 1]).view(1, 3, 1, 1)
    assert value(MeanAngle(), -target, target).item() == pytest.approx(180)
    assert value(MeanAngle(), 0 * target, target).item() == pytest.approx(90)


@pytest.mark.parametrize("metric", [MaxF, BoundaryF])
def test_nothing_true_or_nothing_predicted_is_zero(metric):
    empty, full = torch.zeros(1, 4, 5), torch.ones(1, 4, 5)
    assert value(metric(), empty, empty.long()) == 0
    assert value(metric(), full, empty.long()) == 0
    assert value(metric(), empty, full.long()) == 0


@pytest.mark.parametrize("metric", [MaxF, BoundaryF])
def test_a_probability_equal_to_a_threshold_reaches_it(metric):
    target = torch.ones(1, 1, 1).long()
    for k in range(1, 20):
        below = metric()
        below.update(torch.full((1, 1, 1), k / 20), target)
        assert below.predicted.tolist() == [1] * k + [0] * (19 - k)


def test_boundaries_are_matched_within_the_tolerance_of_the_diagonal():
    pred, target = torch.zeros(1, 30, 40), torch.zeros(1, 30, 40).long()
    pred[0, 10, 10] = 1
    target[0, 10, 15] = 1
    assert value(BoundaryF(0.1001), pred, target) == 100
    assert value(BoundaryF(0.0999), pred, target) == 0


def test_missing_pixels_are_neither_predicted_nor_true():
    pred, target = torch.ones(1, 8, 8), torch.full((1, 8, 8), 255)
    target[0, 2] = 1
    metric = BoundaryF()
    assert value(metric, pred, target) == 100
    assert (metric.true, metric.pixels) == (8, 8)


def test_bad_options_are_refused():
    with pytest.raises(ValueError, match="ascending"):
        MaxF([0.5, 0.1])
    with pytest.raises(ValueError, match="at least one"):
        BoundaryF(thresholds=0)
    with pytest.raises(ValueError, match="negative"):
        BoundaryF(-0.1)


def test_mean_loss_weighs_batches_by_their_labelled_images():
    metric = MeanLoss()
    for loss, count in [(6.0, 3), (0.0, 0), (1.0, 1)]:
        metric.update(torch.tensor(loss), torch.tensor(count))
    assert metric.compute() == 7 / 4
    metric.reset()
    assert metric.compute().isnan()
