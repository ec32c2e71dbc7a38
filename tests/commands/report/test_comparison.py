import os

import pytest

from htt_lightning.commands.report.command import read_runs
from htt_lightning.commands.report.comparison import compare, measure, short
from htt_lightning.errors import HTTError
from tests.commands.report.folders import config_of, fitted_run, scored_run


def comparison(folder, split=None):
    runs, faults = read_runs([str(folder)])
    assert faults == []
    found = compare(runs, split, faults)
    assert faults == []
    return found


def by_name(found):
    return {row.name: row for row in found.rows}


def test_runs_that_differ_in_their_seed_and_place_alone_are_one_row(tmp_path):
    for seed, value in enumerate((10.0, 12.0, 17.0)):
        place = {"root": f"/data/{seed}", "cache": f"scenes_{seed}", "num_workers": seed}
        fitted_run(tmp_path / f"version_{seed}", {"semseg/miou": value}, seed=seed, **place)
    (row,) = comparison(tmp_path).rows
    assert sorted(row.values("semseg/miou")) == [10, 12, 17]
    assert (row.count, row.name) == ("3", "SyntheticDataModule")


def test_the_seed_of_the_data_is_a_seed(tmp_path):
    for seed in (1, 2):
        fitted_run(tmp_path / f"version_{seed}", {"semseg/miou": 1.0 * seed}, **{"train_images": 9, "root": "."})
        config = tmp_path / f"version_{seed}" / "config.yaml"
        config.write_text(config.read_text().replace("seed: null", f"seed: {seed}"))
    (row,) = comparison(tmp_path).rows
    assert row.count == "2"


def test_rows_are_named_by_what_differs_and_once_by_what_goes_together(tmp_path):
    fitted_run(tmp_path / "a", {"semseg/miou": 1.0}, labels="one-label", model={"token_dim": 8, "token_stride": 1})
    fitted_run(tmp_path / "b", {"semseg/miou": 2.0}, labels="full", model={"token_dim": 8, "token_stride": 1})
    fitted_run(tmp_path / "c", {"semseg/miou": 3.0}, labels="full", model={"token_dim": 16, "token_stride": 2})
    found = comparison(tmp_path)
    assert list(by_name(found)) == [
        "labels=one-label token_dim=8",
        "labels=full token_dim=8",
        "labels=full token_dim=16",
    ]
    assert set(found.differing) == {"model.token_dim", "model.token_stride", "data.labels"}


def test_a_setting_that_only_some_runs_have_is_null_in_the_others(tmp_path):
    fitted_run(tmp_path / "a", {"semseg/miou": 1.0})
    fitted_run(tmp_path / "b", {"semseg/miou": 2.0}, model={"loss_weights": {"depth": 0.45}})
    assert list(by_name(comparison(tmp_path))) == ["loss_weights.depth=null", "loss_weights.depth=0.45"]


def test_networks_of_single_tasks_are_one_row_with_a_figure_each(tmp_path):
    for seed in (0, 1):
        fitted_run(tmp_path / f"semseg_{seed}", {"semseg/miou": 40.0 + seed}, seed=seed, tasks=["semseg"])
        fitted_run(tmp_path / f"both_{seed}", {"semseg/miou": 44.0, "depth/abs_err": 0.4}, seed=seed)
    fitted_run(tmp_path / "depth_0", {"depth/abs_err": 0.5}, seed=0, tasks="depth")
    rows = by_name(comparison(tmp_path))
    assert set(rows) == {"tasks=each alone", "tasks=all"}
    alone = rows["tasks=each alone"]
    assert sorted(alone.values("semseg/miou")) == [40, 41]
    assert alone.values("depth/abs_err") == [0.5]
    assert alone.count == "1 to 2"


