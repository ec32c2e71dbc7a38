"""Metrics against numpy, and the laws of all of them."""

import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from skimage.morphology import thin
from torch import Tensor

from htt_lightning.metrics import BoundaryFMeasure, DepthErrors, MaxFMeasure, NormalErrors, SegmentationScores
from tests.metrics.plain import (
    boundary_metrics,
    class_case,
    class_metrics,
    depth_case,
    depth_metrics,
    max_f_metrics,
    normal_case,
    normal_metrics,
    probability_case,
)

SEEDS = st.integers(0, 2**32 - 1)
CASES = {
    "classes skip": (lambda: SegmentationScores(5), class_case, lambda p, t: class_metrics(p, t, "skip")),
    "classes zero": (
        lambda: SegmentationScores(5, absent_classes="zero"),
        class_case,
        lambda p, t: class_metrics(p, t, "zero"),
    ),
    "depth": (DepthErrors, depth_case, depth_metrics),
    "normals": (NormalErrors, normal_case, normal_metrics),
    "max f": (MaxFMeasure, probability_case, max_f_metrics),
    "boundary f": (lambda: BoundaryFMeasure(0.2), probability_case, lambda p, t: boundary_metrics(p, t, 0.2)),
    "boundary f thinned": (
        lambda: BoundaryFMeasure(0.2, num_thresholds=3, thin_predictions=True),
        probability_case,
        lambda p, t: boundary_metrics(p, t, 0.2, thresholds=3, thin=thin),
    ),
}
every_metric = pytest.mark.parametrize(("make", "case", "expected"), CASES.values(), ids=CASES)


def values(metric, pred, target):
    metric.update(pred, target)
    return metric.compute()


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], equal_nan=True)


@every_metric
@given(seed=SEEDS)
def test_metrics_agree_with_numpy(make, case, expected, seed):
    pred, target = case(seed)
    result, plain = values(make(), pred, target), expected(pred, target)
    assert result.keys() == plain.keys()
    for name, value in result.items():
        # Single precision per pixel, double precision in the sums; the median is one of rounded angles.
        tolerance = {"abs": 0.0051} if name == "median" else {"rel": 1e-5, "abs": 1e-9}
        assert value.item() == pytest.approx(plain[name], **tolerance), name


@every_metric
@given(seed=SEEDS, cut=st.integers(1, 3))
def test_batches_and_merged_states_add_up(make, case, expected, seed, cut):
    pred, target = case(seed)
    whole, pieces, left, right = (make() for _ in range(4))
    whole.update(pred, target)
    for metric, part in ((left, slice(cut)), (right, slice(cut, None))):
        metric.update(pred[part], target[part])
        pieces.update(pred[part], target[part])
    left.merge_state(right)
    assert_same(pieces.compute(), whole.compute())
    assert_same(left.compute(), whole.compute())


@every_metric
def test_update_changes_no_input(make, case, expected):
    pred, target = case(0)
    if pred.is_floating_point():
        pred.requires_grad_()
    copies = pred.detach().clone(), target.clone()
    result = values(make(), pred, target)
    assert torch.equal(pred, copies[0])
    torch.testing.assert_close(target, copies[1], rtol=0, atol=0, equal_nan=True)
    assert not any(value.requires_grad for value in result.values())


@every_metric
def test_metric_without_valid_pixels_is_nan(make, case, expected):
    pred, target = case(0)
    missing = torch.full_like(target, torch.nan if target.is_floating_point() else 255)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        metric = make()
        assert all(value.isnan() for value in metric.compute().values())
        for data in ((pred[:0], target[:0]), (pred, missing)):
            assert all(value.isnan() for value in values(metric, *data).values())
        metric.update(pred, target)
        assert_same(metric.compute(), values(make(), pred, target))
        metric.reset()
        assert all(value.isnan() for value in metric.compute().values())


@every_metric
def test_half_precision_equals_single_precision(make, case, expected):
    pred, target = case(0)
    if pred.is_floating_point():
        for dtype in (torch.bfloat16, torch.float16, torch.float64):
            low = pred.to(dtype)
            assert values(make(), low, target) == values(make(), low.float(), target)


@every_metric
def test_states_are_float64_or_int64(make, case, expected):
    metric = make().bfloat16()
    metric.update(*case(0))
    states = metric.metric_state
    assert states
    assert all(isinstance(state, Tensor) for state in states.values())
    assert {state.dtype for state in states.values()} <= {torch.float64, torch.int64}
    assert {value.dtype for value in metric.compute().values()} == {torch.float64}
    assert metric.full_state_update is False


@every_metric
def test_updates_mix_with_inference_mode(make, case, expected):
    pred, target = case(0)
    metric = make()
    with torch.inference_mode():
        metric.update(pred[:2], target[:2])
    metric.update(pred[2:], target[2:])
    assert_same(metric.compute(), values(make(), pred, target))


@every_metric
def test_forward_returns_values_of_the_batch(make, case, expected):
    pred, target = case(0)
    metric = make()
    metric(pred[:2], target[:2])
    assert_same(metric(pred[2:], target[2:]), values(make(), pred[2:], target[2:]))
    assert_same(metric.compute(), values(make(), pred, target))
