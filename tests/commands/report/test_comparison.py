import json
import os

import pytest

from htt_lightning.commands.report.command import read_runs
from htt_lightning.commands.report.comparison import compare, short_name
from htt_lightning.errors import HTTError
from tests.commands.report.runs import config_of, evaluated_run, fitted_run, write_run


def comparison(folder, split=None):
    runs, errors = read_runs([str(folder)])
    found = compare(runs, split, errors)
    assert errors == []
    return found


def names(found):
    return list(found.settings.index)


def values(found, row, key):
    return sorted(found.values.loc[row, key].dropna())


def test_seeds_and_paths_share_a_row(tmp_path):
    for seed, value in enumerate((10.0, 12.0, 17.0)):
        paths = {"root": f"/data/{seed}", "cache": f"scenes_{seed}", "num_workers": seed}
        fitted_run(tmp_path / f"version_{seed}", {"semseg/miou": value}, seed=seed, **paths)
    config = fitted_run(tmp_path / "other", {"semseg/miou": 20.0}) / "config.yaml"
    config.write_text(config.read_text().replace("seed: null", "seed: 7"))  # data.seed
    found = comparison(tmp_path)
    assert names(found) == ["SyntheticDataModule"]
    assert values(found, "SyntheticDataModule", "semseg/miou") == [10, 12, 17, 20]
    assert list(found.counts()) == ["4"]
    assert "differ" not in found.to_markdown()


def test_rows_are_named_by_independent_settings(tmp_path):
    fitted_run(tmp_path / "a", {"semseg/miou": 1.0}, labels="one-label", model={"token_dim": 8, "token_stride": 1})
    fitted_run(tmp_path / "b", {"semseg/miou": 2.0}, labels="full", model={"token_dim": 8, "token_stride": 1})
    fitted_run(tmp_path / "c", {"semseg/miou": 3.0}, labels="full", model={"token_dim": 16, "token_stride": 2})
    found = comparison(tmp_path)
    assert names(found) == ["labels=one-label token_dim=8", "labels=full token_dim=8", "labels=full token_dim=16"]
    assert set(found.settings) == {"model.token_dim", "model.token_stride", "data.labels"}


def test_missing_settings_are_null(tmp_path):
    fitted_run(tmp_path / "a", {"semseg/miou": 1.0})
    fitted_run(tmp_path / "b", {"semseg/miou": 2.0}, model={"loss_weights": {"depth": 0.45}})
    assert names(comparison(tmp_path)) == ["loss_weights.depth=null", "loss_weights.depth=0.45"]


def test_single_task_networks_share_a_row(tmp_path):
    for seed in (0, 1):
        fitted_run(tmp_path / f"semseg_{seed}", {"semseg/miou": 40.0 + seed}, seed=seed, tasks=["semseg"])
        fitted_run(tmp_path / f"both_{seed}", {"semseg/miou": 44.0, "depth/abs_err": 0.4}, seed=seed)
    fitted_run(tmp_path / "depth_0", {"depth/abs_err": 0.5}, seed=0, tasks="depth")
    found = comparison(tmp_path)
    assert found.counts().to_dict() == {"tasks=all": "2", "tasks=each alone": "1 to 2"}
    assert values(found, "tasks=each alone", "semseg/miou") == [40, 41]
    assert values(found, "tasks=each alone", "depth/abs_err") == [0.5]


def test_single_task_networks_of_other_steps_share_a_row(tmp_path):
    both = {"semseg/miou": 44.0, "depth/abs_err": 0.4}
    evaluated_run(tmp_path / "both", both, config_of(), steps=300)
    for task, steps in (("semseg", 100), ("depth", 90)):
        metrics = {name: value for name, value in both.items() if name.startswith(task)}
        evaluated_run(tmp_path / task, metrics, config_of(tasks=task), steps=steps, tasks=task)
    assert sorted(names(comparison(tmp_path))) == ["tasks=all", "tasks=each alone"]


def test_the_latest_run_of_a_seed_counts(tmp_path):
    first = fitted_run(tmp_path / "z", {"semseg/miou": 1.0})
    fitted_run(tmp_path / "a", {"semseg/miou": 2.0})
    os.utime(first / "val_metrics.json", (1, 1))
    found = comparison(tmp_path)
    assert values(found, "SyntheticDataModule", "semseg/miou") == [2]
    assert "1 left out" in found.notes[0]


