import csv
import json
import re
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from PIL import Image

from htt_lightning import HTTModule, LabelDiscovery
from htt_lightning.callbacks import PredictionPanel, ResultsTable, RunCheckpoint
from htt_lightning.callbacks.matrix import CELL
from htt_lightning.data.datasets.synthetic import SyntheticScenes
from tests.tiny import BACKBONE, tiny_data, tiny_module, tiny_trainer

PRIMARY = {f"val/{key}": "%" for key in ("semseg/miou", "human_parts/miou", "saliency/max_f", "edges/ods_f")}
PRIMARY |= {"val/normals/mean": "deg", "val/depth/abs_err": "m"}


def read(path):
    return json.loads(path.read_text(), parse_constant=pytest.fail)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """A run of two epochs with constants and a panel, and its output."""
    folder = tmp_path_factory.mktemp("runs") / "a [bold]long[/bold] name :smile: wider than any terminal"
    data, panel, printed = tiny_data(), PredictionPanel(), StringIO()
    callbacks = [ResultsTable(constant_baseline=True), panel, ModelCheckpoint(folder / "checkpoints", filename="last")]
    options = {"logger": CSVLogger(folder, name=""), "enable_checkpointing": True, "enable_progress_bar": True}
    trainer = tiny_trainer(folder, callbacks=callbacks, max_epochs=2, **options)
    with redirect_stdout(printed):
        trainer.fit(tiny_module(data), data)
    lines, checkpoint = printed.getvalue().rstrip().splitlines(), str(folder / "checkpoints" / "last.ckpt")
    run = {"folder": folder / "version_0", "trainer": trainer, "data": data, "panel": panel}
    return SimpleNamespace(**run, checkpoint=checkpoint, lines=lines)


def test_fit_logs_the_contract_keys(fitted):
    with (fitted.folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    losses = {"train/loss", *(f"train/{key.split('/')[1]}/loss" for key in PRIMARY)}
    assert {"epoch", "step"} | set(PRIMARY) | losses <= set(rows[0])
    validated = [row for row in rows if row["val/depth/abs_err"]]
    assert [row["epoch"] for row in validated] == ["0", "1"]
    last = read(fitted.folder / "val_metrics.json")["val/depth/abs_err"]
    assert last["value"] == pytest.approx(float(validated[-1]["val/depth/abs_err"]))


def test_run_resumed_at_its_end_shows_its_metrics_and_says_so(fitted, tmp_path):
    callbacks = [ResultsTable(), ModelCheckpoint(tmp_path / "checkpoints")]
    trainer = tiny_trainer(tmp_path, callbacks=callbacks, max_epochs=2, enable_checkpointing=True)
    with pytest.warns(UserWarning, match=r"Nothing was trained.*trainer\.max_epochs"):
        trainer.fit(tiny_module(fitted.data), fitted.data, ckpt_path=fitted.checkpoint, weights_only=True)
    values = [row["value"] for row in read(fitted.folder / "val_metrics.json").values()]
    assert [row["value"] for row in read(tmp_path / "val_metrics.json").values()] == values


def test_val_metrics_hold_unit_epoch_constant_and_gain(fitted):
    rows = read(fitted.folder / "val_metrics.json")
    assert {key: row["unit"] for key, row in rows.items()} == PRIMARY
    for task, (key, row) in zip(fitted.data.tasks, rows.items(), strict=True):
        assert list(row) == ["value", "unit", "higher_is_better", "primary", "epoch", "constant", "gain_percent"]
        assert (row["higher_is_better"], row["primary"], row["epoch"]) == (task.higher_is_better, True, 1)
        assert row["value"] == pytest.approx(float(fitted.trainer.callback_metrics[key]))
        sign = 1 if task.higher_is_better else -1
        gain = sign * 100 * (row["value"] - row["constant"]) / row["constant"]
        assert row["gain_percent"] == pytest.approx(gain)


def test_val_table_shows_every_metric_and_ends_with_paths(fitted):
    paths = [fitted.folder / "val_metrics.json", fitted.panel.path]
    assert [Path(line) for line in fitted.lines[-2:]] == paths
    for key, row in read(paths[0]).items():
        (line,) = (line for line in fitted.lines if key in line)
        numbers = [f"{row['value']:.3f} {row['unit']}", f"{row['constant']:.3f} {row['unit']}"]
        assert re.findall(r"[-+]?[\d.]+ \S+", line) == [*numbers, f"{row['gain_percent']:+.1f} %"]
    assert any("after 2 epochs" in line for line in fitted.lines)


def test_val_metrics_end_with_delta_m(tmp_path, capsys):
    data = tiny_data(tasks=["depth"], labels="full", train_images=4)
    module = tiny_module(data, single_task_baselines={"depth": 10.0})
    tiny_trainer(tmp_path, callbacks=[ResultsTable(constant_baseline=True)]).fit(module, data)
    depth, gain = read(tmp_path / "val_metrics.json").values()
    assert gain["value"] == pytest.approx(100 * (10 - depth["value"]) / 10, rel=1e-4)
    assert (gain["unit"], gain["higher_is_better"], "constant" in gain) == ("%", True, False)
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "val/delta_m" in line)
    assert f"{gain['value']:.3f} %" in line


