"""Metrics of every task and their specs."""

import math

import pytest
import torch

from htt_lightning.tasks import Edges, MetricSpec
from htt_lightning.tasks.metric_spec import delta_m
from tests.tasks.samples import TASKS, output_of, random_logits, random_target

EVERY_TASK = pytest.mark.parametrize("task", TASKS, ids=lambda t: t.name)


@EVERY_TASK
def test_metrics_are_new_and_hold_the_primary(task):
    result = task.metrics().compute()
    assert task.primary_metric in result
    assert task.test_metrics().compute().keys() == result.keys()
    assert task.metrics() is not task.metrics()


@EVERY_TASK
def test_metric_specs_have_unit_and_direction(task):
    assert task.metric_spec(task.primary_metric) == (task.metric_unit, task.higher_is_better)
    result = {name: task.metric_spec(name) for name in task.metrics().compute()}
    assert set(task.metric_specs) <= set(result)
    for unit, higher_is_better in result.values():
        assert unit in ("%", "m", "deg", "")
        assert higher_is_better == (unit == "%")


@EVERY_TASK
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_metrics_take_decoded_maps_and_targets(task, dtype):
    target = random_target(task, h=37, w=51)
    decoded = task.decode(output_of(random_logits(task, h=37, w=51, stride=4).to(dtype)), (37, 51))
    for metric in (task.metrics(), task.test_metrics()):
        metric.update(decoded, target)
        assert all(value.isfinite() for value in metric.compute().values())


def test_edges_test_at_more_thresholds():
    edges = Edges(tolerance=0.0075, num_thresholds=3, test_thresholds=7, thin_predictions=True)
    for metric, thresholds in ((edges.metrics(), 3), (edges.test_metrics(), 7)):
        assert len(metric.thresholds) == thresholds
        assert (metric.tolerance, metric.thin_predictions) == (0.0075, True)
    assert len(Edges().test_metrics().thresholds) == 99
    assert not Edges().metrics().thin_predictions


def test_metric_spec_formats_units_arrows_and_digits():
    assert MetricSpec("m", False).column_header("abs_err") == "abs_err m ↓"
    assert MetricSpec("").column_header("x") == "x ↑"
    assert [MetricSpec(unit).format(1.23456) for unit in ("%", "deg", "m", "")] == ["1.23", "1.23", "1.2346", "1.2346"]
    assert MetricSpec().format(math.nan) == "-"


def test_delta_m_is_the_mean_relative_gain():
    specs = {"a": MetricSpec(), "b": MetricSpec("m", False)}
    assert delta_m(specs, {"a": 44.0, "b": 0.4}, {"a": 40.0, "b": 0.5}) == pytest.approx(15)
    assert math.isnan(MetricSpec().relative_gain(1.0, 0.0))