def test_stages_and_test_settings_make_rows(tmp_path):
    training = config_of()
    evaluated_run(tmp_path / "a", {"semseg/miou": 5.0}, training)
    evaluated_run(tmp_path / "b", {"semseg/miou": 5.0}, training, steps=50)
    tasks = [{"class_path": "htt_lightning.tasks.SemSeg", "init_args": {"absent_classes": "zero"}}]
    evaluated_run(tmp_path / "c", {"semseg/miou": 5.0}, training, tasks=tasks)
    evaluated_run(tmp_path / "d", {"semseg/miou": 5.0}, training, batch_size=7)  # changes no metric
    key = "tasks.SemSeg.absent_classes"
    expected = {f"{key}=null steps=100", f"{key}=null steps=50", f"{key}=zero steps=100"}
    assert set(names(comparison(tmp_path))) == expected


def test_tests_have_training_settings_without_dependent_steps(tmp_path):
    for labels, steps in (("full", 100), ("one-label", 50), ("random-label", 100)):
        for seed in (0, 1):  # the config of the test itself says one-label
            config = config_of(seed=seed, labels=labels)
            evaluated_run(tmp_path / f"{labels}_{seed}", {"semseg/miou": 5.0}, config, steps=steps)
    expected = {"labels=full": "2", "labels=one-label": "2", "labels=random-label": "2"}
    assert comparison(tmp_path).counts().to_dict() == expected


def test_test_metrics_win_unless_split_is_val(tmp_path):
    fitted_run(tmp_path / "a", {"semseg/miou": 1.0})
    with pytest.raises(HTTError, match=r"--split test .*test_metrics\.json"):
        comparison(tmp_path, "test")
    evaluated_run(tmp_path / "b", {"semseg/miou": 2.0}, config_of())
    found = comparison(tmp_path)
    assert (found.split, list(found.values["semseg/miou"])) == ("test", [2])
    assert "1 files" in found.notes[0]
    assert list(comparison(tmp_path, "val").values["semseg/miou"]) == [1]


def test_metrics_of_other_units_are_an_error(tmp_path):
    fitted_run(tmp_path / "a", {"depth/abs_err": 0.5, "semseg/miou": 1.0}, labels="full")
    odd = fitted_run(tmp_path / "b", {"depth/abs_err": 50.0}) / "val_metrics.json"
    odd.write_text(odd.read_text().replace('"m"', '"cm"'))
    runs, errors = read_runs([str(tmp_path)])
    assert len(compare(runs, None, errors).values) == 1
    assert str(odd) in str(errors[0])
    assert "abs_err cm" in str(errors[0])


@pytest.fixture
def multi_and_single(tmp_path):
    for seed in (0, 1):
        fitted_run(tmp_path / f"semseg_{seed}", {"semseg/miou": 40.0 + 2 * seed}, seed=seed)
        fitted_run(tmp_path / f"depth_{seed}", {"depth/abs_err": 0.5}, seed=seed)
        fitted_run(tmp_path / f"both_{seed}", {"semseg/miou": 45.1, "depth/abs_err": 0.4 + 0.1 * seed}, seed=seed)
    return tmp_path


@pytest.mark.parametrize("baseline", ["tasks=each alone", "alone", "depth_1"])
def test_delta_m_compares_seeds_with_the_mean_of_a_row(multi_and_single, baseline):
    found, errors = comparison(multi_and_single), []
    found.add_delta_m(str(multi_and_single / baseline) if baseline == "depth_1" else baseline, errors)
    assert errors == []
    assert list(found.values.loc["tasks=all", "delta_m"]) == pytest.approx([(10 + 20) / 2, (10 + 0) / 2])
    assert found.values.loc["tasks=each alone", "delta_m"].sum() == pytest.approx(0)
    assert list(found.specs)[-1] == found.primary[-1] == found.values.columns[-1] == "delta_m"


def test_delta_m_replaces_logged_values(tmp_path):
    for labels, gain in (("full", 77.0), ("one-label", None)):
        evaluated_run(tmp_path / labels, {"delta_m": gain, "semseg/miou": 40.0}, config_of(labels=labels))
    found = comparison(tmp_path)
    assert values(found, "labels=full", "delta_m") == [77]
    found.add_delta_m("labels=one-label", [])
    assert values(found, "labels=full", "delta_m") == [0]


def test_delta_m_needs_the_tasks_of_the_baseline(tmp_path):
    fitted_run(tmp_path / "a", {"semseg/miou": 40.0, "depth/abs_err": 0.5})
    odd = fitted_run(tmp_path / "b", {"semseg/miou": 40.0}, network="multitask")
    found, errors = comparison(tmp_path), []
    found.add_delta_m(str(tmp_path / "a"), errors)
    assert [str(odd / "val_metrics.json") in str(error) for error in errors] == [True]
    assert list(found.values["delta_m"].isna()) == [False, True]


