"""Checkpoints that a run keeps: the last one, and the best by a metric."""

import json
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping

from htt_lightning import HTTModule, LabelDiscovery
from htt_lightning.callbacks import RunCheckpoint
from htt_lightning.callbacks.monitors import metric_directions, resolve_monitors
from htt_lightning.errors import ConfigError
from htt_lightning.io.checkpoints import last_epoch
from tests.tiny import BACKBONE, tiny_data, tiny_module, tiny_trainer

ERRORS = (3.0, 1.0, 4.0, 2.0, 5.0, 0.5)
"""Values of the metric by epoch; lower is better."""
BASELINES = {"single_task_baselines": {"depth": 2.0}}


class Scripted(HTTModule):
    """Module that logs given values, and reads no metric."""

    def _log_metrics(self, split, metrics):
        for metric in metrics.values():
            metric.reset()
        self.log_dict({"val/depth/abs_err": ERRORS[self.current_epoch], "val/depth/delta1": ERRORS[self.current_epoch]})


def data():
    return tiny_data(tasks="depth", labels="full", train_images=4, val_images=2, batch_size=2)


def fit(folder, callback, *callbacks, ckpt_path=None, module=Scripted, **trainer):
    loaders = data()
    made = module(loaders.tasks, backbone=BACKBONE, token_dim=8, lr=1e-3)
    options = {"max_epochs": 5, "enable_checkpointing": True} | trainer
    runner = tiny_trainer(folder, callbacks=[callback, *callbacks], **options)
    runner.fit(made, loaders, ckpt_path=ckpt_path)
    return callback


def epochs(folder):
    """Epoch of every kept checkpoint and of the last one, as the files themselves say."""
    stored = {path.stem: torch.load(path, weights_only=True) for path in (folder / "checkpoints").glob("*.ckpt")}
    found = {name: last_epoch(checkpoint) for name, checkpoint in stored.items()}
    last = found.pop("last", None)
    return sorted(found.values()), last


def best_file(folder):
    return json.loads((folder / "checkpoints" / "best.json").read_text())


def test_last_checkpoint_alone_is_kept_by_default(tmp_path):
    callback = fit(tmp_path, RunCheckpoint(), max_epochs=2)
    assert epochs(tmp_path) == ([], 1)
    assert not (tmp_path / "checkpoints" / "best.json").exists()
    assert callback.best_model_path == callback.last_model_path == str(tmp_path / "checkpoints" / "last.ckpt")


def test_best_three_and_last_are_kept(tmp_path):
    fit(tmp_path, RunCheckpoint("val/depth/abs_err", save_top_k=3))
    assert epochs(tmp_path) == ([0, 1, 3], 4)
    values = {"epoch=0-step=2.ckpt": 3.0, "epoch=1-step=4.ckpt": 1.0, "epoch=3-step=8.ckpt": 2.0}
    expected = {"monitor": "val/depth/abs_err", "mode": "min", "best": "epoch=1-step=4.ckpt", "values": values}
    assert best_file(tmp_path) == expected


def test_direction_of_the_metric_decides(tmp_path):
    fit(tmp_path, RunCheckpoint("val/depth/delta1"))
    assert epochs(tmp_path) == ([4], 4)
    assert best_file(tmp_path)["mode"] == "max"


def test_validation_every_second_epoch_keeps_those_epochs(tmp_path):
    fit(tmp_path, RunCheckpoint("val/depth/abs_err", save_top_k=-1), check_val_every_n_epoch=2)
    assert epochs(tmp_path) == ([1, 3], 4)


def test_training_metric_is_that_of_its_epoch(tmp_path):
    class Losses(Scripted):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            self.log("train/depth/other", ERRORS[self.current_epoch], on_step=False, on_epoch=True, batch_size=2)
            return loss

    callback = RunCheckpoint("train/depth/other", save_top_k=2, mode="min")
    fit(tmp_path, callback, module=Losses, check_val_every_n_epoch=2)
    assert epochs(tmp_path) == ([1, 3], 4)


