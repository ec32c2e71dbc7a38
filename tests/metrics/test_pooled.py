"""Every metric against its plain definition, and the laws that all of them obey."""

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.morphology import thin
from torch import Tensor

from htt_lightning.metrics import BoundaryFMeasure, DepthErrors, MaxFMeasure, NormalErrors, SegmentationScores
from tests.metrics.plain import (
    boundary_figures,
    class_case,
    class_figures,
    depth_case,
    depth_figures,
    max_f_figures,
    normal_case,
    normal_figures,
    probability_case,
)

SEEDS = st.integers(0, 2**32 - 1)
CASES = {
    "classes skip": (lambda: SegmentationScores(5), class_case, lambda p, t: class_figures(p, t, "skip")),
    "classes zero": (
        lambda: SegmentationScores(5, absent_classes="zero"),
        class_case,
        lambda p, t: class_figures(p, t, "zero"),
    ),
    "depth": (DepthErrors, depth_case, depth_figures),
    "normals": (NormalErrors, normal_case, normal_figures),
    "max f": (MaxFMeasure, probability_case, max_f_figures),
    "boundary f": (lambda: BoundaryFMeasure(0.2), probability_case, lambda p, t: boundary_figures(p, t, 0.2)),
    "boundary f thinned": (
        lambda: BoundaryFMeasure(0.2, num_thresholds=3, thin_predictions=True),
        probability_case,
        lambda p, t: boundary_figures(p, t, 0.2, thresholds=3, thin=thin),
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
@settings(deadline=None)
@given(seed=SEEDS)
def test_figures_equal_their_plain_definitions(make, case, expected, seed):
    pred, target = case(seed)
    figures, plain = values(make(), pred, target), expected(pred, target)
    assert figures.keys() == plain.keys()
    for name, figure in figures.items():
        # Single precision per pixel, double precision in the sums; the median is one of rounded angles.
        tolerance = {"abs": 0.0051} if name == "median" else {"rel": 1e-5, "abs": 1e-9}
        assert figure.item() == pytest.approx(plain[name], **tolerance), name


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
    assert_same(pieces.compute(), whole.compute())
    assert_same(left.compute(), whole.compute())


@every_metric
@settings(deadline=None)
@given(seed=SEEDS, order=st.permutations(range(4)))
def test_order_of_images_does_not_matter(make, case, expected, seed, order):
    pred, target = case(seed)
    assert_same(values(make(), pred[order], target[order]), values(make(), pred, target))


@every_metric
def test_inputs_are_left_alone_even_when_they_need_gradients(make, case, expected):
    pred, target = case(0)
    if pred.is_floating_point():
        pred.requires_grad_()
    copies = pred.detach().clone(), target.clone()
    result = values(make(), pred, target)
    assert torch.equal(pred, copies[0])
    torch.testing.assert_close(target, copies[1], rtol=0, atol=0, equal_nan=True)
    assert not any(figure.requires_grad for figure in result.values())


@every_metric
def test_no_update_no_image_and_no_valid_pixel_give_nan_without_a_warning(make, case, expected):
    pred, target = case(0)
    missing = torch.full_like(target, torch.nan if target.is_floating_point() else 255)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        metric = make()
        assert all(figure.isnan() for figure in metric.compute().values())
        for data in ((pred[:0], target[:0]), (pred, missing)):
            assert all(figure.isnan() for figure in values(metric, *data).values())
        metric.update(pred, target)
        assert_same(metric.compute(), values(make(), pred, target))
        metric.reset()
        assert all(figure.isnan() for figure in metric.compute().values())


@every_metric
def test_half_precision_predictions_are_taken_to_single_precision(make, case, expected):
    pred, target = case(0)
    if pred.is_floating_point():
        for dtype in (torch.bfloat16, torch.float16, torch.float64):
            low = pred.to(dtype)
            assert values(make(), low, target) == values(make(), low.float(), target)


@every_metric
def test_states_are_sums_in_double_precision_or_counts(make, case, expected):
    metric = make().bfloat16()
    metric.update(*case(0))
    states = metric.metric_state
    assert states
    assert all(isinstance(state, Tensor) for state in states.values())
    assert {state.dtype for state in states.values()} <= {torch.float64, torch.int64}
    assert {figure.dtype for figure in metric.compute().values()} == {torch.float64}
    assert metric.full_state_update is False


@every_metric
def test_updates_inside_and_outside_inference_mode_mix(make, case, expected):
    pred, target = case(0)
    metric = make()
    with torch.inference_mode():
        metric.update(pred[:2], target[:2])
    metric.update(pred[2:], target[2:])
    assert_same(metric.compute(), values(make(), pred, target))


@every_metric
def test_forward_returns_the_figures_of_the_batch(make, case, expected):
    pred, target = case(0)
    metric = make()
    metric(pred[:2], target[:2])
    assert_same(metric(pred[2:], target[2:]), values(make(), pred[2:], target[2:]))
    assert_same(metric.compute(), values(make(), pred, target))