def test_constant_baseline_is_off_by_default(tmp_path, capsys):
    data = tiny_data(tasks=["depth"], labels="full", train_images=4)
    tiny_trainer(tmp_path, callbacks=[ResultsTable()]).fit(tiny_module(data), data)
    (row,) = read(tmp_path / "val_metrics.json").values()
    assert list(row) == ["value", "unit", "higher_is_better", "primary", "epoch"]
    printed = capsys.readouterr().out
    assert printed.rstrip().endswith(str(tmp_path / "val_metrics.json"))
    assert "better than" not in printed


def test_constant_baseline_is_skipped_beside_other_ranks():
    trainer = SimpleNamespace(world_size=2, datamodule=tiny_data())
    with pytest.warns(UserWarning, match=r"results\.constant_baseline"):
        assert ResultsTable(constant_baseline=True)._constants(trainer, []) is None


@pytest.mark.parametrize("command", ["fit", "test"])
@pytest.mark.parametrize("options", [{"fast_dev_run": True}, {"limit_val_batches": 0, "limit_test_batches": 0}])
def test_a_trial_or_empty_evaluation_writes_nothing(tmp_path, capsys, monkeypatch, command, options):
    monkeypatch.chdir(tmp_path)
    data = tiny_data(tasks=["depth"], labels="full", train_images=4)
    trainer = tiny_trainer(tmp_path, callbacks=[ResultsTable(constant_baseline=True)], **options)
    getattr(trainer, command)(tiny_module(data), data)
    assert "Validation after" not in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} <= {"label_mask.json"}


def test_fit_without_validation_names_its_checkpoint(tmp_path, capsys):
    data = tiny_data(tasks=["depth"], labels="full", train_images=4)
    callbacks = [ResultsTable(), ModelCheckpoint(tmp_path / "checkpoints", filename="last")]
    options = {"logger": CSVLogger(tmp_path, name="", version=""), "enable_checkpointing": True}
    tiny_trainer(tmp_path, callbacks=callbacks, limit_val_batches=0, **options).fit(tiny_module(data), data)
    printed = capsys.readouterr().out
    assert f"--ckpt_path {tmp_path / 'checkpoints' / 'last.ckpt'}" in printed
    assert "Validation after" not in printed


def evaluate(folder, module, data, ckpt_path=None, **trainer):
    callback = ResultsTable()
    trainer = tiny_trainer(folder, callbacks=[callback], **trainer)
    trainer.test(module, data, ckpt_path=ckpt_path, verbose=False)
    return SimpleNamespace(folder=folder, trainer=trainer, module=module, data=data, callback=callback)


@pytest.fixture(scope="module")
def tested(tmp_path_factory):
    data = tiny_data()
    module = tiny_module(data, single_task_baselines={task.name: 10.0 for task in data.tasks})
    with redirect_stdout(StringIO()):
        return evaluate(tmp_path_factory.mktemp("tested"), module, data, enable_progress_bar=True)


@pytest.mark.parametrize("options", [{}, {"fast_dev_run": True}])
@pytest.mark.parametrize("callbacks", [[], [ResultsTable()]])
def test_test_prints_one_table(tmp_path, monkeypatch, capsys, callbacks, options):
    monkeypatch.chdir(tmp_path)
    data = tiny_data(tasks=["depth"], labels="full", train_images=4)
    tiny_trainer(tmp_path, callbacks=callbacks, **options).test(tiny_module(data), data)
    printed, has_own = capsys.readouterr().out, bool(callbacks) and not options
    assert ("Random weights" in printed) == has_own
    assert ("test/depth/abs_err" in printed) != has_own  # in Lightning's table alone