@pytest.mark.parametrize("interval", [0.5, "00:00:00:00"], ids=["half an epoch", "time"])
def test_several_validations_in_an_epoch_are_compared(tmp_path, interval):
    fit(tmp_path, RunCheckpoint("val/depth/abs_err", save_top_k=2), val_check_interval=interval, max_epochs=2)
    assert set(best_file(tmp_path)["values"]) == {"epoch=1-step=3.ckpt", "epoch=1-step=4.ckpt"}
    assert epochs(tmp_path) == ([1, 1], 1)


def test_every_epoch_is_kept_on_demand(tmp_path):
    fit(tmp_path, RunCheckpoint(save_top_k=-1), max_epochs=3, check_val_every_n_epoch=2)
    assert epochs(tmp_path) == ([0, 1, 2], 2)


def test_checkpoints_within_an_epoch_have_their_own_name(tmp_path):
    fit(tmp_path, RunCheckpoint(every_n_train_steps=1, save_top_k=-1), max_epochs=1)
    names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert names == {"epoch=0-step=1.ckpt", "epoch=0-step=2.ckpt", "last.ckpt"}
    stored = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert stored["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"] == 1


def test_last_checkpoint_can_be_left_out(tmp_path):
    fit(tmp_path, RunCheckpoint("val/depth/abs_err", save_last=False), max_epochs=2)
    assert epochs(tmp_path) == ([1], None)


def test_last_checkpoint_is_last_epoch_at_a_stage_border(tmp_path):
    border = []

    class Border(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch:
                stored = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
                border.append(last_epoch(stored))

    callbacks = (LabelDiscovery(stages=2), Border())
    callback = RunCheckpoint("val/depth/abs_err", save_top_k=1)
    fit(tmp_path, callback, *callbacks, max_epochs=3, check_val_every_n_epoch=2)
    assert border == [0, 1, 2, 3, 4]
    assert epochs(tmp_path) == ([2, 5], 5)  # the network of stage 1, and the best of all epochs


@pytest.mark.parametrize("ckpt_path", ["last.ckpt", "epoch=1-step=4.ckpt"])
def test_resumed_run_keeps_the_best_of_both_folders(tmp_path, ckpt_path):
    fit(tmp_path / "first", RunCheckpoint("val/depth/abs_err", save_top_k=2), max_epochs=2)
    resumed = RunCheckpoint("val/depth/abs_err", save_top_k=2)
    fit(tmp_path / "second", resumed, ckpt_path=tmp_path / "first" / "checkpoints" / ckpt_path, max_epochs=4)
    assert epochs(tmp_path / "second") == ([3], 3)
    best = "../../first/checkpoints/epoch=1-step=4.ckpt"
    assert best_file(tmp_path / "second")["values"] == {best: 1.0, "epoch=3-step=8.ckpt": 2.0}
    assert best_file(tmp_path / "second")["best"] == best


def test_deleted_best_checkpoint_is_forgotten(tmp_path):
    fit(tmp_path / "first", RunCheckpoint("val/depth/abs_err", save_top_k=2), max_epochs=2)
    (tmp_path / "first" / "checkpoints" / "epoch=1-step=4.ckpt").unlink()
    resumed = RunCheckpoint("val/depth/abs_err", save_top_k=2)
    fit(tmp_path / "second", resumed, ckpt_path=tmp_path / "first" / "checkpoints" / "last.ckpt", max_epochs=3)
    assert best_file(tmp_path / "second")["best"] == "../../first/checkpoints/epoch=0-step=2.ckpt"


def test_weights_alone_have_a_best_checkpoint(tmp_path):
    fit(tmp_path, RunCheckpoint("val/depth/abs_err", save_weights_only=True), max_epochs=3)
    assert epochs(tmp_path) == ([1], 2)
    assert best_file(tmp_path)["best"] == "epoch=1-step=4.ckpt"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"save_top_k": 3}, r"checkpoint\.save_top_k must be -1, 0 or 1 .*got 3\. Add --checkpoint\.monitor"),
        ({"save_top_k": -2}, r"checkpoint\.save_top_k must be at least -1, got -2"),
        ({"monitor": "val/loss", "filename": "last"}, r"checkpoint\.filename must not be last"),
    ],
)
def test_arguments_are_checked(arguments, message):
    with pytest.raises(ConfigError, match=message):
        RunCheckpoint(**arguments)


