import csv
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger

from htt_lightning import HTTModule
from htt_lightning.callbacks import PredictionPanel, ResultsTable
from htt_lightning.callbacks.results_table import constant_scores
from htt_lightning.data.datasets.synthetic import SyntheticScenes
from tests.tiny import BACKBONE, tiny_data, tiny_module, tiny_trainer

HEADLINES = {
    "val/semseg/miou": "%",
    "val/human_parts/miou": "%",
    "val/saliency/max_f": "%",
    "val/normals/mean": "deg",
    "val/edges/ods_f": "%",
    "val/depth/abs_err": "m",
}


def fit(folder, *callbacks, data=None, **trainer):
    data = data or tiny_data()
    trainer = tiny_trainer(folder, callbacks=list(callbacks), **trainer)
    trainer.fit(tiny_module(data), data)
    return trainer


def set_up(**settings):
    data = tiny_data(**settings)
    data.setup("fit")
    return data


def maps(source, task, ids):
    return [source.label(source.ids.index(name), task) for name in ids]


def test_a_run_writes_its_metrics_under_the_contract_keys(tmp_path):
    fit(tmp_path, ResultsTable(), logger=CSVLogger(tmp_path, name=""), max_epochs=2)
    with (tmp_path / "version_0" / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    losses = {"train/loss", *(f"train/{key.split('/')[1]}/loss" for key in HEADLINES)}
    assert {"epoch", "step"} | set(HEADLINES) | losses <= set(rows[0])
    assert len([row for row in rows if row["val/depth/abs_err"]]) == 2
    results = json.loads((tmp_path / "version_0" / "val_metrics.json").read_text())
    last = [float(row["val/depth/abs_err"]) for row in rows if row["val/depth/abs_err"]][-1]
    assert results["val/depth/abs_err"]["value"] == pytest.approx(last)


def test_the_table_and_the_paths_are_the_last_lines(tmp_path, capsys):
    fit(tmp_path, ResultsTable(), PredictionPanel(), enable_progress_bar=True)
    lines = capsys.readouterr().out.rstrip().splitlines()
    assert lines[-1] == str(tmp_path / "panels" / "epoch_000.png")
    assert lines[-2] == str(tmp_path / "val_metrics.json")
    assert "val/depth/abs_err" in lines[-4]


def test_results_hold_value_unit_constant_and_gain_of_every_task(tmp_path):
    data = tiny_data()
    trainer = fit(tmp_path, ResultsTable(), data=data)
    results = json.loads((tmp_path / "val_metrics.json").read_text())
    assert {key: row["unit"] for key, row in results.items()} == HEADLINES
    for task, (key, row) in zip(data.tasks, results.items(), strict=True):
        assert list(row) == ["value", "unit", "higher_is_better", "constant", "gain_percent"]
        assert row["higher_is_better"] == task.higher_is_better
        assert row["value"] == pytest.approx(float(trainer.callback_metrics[key]))
        sign = 1 if task.higher_is_better else -1
        gain = sign * 100 * (row["value"] - row["constant"]) / row["constant"]
        assert row["gain_percent"] == pytest.approx(gain)


def test_the_table_shows_every_figure_and_ends_with_paths_that_exist(tmp_path, capsys):
    folder = tmp_path / "a [bold]long[/bold] name of a folder :smile: which no terminal has the width for"
    panel = PredictionPanel()
    fit(folder, panel, ResultsTable())
    lines = capsys.readouterr().out.rstrip().splitlines()
    assert [Path(line) for line in lines[-2:]] == [folder / "val_metrics.json", panel.path]
    assert all(Path(line).is_file() for line in lines[-2:])
    printed = "\n".join(lines)
    for key, row in json.loads((folder / "val_metrics.json").read_text()).items():
        (line,) = (line for line in lines if key in line)
        numbers = [f"{row['value']:.3f} {row['unit']}", f"{row['constant']:.3f} {row['unit']}"]
        assert re.findall(r"[-+]?[\d.]+ \S+", line) == [*numbers, f"{row['gain_percent']:+.1f} %"]
    assert "after 1 epochs" in printed


def test_without_a_panel_the_table_ends_with_the_results(tmp_path, capsys):
    fit(tmp_path, PredictionPanel(images=0), ResultsTable())
    assert capsys.readouterr().out.rstrip().splitlines()[-1] == str(tmp_path / "val_metrics.json")


def test_without_constants_they_are_null_and_shown_as_a_dash(tmp_path, capsys):
    fit(tmp_path, ResultsTable(constant=False))
    rows = json.loads((tmp_path / "val_metrics.json").read_text(), parse_constant=pytest.fail)
    assert all(row["constant"] is None and row["gain_percent"] is None for row in rows.values())
    assert "nan" not in capsys.readouterr().out


def test_a_trial_run_prints_and_writes_no_results(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fit(tmp_path, ResultsTable(), fast_dev_run=True)
    assert "constant" not in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_training_without_validation_leaves_no_empty_table(tmp_path, capsys):
    fit(tmp_path, ResultsTable(), limit_val_batches=0)
    assert not (tmp_path / "val_metrics.json").exists()
    assert "constant" not in capsys.readouterr().out


DELTA_M = {"value": None, "unit": "%", "higher_is_better": True, "headline": True}


def evaluate(folder, module=None, data=None, **trainer):
    data = data or tiny_data()
    trainer = tiny_trainer(folder, callbacks=[ResultsTable()], **trainer)
    trainer.test(module or tiny_module(data), data, verbose=False)
    return trainer


def test_testing_writes_every_figure_with_its_unit_and_direction(tmp_path):
    data = tiny_data()
    module = tiny_module(data, single_task={task.name: 10.0 for task in data.tasks})
    trainer = evaluate(tmp_path, module, data)
    rows = json.loads((tmp_path / "test_metrics.json").read_text())
    figures = {f"test/{t.name}/{name}": t.metric_spec(name) for t in data.tasks for name in t.metrics().compute()}
    assert list(rows) == [*figures, "test/delta_m"]
    for key, row in rows.items():
        assert list(row) == ["value", "unit", "higher_is_better", "headline"]
        assert row["value"] == float(trainer.callback_metrics[key])
    for key, figure in figures.items():
        assert (rows[key]["unit"], rows[key]["higher_is_better"]) == figure
    assert rows["test/delta_m"] | {"value": None} == DELTA_M
    headlines = [f"test/{task.name}/{task.primary_metric}" for task in data.tasks]
    assert [key for key, row in rows.items() if row["headline"]] == [*headlines, "test/delta_m"]


def test_the_table_of_a_test_has_one_row_with_arrows(tmp_path):
    data = tiny_data(tasks=["semseg", "depth"])
    module = tiny_module(data, single_task={"semseg": 40.0, "depth": 0.5})
    evaluate(tmp_path, module, data)
    rows = json.loads((tmp_path / "test_metrics.json").read_text())
    heads, rule, cells = (tmp_path / "test_metrics.md").read_text().splitlines()
    assert heads == (
        "| semseg miou % ↑ | semseg pixel_acc % ↑ | depth abs_err m ↓ | depth abs_rel ↓ | depth rmse m ↓ "
        "| depth rmse_log ↓ | depth delta1 % ↑ | depth delta2 % ↑ | depth delta3 % ↑ | delta_m % ↑ |"
    )
    assert rule == "|" + " ---: |" * 10
    numbers = [float(cell) for cell in cells.strip("| ").split(" | ")]
    assert numbers == pytest.approx([row["value"] for row in rows.values()], abs=0.006)
    assert numbers[3] == pytest.approx(rows["test/depth/abs_rel"]["value"], abs=6e-5)


@pytest.mark.parametrize("width", ["80", "400"])
def test_the_printed_table_shows_every_figure_in_full_and_ends_with_the_paths(tmp_path, capsys, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", width)
    evaluate(tmp_path, enable_progress_bar=True)
    printed = capsys.readouterr().out
    heads, _, cells = (
        (line.strip("| ").split(" | ")) for line in (tmp_path / "test_metrics.md").read_text().splitlines()
    )
    for head, cell in zip(heads, cells, strict=True):
        task, figure = head.split(" ", 1)
        assert task in printed
        name, _, kind = figure.partition(" ")
        assert re.search(rf"┃ +{name} ┃", printed)
        assert re.search(rf"┃ +{kind} ┃", printed)
        assert re.search(rf"│ +{re.escape(cell)} │", printed), cell
    paths = [str(tmp_path / name) for name in ("test_metrics.json", "test_metrics.md")]
    assert printed.rstrip().splitlines()[-2:] == paths
    assert (len([line for line in printed.splitlines() if "┡" in line]) == 1) == (width == "400")


def test_a_figure_without_a_single_label_is_null_and_a_dash(tmp_path):
    class Unlabelled(SyntheticScenes):
        def label(self, index, task):
            label = super().label(index, task)
            return np.full_like(label, np.nan) if task == "depth" else label

    data = tiny_data(tasks=["semseg", "depth"])
    data.source = lambda split: Unlabelled(split, data.counts[split], data.image_size, data.scenes_seed, data.cache)
    evaluate(tmp_path, data=data)
    rows = json.loads((tmp_path / "test_metrics.json").read_text(), parse_constant=pytest.fail)
    assert rows["test/depth/abs_err"]["value"] is rows["test/depth/delta1"]["value"] is None
    assert rows["test/semseg/miou"]["value"] > 0
    assert (tmp_path / "test_metrics.md").read_text().splitlines()[-1].count("| - ") == 7


def test_what_others_log_is_not_in_the_table(tmp_path):
    class Chatty(HTTModule):
        def on_test_epoch_end(self):
            super().on_test_epoch_end()
            self.log_dict({"test/loss": 1.0, "test/elsewhere/loss": 1.0})

    data = tiny_data(tasks="saliency", labels="full")
    trainer = evaluate(tmp_path, Chatty(data.tasks, backbone=BACKBONE, token_dim=8), data)
    assert trainer.callback_metrics["test/loss"] == 1
    rows = json.loads((tmp_path / "test_metrics.json").read_text())
    assert list(rows) == ["test/saliency/max_f", "test/saliency/max_f_double_sigmoid"]


def test_a_trial_test_and_one_without_batches_write_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    evaluate(tmp_path, fast_dev_run=True)
    evaluate(tmp_path, limit_test_batches=0)
    assert list(tmp_path.iterdir()) == []


def test_constants_agree_with_plain_formulas():
    data = set_up()
    scores = constant_scores(data, data.tasks)
    train, val = data.train.source, data.val.source
    keep = data.labels_per_image("train", train)

    def fitted(task):
        return np.stack(maps(train, task, [name for name in train.ids if task in keep[name]]))

    def scored(task):
        return np.stack(maps(val, task, val.ids))

    median = np.median(fitted("depth"))
    assert scores["depth"] == pytest.approx(np.abs(scored("depth") - median).mean(), rel=1e-3)

    def angle(normals, direction):
        return np.degrees(np.arccos((normals.astype(float) @ direction).clip(-1, 1))).mean()

    (normals,) = (task for task in data.tasks if task.name == "normals")
    direction = normals.best_constant(torch.from_numpy(np.moveaxis(fitted("normals"), -1, 1))).numpy()
    mean = fitted("normals").astype(float).reshape(-1, 3).sum(0)
    assert angle(fitted("normals"), direction) <= angle(fitted("normals"), mean / np.linalg.norm(mean))
    assert scores["normals"] == pytest.approx(angle(scored("normals"), direction), rel=1e-3)

    for task in ("semseg", "human_parts"):
        label = fitted(task)
        most = np.bincount(label[label != 255]).argmax()
        truth = scored(task)[scored(task) != 255]
        present = set(np.unique(truth)) | {most}  # the other classes have no intersection
        assert scores[task] == pytest.approx(100 * (truth == most).mean() / len(present), rel=1e-4)

    truth = scored("saliency")
    precision = (truth == 1).sum() / (truth != 255).sum()
    assert scores["saliency"] == pytest.approx(100 * 1.3 * precision / (0.3 * precision + 1), rel=1e-3)
    assert 0 < scores["edges"] < 100


def test_constants_never_read_a_hidden_label(monkeypatch):
    def guarded(self, index, task):
        stream = self._key[1]
        assert stream == 1 or task in keep[self.ids[index]], f"hidden label {task} of image {index}"
        read.add((stream, task))
        return label(self, index, task)

    data, read = set_up(), set()
    keep, label = data.labels_per_image("train", data.train.source), SyntheticScenes.label
    monkeypatch.setattr(SyntheticScenes, "label", guarded)
    constant_scores(data, data.tasks)
    assert {(0, "depth"), (1, "depth"), (0, "semseg"), (1, "semseg")} <= read


def test_a_task_without_a_single_training_label_has_no_constant():
    data = set_up(train_images=4)  # fewer images than tasks
    kept = {name for names in data.labels_per_image("train", data.train.source).values() for name in names}
    assert len(kept) == 4
    scores = constant_scores(data, data.tasks)
    assert set(scores) == kept
    assert all(math.isfinite(score) for score in scores.values())