def test_test_metrics_hold_every_metric_with_its_spec(tested):
    tasks, rows = tested.data.tasks, read(tested.folder / "test_metrics.json")
    specs = {f"test/{t.name}/{name}": t.metric_spec(name) for t in tasks for name in t.metrics().compute()}
    assert list(rows) == [*specs, "test/delta_m"]
    for key, row in rows.items():
        per_class = ["classes"] if key in ("test/semseg/miou", "test/human_parts/miou") else []
        assert list(row) == ["value", "unit", "higher_is_better", "primary", "epoch", "split", "trained", *per_class]
        assert row["split"] == "val"
        assert row["value"] == float(tested.trainer.callback_metrics[key])
        assert (row["epoch"], row["trained"]) == (None, False)
    for key, spec in specs.items():
        assert (rows[key]["unit"], rows[key]["higher_is_better"]) == spec
    assert (rows["test/delta_m"]["unit"], rows["test/delta_m"]["higher_is_better"]) == ("%", True)
    primary = [f"test/{task.name}/{task.primary_metric}" for task in tasks]
    assert [key for key, row in rows.items() if row["primary"]] == [*primary, "test/delta_m"]


def test_test_markdown_is_one_row_with_units_and_arrows(tested):
    rows = read(tested.folder / "test_metrics.json")
    headers, rule, cells = (tested.folder / "test_metrics.md").read_text().partition("\n\n")[0].splitlines()
    assert headers.startswith("| semseg miou % \u2191 | semseg pixel_acc % \u2191 | ")
    assert " | depth abs_err m \u2193 | " in headers
    assert headers.endswith(" | delta_m % \u2191 |")
    assert rule == "|" + " ---: |" * len(rows)
    values = [row["value"] for row in rows.values()]
    assert [float(cell) for cell in cells.strip("| ").split(" | ")] == pytest.approx(values, abs=0.006)


def test_test_metrics_and_markdown_hold_scores_of_each_class(tested):
    rows, text = read(tested.folder / "test_metrics.json"), (tested.folder / "test_metrics.md").read_text()
    for task in tested.data.tasks[:2]:
        row = rows[f"test/{task.name}/miou"]
        assert list(row["classes"]) == list(task.class_names)
        ious = [scores["iou"] for scores in row["classes"].values() if scores["iou"] is not None]
        assert sum(ious) / len(ious) == pytest.approx(row["value"])
        assert sum(scores["share"] for scores in row["classes"].values()) == pytest.approx(100)
        hits = [x["pixel_acc"] * x["share"] / 100 for x in row["classes"].values() if x["pixel_acc"] is not None]
        assert sum(hits) == pytest.approx(rows[f"test/{task.name}/pixel_acc"]["value"])
        assert len([line for line in text.splitlines() if line.startswith(f"| {task.class_names[1]} | ")]) == 1
        with Image.open(tested.folder / f"confusion_{task.name}.png") as picture:
            assert picture.height > CELL * len(task.class_names)


