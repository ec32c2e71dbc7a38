"""The bookkeeping of the study in benchmarks/; its runs are the library's own commands."""

import json
import sys

import pytest

from tests.conftest import ROOT


@pytest.fixture(scope="module")
def study():
    path = ROOT / "benchmarks" / "label_efficiency.py"
    if not path.is_file():
        pytest.skip("benchmarks/ is not part of a source distribution")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(path.parent))
        yield __import__("label_efficiency")
    del sys.modules["label_efficiency"], sys.modules["gap"]


def figures(study, **methods):
    return {(getattr(study, name, name), "depth"): scores for name, scores in methods.items()}


def test_gap_is_measured_from_the_better_supervised_run(study):
    values = figures(study, SUPERVISED=[1.0, 1.0], LONGER=[0.8, 0.8], FULL=[0.4, 0.4], method=[0.7, 0.5])
    assert sys.modules["gap"].gap_closed(values, "method") == {"depth": pytest.approx(0.5)}
    assert sys.modules["gap"].gap_closed(values, study.FULL) == {"depth": pytest.approx(1.0)}


def test_gap_within_two_standard_deviations_is_not_averaged(study):
    values = figures(study, SUPERVISED=[1.0, 0.6], FULL=[0.6, 0.6], method=[0.7, 0.5])
    assert sys.modules["gap"].gap_closed(values, "method") == {"depth": None}
    rows = [
        {
            "labels": labels,
            "method": method,
            "seed": seed,
            "task": "depth",
            "metric": "val/depth/abs_err",
            "value": value,
        }
        for (method, _), scores in values.items()
        for seed, value in enumerate(scores)
        for labels in (["full"] if method == study.FULL else ["one-label"])
        if method in study.METHODS
    ]
    table = study.summary(rows, list(study.METHODS))
    assert "0.8 ± 0.28" in table
    assert "two standard deviations: depth." in table


def test_teachers_run_first_and_are_shared(study):
    runs = study.plan(seeds=3, quick=False)
    assert len({run.key for run in runs}) == len(runs)
    taught = [run for run in runs if run.teacher]
    assert taught
    for run in taught:
        assert runs.index(run.teacher) < runs.index(run)
        assert run.teacher.turn != run.turn  # they never run side by side
        assert (run.teacher.labels, run.teacher.seed) == (run.labels, run.seed)
        for option in ("--model.use_global_tokens", "--model.use_fine_tokens"):
            assert (option in run.method.words) == (option in run.teacher.method.words)
    assert {run.method.name for run in study.plan(1, quick=True)} == set(study.MAIN)


def test_only_requested_rows_and_their_teachers_run(study, tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr(study.Study, "train", lambda self, run, teacher: ran.append(run.method.name))
    monkeypatch.setattr(study.SyntheticDataModule, "prepare_data", lambda self: None)
    words = ["--out", str(tmp_path), "--quick", "--jobs", "1"]
    study.main([*words, "--only", study.SUPERVISED])
    assert ran == [study.SUPERVISED]
    ran.clear()
    study.main([*words, "--only", study.PREDICTIONS])
    assert ran == [study.SUPERVISED, study.PREDICTIONS]
    with pytest.raises(SystemExit):
        study.main([*words, "--only", "unheard of"])


def test_finished_run_is_skipped_and_interrupted_one_resumed(study, tmp_path, monkeypatch):
    ran = []
    one = study.Study(tmp_path, scenes=1, images=8, epochs=2)
    monkeypatch.setattr(one, "_htt", lambda run, words: ran.append(words))
    run = study.Run(study.METHODS["+ both"], "one-label", 0)
    one.train(run)
    assert "--ckpt_path" not in ran[-1]
    assert ran[-1][ran[-1].index("--discovery.teacher") + 1] == str(one.last(run.teacher))
    one.last(run).parent.mkdir(parents=True)
    one.last(run).touch()
    one.train(run)
    assert ran[-1][-2:] == ["--ckpt_path", str(one.last(run))]
    metrics = {"val/depth/abs_err": {"value": 0.7}}
    (one.folder(run) / "val_metrics.json").write_text(json.dumps(metrics))
    one.train(run)
    assert len(ran) == 2
    assert [row["value"] for row in one.results([run])] == [0.7]


def test_known_results_are_skipped_except_teachers(study, tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr(study.Study, "train", lambda self, run, teacher: ran.append((run.method.name, run.seed)))
    monkeypatch.setattr(study.SyntheticDataModule, "prepare_data", lambda self: None)
    row = {"labels": "one-label", "metric": "val/x/y", "value": 0.5}
    rows = [
        {**row, "method": method, "seed": 0, "task": task}
        for method in (study.SUPERVISED, study.LONGER)
        for task in study.TASKS
    ]
    study.write(rows, tmp_path / "known.csv")
    words = ["--out", str(tmp_path), "--jobs", "1", "--seeds", "2", "--known", str(tmp_path / "known.csv")]
    study.main([*words, "--labels", "one-label", "--only", study.LONGER])
    assert ran == [(study.LONGER, 1)]
    ran.clear()
    study.main([*words, "--labels", "one-label", "--only", study.LONGER, "+ both"])
    taught = {("+ both", 0), ("+ both", 1), (study.SUPERVISED, 0), (study.SUPERVISED, 1)}
    assert set(ran) == taught | {(study.LONGER, 1)}
    assert study.read(tmp_path / "results.csv") == rows