def test_of_two_runs_with_one_seed_the_latest_counts(tmp_path):
    first = fitted_run(tmp_path / "z", {"semseg/miou": 1.0})
    fitted_run(tmp_path / "a", {"semseg/miou": 2.0})
    os.utime(first / "val_metrics.json", (1, 1))
    found = comparison(tmp_path)
    (row,) = found.rows
    assert row.values("semseg/miou") == [2]
    assert found.notes == ["Of runs with the same settings and seed the latest counts (1 left out)."]


def test_a_test_is_of_the_settings_its_network_was_trained_with(tmp_path):
    for seed in (0, 1):
        for labels in ("one-label", "full"):
            training = config_of(seed=seed, labels=labels)
            scored_run(tmp_path / f"{labels}_{seed}", {"semseg/miou": 5.0}, training)  # whose own config says one-label
    rows = by_name(comparison(tmp_path))
    assert {name: row.count for name, row in rows.items()} == {"labels=one-label": "2", "labels=full": "2"}


def test_networks_of_another_stage_and_other_ways_of_measuring_are_other_rows(tmp_path):
    training = config_of()
    scored_run(tmp_path / "a", {"semseg/miou": 5.0}, training)
    scored_run(tmp_path / "b", {"semseg/miou": 5.0}, training, steps=50)
    absent = [{"class_path": "htt_lightning.tasks.SemSeg", "init_args": {"absent_classes": "zero"}}]
    scored_run(tmp_path / "c", {"semseg/miou": 5.0}, training, tasks=absent)
    scored_run(tmp_path / "d", {"semseg/miou": 5.0}, training, batch_size=7)  # the same figures: one row with a
    assert set(by_name(comparison(tmp_path))) == {
        "tasks.SemSeg.absent_classes=null steps=100", "tasks.SemSeg.absent_classes=null steps=50",
        "tasks.SemSeg.absent_classes=zero steps=100",
    }  # fmt: skip


def test_steps_that_follow_from_other_settings_are_not_in_a_name(tmp_path):
    scored_run(tmp_path / "a", {"semseg/miou": 5.0}, config_of(labels="full"), steps=100)
    scored_run(tmp_path / "b", {"semseg/miou": 5.0}, config_of(labels="one-label"), steps=50)
    scored_run(tmp_path / "c", {"semseg/miou": 5.0}, config_of(labels="random-label"), steps=100)
    assert set(by_name(comparison(tmp_path))) == {"labels=full", "labels=one-label", "labels=random-label"}


def test_figures_of_a_test_go_before_those_of_training_unless_asked_otherwise(tmp_path):
    fitted_run(tmp_path / "a", {"semseg/miou": 1.0})
    scored_run(tmp_path / "b", {"semseg/miou": 2.0}, config_of())
    found = comparison(tmp_path)
    assert (found.split, found.rows[0].values("semseg/miou")) == ("test", [2])
    assert found.notes == ["Figures of other commands are left out (1 files); see --split."]
    assert comparison(tmp_path, "val").rows[0].values("semseg/miou") == [1]


def test_a_split_without_results_is_refused(tmp_path):
    fitted_run(tmp_path / "a", {"semseg/miou": 1.0})
    with pytest.raises(HTTError, match=r"no test_metrics\.json"):
        comparison(tmp_path, "test")


def test_delta_m_is_that_of_each_seed_against_the_mean_of_the_reference(tmp_path):
    for seed in (0, 1):
        fitted_run(tmp_path / f"semseg_{seed}", {"semseg/miou": 40.0 + 2 * seed}, seed=seed)
        fitted_run(tmp_path / f"depth_{seed}", {"depth/abs_err": 0.5}, seed=seed)
        fitted_run(tmp_path / f"both_{seed}", {"semseg/miou": 45.1, "depth/abs_err": 0.4 + 0.1 * seed}, seed=seed)
    for reference in ("tasks=each alone", str(tmp_path / "depth_1")):
        found, faults = comparison(tmp_path), []
        measure(found, reference, faults)
        assert faults == []
        gains = by_name(found)["tasks=all"].gains
        assert gains == pytest.approx([(10 + 20) / 2, (10 + 0) / 2])
        assert sum(by_name(found)["tasks=each alone"].gains) == pytest.approx(0)
        assert list(found.kinds)[-1] == list(found.headlines)[-1] == "delta_m"