@pytest.mark.parametrize("width", ["80", "400"])
def test_test_tables_fit_any_terminal_width(tested, capsys, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", width)
    tested.callback.on_test_end(tested.trainer, tested.module)
    printed = capsys.readouterr().out
    assert "Random weights: no checkpoint was loaded" in printed
    markdown = (tested.folder / "test_metrics.md").read_text().partition("\n\n")[0].splitlines()
    headers, _, cells = (line.strip("| ").split(" | ") for line in markdown)
    for header, cell in zip(headers[:-1], cells[:-1], strict=True):
        task, metric = header.split(" ", 1)
        name, _, unit = metric.partition(" ")
        assert task in printed
        assert re.search(rf"┃ +{name} ┃", printed)
        assert re.search(rf"┃ +{re.escape(unit)} ┃", printed)
        assert re.search(rf"│ +{re.escape(cell)} │", printed), cell
    paths = [str(tested.folder / name) for name in ("test_metrics.json", "test_metrics.md")]
    assert printed.rstrip().splitlines()[-2:] == paths
    tables_side_by_side = max(line.count("┡") for line in printed.splitlines())
    assert (tables_side_by_side == 6) == (width == "400")


@pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint")
def test_test_metrics_name_the_epoch_of_the_checkpoint(fitted, tmp_path):
    module = tiny_module(fitted.data)
    evaluate(tmp_path, module, fitted.data, fitted.checkpoint, limit_test_batches=1)
    assert {row["epoch"] for row in read(tmp_path / "test_metrics.json").values()} == {1}
    assert all(row["trained"] for row in read(tmp_path / "test_metrics.json").values())


def depth_run(folder, *callbacks, **trainer):
    """Train three epochs on depth alone, and return trainer, module and data."""
    data = tiny_data(tasks=["depth"], labels="full", train_images=4, val_images=2)
    callbacks = [ResultsTable(), RunCheckpoint("val/depth/abs_err", save_top_k=-1), *callbacks]
    options = {"max_epochs": 3, "enable_checkpointing": True} | trainer
    runner, module = tiny_trainer(folder, callbacks=callbacks, **options), tiny_module(data)
    runner.fit(module, data)
    return runner, module, data


def test_val_table_names_the_epoch_of_its_metrics(tmp_path, capsys):
    depth_run(tmp_path, check_val_every_n_epoch=2)
    assert read(tmp_path / "val_metrics.json")["val/depth/abs_err"]["epoch"] == 1
    assert "Validation after 2 of 3 epochs" in capsys.readouterr().out


def test_test_after_fit_names_the_epoch_of_its_weights(tmp_path, capsys):
    runner, module, data = depth_run(tmp_path)
    kept = {int(path.stem.split("=")[1].split("-")[0]): path for path in (tmp_path / "checkpoints").glob("epoch=*")}
    for checkpoint, epoch in ((None, 2), (kept[1], 1), (kept[0], 0)):
        runner.test(module, data, ckpt_path=checkpoint, verbose=False)
        (found,) = {(row["epoch"], row["trained"]) for row in read(tmp_path / "test_metrics.json").values()}
        assert found == (epoch, True)
        assert f"Test after {epoch + 1} epochs" in capsys.readouterr().out


def test_test_of_a_stage_names_its_last_epoch(tmp_path):
    _, _, data = depth_run(tmp_path, LabelDiscovery(stages=2), max_epochs=2)
    stage = HTTModule.load_from_checkpoint(tmp_path / "checkpoints" / "stage_1.ckpt", weights_only=True)
    evaluate(tmp_path / "test", stage, data)
    assert {row["epoch"] for row in read(tmp_path / "test" / "test_metrics.json").values()} == {1}


def test_interval_without_validation_is_a_warning(tmp_path):
    with pytest.warns(UserWarning, match=r"check_val_every_n_epoch is 4.* of 3 epochs"):
        depth_run(tmp_path, check_val_every_n_epoch=4)
    assert not (tmp_path / "val_metrics.json").exists()


def test_a_checkpoint_restores_the_last_validation(fitted):
    stored = torch.load(fitted.checkpoint, weights_only=True)["callbacks"]["ResultsTable"]
    callback = ResultsTable()
    callback.load_state_dict(stored)
    values = {key: row["value"] for key, row in read(fitted.folder / "val_metrics.json").items()}
    assert callback.state_dict() == {"values": values, "epoch": 1}


def test_a_metric_without_labels_is_null_and_a_dash(tmp_path):
    class Unlabeled(SyntheticScenes):
        def label(self, index, task):
            label = super().label(index, task)
            return np.full_like(label, np.nan) if task == "depth" else label

    data = tiny_data(tasks=["semseg", "depth"])
    counts, size, seed, cache = data.counts, data.image_size, data.scene_seed, data.cache
    data.build_dataset = lambda split: Unlabeled(split, counts[split], size, seed, cache)
    evaluate(tmp_path, tiny_module(data), data)
    rows = read(tmp_path / "test_metrics.json")
    assert rows["test/depth/abs_err"]["value"] is rows["test/depth/delta1"]["value"] is None
    assert rows["test/semseg/miou"]["value"] > 0
    assert (tmp_path / "test_metrics.md").read_text().splitlines()[2].count("| - ") == 7


def test_values_logged_by_others_are_left_out(tmp_path):
    class Chatty(HTTModule):
        def on_test_epoch_end(self):
            super().on_test_epoch_end()
            self.log_dict({"test/loss": 1.0, "test/elsewhere/loss": 1.0})

    data = tiny_data(tasks="saliency", labels="full")
    run = evaluate(tmp_path, Chatty(data.tasks, backbone=BACKBONE, token_dim=8), data)
    assert run.trainer.callback_metrics["test/loss"] == 1
    assert {key.split("/")[1] for key in read(tmp_path / "test_metrics.json")} == {"saliency"}
