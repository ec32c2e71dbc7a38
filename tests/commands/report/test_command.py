import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from htt_lightning.cli import main
from htt_lightning.commands.report import command, report
from htt_lightning.errors import HTTError
from tests.commands.report.runs import config_of, evaluated_run, fitted_run

FILES = {"comparison.md", "comparison.csv", "comparison.png"}


@pytest.fixture
def runs(in_empty_folder):
    for seed in (0, 1):
        for labels in ("one-label", "full"):
            metrics = {"semseg/miou": 30.0 + seed + (labels == "full"), "depth/abs_err": 0.5}
            evaluated_run(Path("runs") / f"{labels}_{seed}", metrics, config_of(seed=seed, labels=labels))
    return Path("runs")


def failing(*folders, **options):
    with pytest.raises(HTTError) as error:
        report(list(folders), **options)
    return str(error.value)


def written(folder="comparison"):
    return {path.name for path in Path(folder).iterdir()}


def test_report_writes_tables_and_figure(runs, capsys):
    main(["report", "runs", "runs/full_0", "--out", "mine", "--baseline", "labels=one-label"])
    printed = capsys.readouterr().out
    assert written("mine") == FILES
    text = Path("mine/comparison.md").read_text()
    assert text in printed
    assert "| labels=full | 2 | **31.50 ± 0.71** |" in " ".join(text.split())
    assert printed.splitlines()[-3:] == ["mine/comparison.md", "mine/comparison.csv", "mine/comparison.png"]
    with Path("mine/comparison.csv").open(newline="") as file:
        rows = {row["run"]: row for row in csv.DictReader(file)}
    full = rows["labels=full"]
    assert (full["seeds"], full["folders"], full["data.labels"]) == ("2", "runs/full_0 runs/full_1", "full")
    assert float(full["test/semseg/miou std"]) == pytest.approx(0.5**0.5)
    assert float(full["test/delta_m"]) == pytest.approx(100 / 30.5 / 2)


def test_figure_shows_seeds_and_best_rows(runs):
    report(["runs"])
    picture = np.asarray(Image.open("comparison/comparison.png").convert("RGB")).astype(int)
    assert picture.shape[1] > picture.shape[0] > 100
    assert (np.abs(picture - 153).max(-1) < 6).sum() > 100, "gray points of seeds"
    assert (picture[..., 2] - picture[..., 0] > 100).sum() > 20, "the best row in blue"


def test_report_overwrites_on_demand_only(runs):
    report(["runs"])
    before = Path("comparison/comparison.md").read_text()
    fitted_run(runs / "more", {"semseg/miou": 1.0})
    assert "--overwrite" in failing("runs")
    assert Path("comparison/comparison.md").read_text() == before
    report(["runs"], overwrite=True, split="val")
    assert "last validation" in Path("comparison/comparison.md").read_text()


DAMAGE = {
    "truncated metrics": ("test_metrics.json", lambda text: text[:40]),
    "other JSON": ("test_metrics.json", lambda _: "[1, 2]"),
    "metrics without a key": ("test_metrics.json", lambda text: text.replace("higher_is_better", "x")),
    "truncated config": ("config.yaml", lambda text: text[:30] + ": ["),
    "empty config": ("config.yaml", lambda _: ""),
    "no config": ("config.yaml", None),
    "truncated train config": ("train_config.yaml", lambda _: "config: {"),
}


@pytest.mark.parametrize(("name", "change"), DAMAGE.values(), ids=list(DAMAGE))
def test_corrupt_runs_are_named_and_others_reported(runs, name, change, capsys):
    path = runs / "full_1" / name
    path.unlink() if change is None else path.write_text(change(path.read_text()))
    assert str(path) in failing("runs")
    assert "| labels=full | 1 |" in " ".join(capsys.readouterr().out.split())
    assert written() == FILES


def test_folders_without_runs_are_named(runs):
    Path("empty").mkdir()
    message = failing("empty", "lost")
    assert "val_metrics.json or test_metrics.json, got empty" in message
    assert "DIR must be a folder that exists, got lost" in message
    assert not Path("comparison").exists()
    assert "got lost" in failing("lost", "runs")
    assert written() == FILES


def test_nothing_is_written_after_an_option_error(runs, monkeypatch):
    assert "Did you mean 'labels=full'?" in failing("runs", baseline="labels=fulll")
    Path("file").write_text("")
    assert "file" in failing("runs", out="file")
    assert "Cannot write file/below/comparison.md" in failing("runs", out="file/below")
    monkeypatch.setattr(command, "find_spec", lambda package: None if package == "pandas" else package)
    assert 'pip install "htt-lightning[report]"' in failing("runs")
    assert not Path("comparison").exists()