def test_a_row_of_other_tasks_has_no_delta_m_and_is_named(tmp_path):
    fitted_run(tmp_path / "a", {"semseg/miou": 40.0, "depth/abs_err": 0.5})
    odd = fitted_run(tmp_path / "b", {"semseg/miou": 40.0}, network="multitask")
    found, faults = comparison(tmp_path), []
    measure(found, str(tmp_path / "a"), faults)
    (fault,) = faults
    assert str(odd / "val_metrics.json") in str(fault)
    assert "semseg, those of the baseline depth, semseg" in str(fault)
    assert [bool(row.gains) for row in found.rows] == [True, False]


def test_an_unknown_reference_is_refused_with_the_rows_there_are(tmp_path):
    fitted_run(tmp_path / "a", {"semseg/miou": 40.0}, labels="full")
    fitted_run(tmp_path / "b", {"semseg/miou": 40.0})
    with pytest.raises(HTTError, match=r"Did you mean 'labels=full'\?[\s\S]*\n  labels=one-label"):
        measure(comparison(tmp_path), "labels=fulll", [])


def test_a_part_of_a_name_is_enough_where_one_row_has_it(tmp_path):
    fitted_run(tmp_path / "a", {"semseg/miou": 40.0}, labels="full")
    fitted_run(tmp_path / "b", {"semseg/miou": 44.0})
    found = comparison(tmp_path)
    measure(found, "full", [])
    assert by_name(found)["labels=one-label"].gains == pytest.approx([10])
    with pytest.raises(HTTError, match=r"'labels' is part of several names\. Rows:\n  labels=full\n  labels=one-label"):
        measure(comparison(tmp_path), "labels", [])


def test_figures_of_other_units_are_not_averaged(tmp_path):
    fitted_run(tmp_path / "a", {"depth/abs_err": 0.5}, seed=0)
    odd = fitted_run(tmp_path / "b", {"depth/abs_err": 0.5}, seed=1) / "val_metrics.json"
    odd.write_text(odd.read_text().replace('"m"', '"1/m"'))
    runs, faults = read_runs([str(tmp_path)])
    (row,) = compare(runs, None, faults).rows
    assert row.count == "1"
    assert str(odd) in str(faults[0])
    assert "depth/abs_err 1/m ↓" in str(faults[0])


def test_a_figure_that_does_not_exist_counts_for_nothing(tmp_path):
    fitted_run(tmp_path / "a", {"semseg/miou": None, "depth/abs_err": 0.5}, seed=0)
    fitted_run(tmp_path / "b", {"semseg/miou": 3.0, "depth/abs_err": 0.5}, seed=1)
    found = comparison(tmp_path)
    assert found.rows[0].values("semseg/miou") == [3]
    measure(found, str(tmp_path / "b"), [])
    assert len(found.rows[0].gains) == 1


def test_the_best_mean_goes_by_the_direction(tmp_path):
    fitted_run(tmp_path / "a", {"semseg/miou": 1.0, "depth/abs_err": 0.5}, labels="full")
    fitted_run(tmp_path / "b", {"semseg/miou": 2.0, "depth/abs_err": 0.6})
    found = comparison(tmp_path)
    assert found.best("semseg/miou") == {"labels=one-label"}
    assert found.best("depth/abs_err") == {"labels=full"}
    assert comparison(tmp_path / "a").best("depth/abs_err") == set()


@pytest.mark.parametrize(
    ("key", "others", "end"),
    [
        ("model.lr", [], "lr"),
        ("discovery.loss_weights.pseudo_label", ["discovery.stages"], "loss_weights.pseudo_label"),
        ("data.tasks", ["test.tasks"], "data.tasks"),
        ("data", ["model.lr"], "data"),
    ],
)
def test_a_name_is_as_short_as_it_can_be(key, others, end):
    assert short(key, [key, *others]) == end
