import math

import pytest

from htt_lightning.tasks.metric_spec import MetricSpec, delta_m


def test_a_gain_is_positive_where_better():
    assert MetricSpec().relative_gain(44.0, 40.0) == pytest.approx(10)
    assert MetricSpec("m", higher_is_better=False).relative_gain(0.4, 0.5) == pytest.approx(20)
    assert math.isnan(MetricSpec().relative_gain(1.0, 0.0))


def test_a_figure_is_written_with_unit_arrow_and_the_digits_of_papers():
    assert MetricSpec("m", False).column_header("abs_err") == "abs_err m ↓"
    assert MetricSpec("").column_header("x") == "x ↑"
    assert [MetricSpec(unit).format(1.23456) for unit in ("%", "deg", "m", "")] == ["1.23", "1.23", "1.2346", "1.2346"]
    assert MetricSpec().format(math.nan) == "-"


def test_delta_m_is_the_mean_gain():
    kinds = {"a": MetricSpec(), "b": MetricSpec("m", False)}
    assert delta_m(kinds, {"a": 44.0, "b": 0.4}, {"a": 40.0, "b": 0.5}) == pytest.approx(15)
