"""The metrics of every task; what they compute is in ``tests/metrics``."""

import pytest
import torch

from htt_lightning.tasks import Edges, HumanParts
from tests.tasks.samples import TASKS, output_of, random_logits, random_target

EVERY_TASK = pytest.mark.parametrize("task", TASKS, ids=lambda t: t.name)


@EVERY_TASK
def test_metrics_are_fresh_and_hold_the_headline(task):
    figures = task.metrics().compute()
    assert task.primary_metric in figures
    assert task.test_metrics().compute().keys() == figures.keys()
    assert task.metrics() is not task.metrics()


@EVERY_TASK
def test_every_figure_has_a_unit_and_a_direction(task):
    assert task.metric_spec(task.primary_metric) == (task.metric_unit, task.higher_is_better)
    figures = {name: task.metric_spec(name) for name in task.metrics().compute()}
    assert set(task.metric_specs) <= set(figures)
    for unit, higher_is_better in figures.values():
        assert unit in ("%", "m", "deg", "")
        assert higher_is_better == (unit == "%")


@EVERY_TASK
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_metrics_take_decoded_maps_and_targets_as_they_are(task, dtype):
    target = random_target(task, h=37, w=51)
    decoded = task.decode(output_of(random_logits(task, h=37, w=51, stride=4).to(dtype)), (37, 51))
    for metric in (task.metrics(), task.test_metrics()):
        metric.update(decoded, target)
        assert all(figure.isfinite() for figure in metric.compute().values())


def test_edges_are_tested_at_more_thresholds_and_thinned_on_demand():
    edges = Edges(tolerance=0.0075, num_thresholds=3, test_thresholds=7, thin_predictions=True)
    for metric, thresholds in ((edges.metrics(), 3), (edges.test_metrics(), 7)):
        assert len(metric.thresholds) == thresholds
        assert (metric.tolerance, metric.thin_predictions) == (0.0075, True)
    assert len(Edges().test_metrics().thresholds) == 99
    assert not Edges().metrics().thin_predictions


def test_a_checkpoint_may_be_measured_in_several_ways():
    edges = Edges(tolerance=0.0075, num_thresholds=3, test_thresholds=7, thin_predictions=True, max_val_images=9)
    assert edges.output_settings == Edges().output_settings != Edges(pos_weight=0.9).output_settings
    assert HumanParts(absent_classes="zero").output_settings == HumanParts().output_settings