def test_an_unknown_or_ambiguous_baseline_is_refused(tmp_path):
    fitted_run(tmp_path / "a", {"semseg/miou": 40.0}, labels="full")
    fitted_run(tmp_path / "b", {"semseg/miou": 44.0})
    with pytest.raises(HTTError, match=r"Did you mean 'labels=full'\?[\s\S]*\n  labels=one-label"):
        comparison(tmp_path).add_delta_m("labels=fulll", [])
    with pytest.raises(HTTError, match=r"one name only, got 'labels'"):
        comparison(tmp_path).add_delta_m("labels", [])


def test_missing_metrics_give_a_dash_and_no_delta_m(tmp_path):
    fitted_run(tmp_path / "a", {"semseg/miou": 40.0, "depth/abs_err": 0.5}, labels="full")
    fitted_run(tmp_path / "b", {"semseg/miou": 44.0, "depth/abs_err": None})
    found = comparison(tmp_path)
    found.add_delta_m("full", [])
    assert found.counts()["labels=one-label"] == "1"
    assert values(found, "labels=one-label", "delta_m") == []
    assert found.to_markdown().splitlines()[5].replace("*", "").split("|")[4].strip() == "-"


def test_markdown_has_units_spread_best_and_settings(tmp_path):
    for seed in (0, 1):
        for labels, gain in (("one-label", 0.0), ("full", 4.0)):
            metrics = {"semseg/miou": 30.0 + seed + gain, "semseg/pixel_acc": 50.0, "depth/abs_err": 0.5 + gain}
            config = config_of(seed=seed, labels=labels, model={"lr": gain or 1.0})
            evaluated_run(tmp_path / f"{labels}_{seed}", metrics, config)
    lines = [" ".join(line.split()) for line in comparison(tmp_path).to_markdown().splitlines()]
    assert lines[0] == "Metrics of test, mean ± standard deviation over seeds."
    assert lines[2] == "| run | seeds | semseg miou % ↑ | depth abs_err m ↓ |"
    assert lines[4] == "| labels=full | 2 | **34.50 ± 0.71** | 4.5000 ± 0.0000 |"
    assert lines[5] == "| labels=one-label | 2 | 30.50 ± 0.71 | **0.5000 ± 0.0000** |"
    assert lines[lines.index("Settings that differ:") + 2] == "| run | model.lr | data.labels |"


def test_short_name_strips_the_group_if_unambiguous():
    keys = ["model.lr", "discovery.loss_weights.pseudo_label", "discovery.stages", "data.tasks", "test.tasks", "data"]
    expected = ["lr", "loss_weights.pseudo_label", "stages", "data.tasks", "test.tasks", "data"]
    assert [short_name(key, keys) for key in keys] == expected


def untrained_run(folder, metrics, mark, **settings):
    path = write_run(folder, "test", metrics, **settings) / "test_metrics.json"
    rows = {key: row | {"epoch": None} | mark for key, row in json.loads(path.read_text()).items()}
    path.write_text(json.dumps(rows))


@pytest.mark.parametrize("mark", [{"trained": False}, {}], ids=["marked", "of an early version"])
def test_runs_of_random_weights_are_never_listed(tmp_path, mark):
    untrained_run(tmp_path / "a", {"semseg/miou": 3.0}, mark)
    with pytest.raises(HTTError, match=r"random weights only \(.*a/test_metrics\.json\)\. Run htt test with --ckpt"):
        comparison(tmp_path)
    fitted_run(tmp_path / "b", {"semseg/miou": 1.0})
    found = comparison(tmp_path)
    assert (found.split, list(found.values["semseg/miou"])) == ("val", [1])
    evaluated_run(tmp_path / "c", {"semseg/miou": 2.0}, config_of())
    found = comparison(tmp_path)
    assert (found.split, list(found.values["semseg/miou"])) == ("test", [2])
    assert found.notes[0] == f"Metrics of random weights are left out: {tmp_path / 'a' / 'test_metrics.json'}."


def test_tested_stage_without_known_epoch_is_listed(tmp_path):
    path = evaluated_run(tmp_path / "a", {"semseg/miou": 2.0}, config_of()) / "test_metrics.json"
    path.write_text(path.read_text().replace('"epoch": 3', '"epoch": null'))
    assert list(comparison(tmp_path).values["semseg/miou"]) == [2]
