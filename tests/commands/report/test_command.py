import sys
from pathlib import Path

import pytest

from htt_lightning.cli import main
from htt_lightning.commands.report import report
from htt_lightning.errors import HTTError
from tests.commands.report.folders import config_of, fitted_run, scored_run

FILES = {"comparison.md", "comparison.csv", "comparison.png"}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["htt"])


@pytest.fixture
def runs():
    for seed in (0, 1):
        for labels in ("one-label", "full"):
            values = {"semseg/miou": 30.0 + seed, "depth/abs_err": 0.5}
            scored_run(Path("runs") / f"{labels}_{seed}", values, config_of(seed=seed, labels=labels))
    return Path("runs")


def failing(*folders, **options):
    with pytest.raises(HTTError) as error:
        report(list(folders), **options)
    return str(error.value)


def test_the_command_prints_and_writes_a_report_or_says_what_is_wrong(runs, capsys):
    with pytest.raises(SystemExit, match="error: There is no folder runs/full_0/lost"):
        main(["report", "runs/full_0/lost"])
    main(["report", "runs", "--out", "mine", "--baseline", "labels=one-label"])
    printed = capsys.readouterr().out
    assert {path.name for path in Path("mine").iterdir()} == FILES
    assert Path("mine/comparison.md").read_text() in printed
    assert "| labels=full | 2 | 30.50 ± 0.71 |" in printed.replace("**", "")
    assert printed.splitlines()[-3:] == ["mine/comparison.md", "mine/comparison.csv", "mine/comparison.png"]


def test_a_run_that_is_named_twice_counts_once(runs, capsys):
    report(["runs", "runs/full_0", "runs/full_1"])
    assert "| labels=full | 2 |" in capsys.readouterr().out
    assert {path.name for path in Path("comparison").iterdir()} == FILES


def test_what_is_there_is_replaced_only_on_demand(runs):
    report(["runs"])
    before = Path("comparison/comparison.md").read_text()
    fitted_run(runs / "more", {"semseg/miou": 1.0})
    assert "--out" in failing("runs")
    assert Path("comparison/comparison.md").read_text() == before
    report(["runs"], overwrite=True, split="val")
    assert "last validation" in Path("comparison/comparison.md").read_text()


DAMAGE = {
    "a table that is cut off": ("test_metrics.json", lambda text: text[:40], "is truncated or no JSON"),
    "a table of something else": ("test_metrics.json", lambda _: "[1, 2]", "holds no figures as this version"),
    "a table of an earlier version": (
        "test_metrics.json", lambda text: text.replace("higher_is_better", "x"), "holds no figures as this version",
    ),
    "a config that is cut off": ("config.yaml", lambda text: text[:30] + ": [", "is truncated or no config"),
    "an empty config": ("config.yaml", lambda _: "", "is truncated or no config"),
    "no config": ("config.yaml", None, "has no config.yaml beside it"),
    "a note that is cut off": ("train_config.yaml", lambda _: "config: {", "is truncated or no config"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "change", "words"), DAMAGE.values(), ids=list(DAMAGE))
def test_a_damaged_run_is_named_and_the_others_are_reported(runs, name, change, words, capsys):
    path = runs / "full_1" / name
    path.unlink() if change is None else path.write_text(change(path.read_text()))
    message = failing("runs")
    assert message.startswith("1 thing could not be reported, all else is in comparison:\n")
    assert str(runs / "full_1") in message
    assert words in message
    assert "| labels=full | 1 |" in capsys.readouterr().out
    assert {file.name for file in Path("comparison").iterdir()} == FILES


def test_folders_without_results_are_named(runs):
    Path("empty").mkdir()
    message = failing("empty", "lost")
    assert "There are no results in empty: no val_metrics.json or test_metrics.json" in message
    assert "There is no folder lost" in message
    assert not Path("comparison").exists()
    assert "There is no folder lost" in failing("lost", "runs")
    assert {file.name for file in Path("comparison").iterdir()} == FILES


def test_a_wrong_reference_writes_nothing(runs):
    assert "Did you mean 'labels=full'?" in failing("runs", baseline="labels=fulll")
    assert not Path("comparison").exists()


def test_a_folder_that_cannot_be_written_is_named(runs):
    Path("file").write_text("")
    assert "the file file" in failing("runs", out="file")
    assert "Cannot write file/below/comparison.md" in failing("runs", out="file/below")


def test_without_matplotlib_the_tables_are_written(runs, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert 'pip install "htt-lightning[report]"' in failing("runs")
    assert {file.name for file in Path("comparison").iterdir()} == FILES - {"comparison.png"}