def resolve(*callbacks, limit_val_batches=1.0, discovery=None, **changes):
    loaders = data()
    trainer = SimpleNamespace(callbacks=[*callbacks, *([discovery] if discovery else [])])
    trainer.limit_val_batches = limit_val_batches
    resolve_monitors(trainer, tiny_module(loaders, **changes), loaders)


@pytest.mark.parametrize(
    ("monitor", "mode"),
    [
        ("val/delta_m", "max"),
        ("val/depth/delta1", "max"),
        ("val/depth/abs_err", "min"),
        ("train/loss", "min"),
        ("train/depth/loss", "min"),
        ("train/pseudo_label_loss", "min"),
        ("train/depth/pseudo_label_confidence", "max"),
        ("val/depth/pseudo_label_accuracy", "max"),
    ],
)
def test_monitors_take_the_direction_of_the_metric(monitor, mode):
    stopping, keeping = EarlyStopping(monitor, min_delta=0.5), RunCheckpoint(monitor)
    resolve(stopping, keeping, discovery=LabelDiscovery(), **BASELINES)
    assert (stopping.mode, keeping.mode) == (mode, mode)
    better, worse = (2.0, 1.0) if mode == "max" else (1.0, 2.0)
    assert stopping.monitor_op(torch.tensor(better) - stopping.min_delta, torch.tensor(worse))
    assert not stopping.monitor_op(torch.tensor(worse) - stopping.min_delta, torch.tensor(better))
    assert stopping.best_score == keeping.kth_value == (-torch.inf if mode == "max" else torch.inf)


@pytest.mark.parametrize(
    ("callback", "changes", "message"),
    [
        (RunCheckpoint("val/dpeth/abs_er"), {}, "checkpoint.monitor must .*'val/dpeth/abs_er'.*'val/depth/abs_err'"),
        (EarlyStopping("rmse"), {}, "EarlyStopping.monitor must be .*'rmse'. Did you mean 'val/depth/rmse'"),
        (RunCheckpoint("val/delta_m"), {}, "single_task_baselines must .*monitor is val/delta_m, got none. Set it"),
        (RunCheckpoint("val/delta_m", mode="min"), BASELINES, "checkpoint.mode must be max for val/delta_m, got min"),
        (RunCheckpoint("train/pseudo_label_loss"), {"discovery": LabelDiscovery(stages=1)}, "got 'train/pseudo_label"),
        (RunCheckpoint("val/depth/rmse"), {"limit_val_batches": 0}, "trainer.limit_val_batches must be above 0"),
    ],
)
def test_monitor_without_metric_is_an_error(callback, changes, message):
    with pytest.raises(ConfigError, match=message):
        resolve(callback, **changes)


def test_direction_of_the_schedule_is_checked():
    def schedule(monitor, **more):
        return {"lr_scheduler": {"class_path": "a.ReduceLROnPlateau", "init_args": {"monitor": monitor, **more}}}

    resolve(**schedule("val/depth/abs_err"))
    resolve(**schedule("val/depth/delta1", mode="max"))
    with pytest.raises(ConfigError, match=r"lr_scheduler\.mode must be max for val/depth/delta1, got min"):
        resolve(**schedule("val/depth/delta1"))
    with pytest.raises(ConfigError, match=r"lr_scheduler\.monitor must .*'abs_er'.*'val/depth/abs_err'"):
        resolve(**schedule("abs_er"))


def test_consistency_loss_may_be_monitored():
    loaders = tiny_data(tasks="depth,semseg", labels="one-label")
    module = tiny_module(loaders, consistency="fixmatch")
    assert metric_directions(module, [], loaders)["train/consistency_loss"] is False


def test_metric_of_ones_own_needs_a_mode(tmp_path):
    with pytest.raises(ConfigError, match=r"checkpoint\.mode must be min or max for your own metric val/mine"):
        fit(tmp_path, RunCheckpoint("val/mine"))
