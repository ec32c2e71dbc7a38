"""Callbacks of Lightning in runs of two stages: each does in each stage what it promises, or is refused."""

import csv
import math

import pytest
import torch
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    BatchSizeFinder,
    Callback,
    EarlyStopping,
    EMAWeightAveraging,
    GradientAccumulationScheduler,
    LearningRateFinder,
    LearningRateMonitor,
    ModelCheckpoint,
    ModelPruning,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning.pytorch.loggers import CSVLogger

from htt_lightning import HTTModule, LabelDiscovery
from htt_lightning.callbacks.run_checkpoint import RunCheckpoint
from htt_lightning.errors import ConfigError
from tests.callbacks.test_label_discovery import few, fitted, state_of, stored, student_of, teacher_of
from tests.conftest import ROOT
from tests.test_module import assert_same, weights
from tests.tiny import tiny_module

MONITOR = {"monitor": "val/depth/abs_err", "min_delta": 1e6}  # never improves enough


def two_tasks(**changes):
    """Return three batches of four images, for tasks whose metrics are quick."""
    return few(**({"tasks": "semseg,depth", "labels": "full"} | changes))


def two_stages(folder, *callbacks, **options):
    """Train two stages, by default of two epochs; a checkpoint of every epoch is kept."""
    options = {"max_epochs": 2, "data": two_tasks()} | options
    return fitted(folder, LabelDiscovery(), callbacks=[*callbacks], **options)


class Steps(Callback):
    """Record the stage, the learning rate and the optimizer steps of every epoch."""

    def __init__(self):
        self.rates, self.steps = [], []

    def on_train_epoch_start(self, trainer, pl_module):
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    def on_train_epoch_end(self, trainer, pl_module):
        self.steps.append(trainer.global_step - sum(self.steps))


class Validated(Callback):
    """Keep the weights that were validated."""

    def __init__(self):
        self.weights = []

    def on_validation_batch_start(self, trainer, pl_module, *_):
        self.weights.append(weights(pl_module))


def early_stopping(folder):
    """Two epochs of five without an improvement end each stage; a run resumed there knows it."""
    module, trainer = two_stages(folder, EarlyStopping(**MONITOR, patience=1), steps := Steps(), max_epochs=5)
    assert trainer.current_epoch == 4
    assert steps.rates == 2 * [pytest.approx(1e-3), pytest.approx(1e-3 * 0.8**0.9)]
    assert [state_of(stored(folder, epoch))["stage"] for epoch in range(4)] == [0, 0, 1, 1]
    assert_same(teacher_of(folder, 3), student_of(stored(folder, 1)))
    assert (trainer.max_epochs, trainer.min_epochs) == (5, 0)
    for epoch in (1, 3):
        again = fitted(
            folder / f"again_{epoch}",
            LabelDiscovery(),
            9,
            two_tasks(),
            callbacks=[EarlyStopping(**MONITOR, patience=1)],
            max_epochs=5,
            ckpt_path=folder / "kept" / f"epoch={epoch}.ckpt",
        )
        assert_same(weights(again[0]), weights(module))


def minimum_of_epochs(folder):
    """``min_epochs`` counts within a stage, as ``max_epochs`` does."""
    _, trainer = two_stages(folder, EarlyStopping(**MONITOR, patience=1), max_epochs=5, min_epochs=3)
    assert trainer.current_epoch == 6


def training_metric(folder):
    """A metric of training has a value when an epoch ends, and not at a validation before that."""
    stopping = EarlyStopping("train/loss", min_delta=1e6, patience=1)
    keeping = ModelCheckpoint(folder / "best", monitor="train/loss", save_top_k=-1, filename="{epoch}")
    options = {"max_epochs": 6, "check_val_every_n_epoch": 2}
    _, trainer = two_stages(folder, stopping, keeping, RunCheckpoint(dirpath=folder / "last"), **options)
    assert trainer.current_epoch == 4
    assert sorted(path.stem for path in (folder / "best").iterdir()) == [f"epoch={epoch}" for epoch in range(4)]


def rising_metric(folder):
    """A metric without a given mode, of which higher is better, has no best value when a stage begins."""
    stopping, seen = EarlyStopping("val/depth/delta1", patience=9), []

    class Begin(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            seen.append(float(stopping.best_score))

    _, trainer = two_stages(folder, stopping, RunCheckpoint(dirpath=folder / "last"), Begin(), max_epochs=1)
    assert trainer.current_epoch == 2
    assert seen == 2 * [-math.inf]


def averaging(callback):
    """Average the weights of a stage: they are validated, saved, and the teacher's."""

    def check(folder):
        module, trainer = two_stages(folder, callback(), seen := Validated())
        assert trainer.current_epoch == 4
        for epoch in (1, 3):
            assert_same(student_of(stored(folder, epoch)), seen.weights[epoch])
            current, key = stored(folder, epoch)["current_model_state"], "heads.depth.classify.weight"
            assert not torch.equal(current[f"net.{key}"], seen.weights[epoch][key])
        assert_same(teacher_of(folder, 3), seen.weights[1])
        assert_same(weights(HTTModule.load_from_checkpoint(folder / "checkpoints" / "stage_1.ckpt")), seen.weights[1])
        assert_same(weights(module), seen.weights[3])
        assert stored(folder, 3)["averaging_state"]["n_averaged"] == trainer.global_step // 2  # of this stage alone
        resumed, _ = fitted(
            folder / "again",
            LabelDiscovery(),
            9,
            two_tasks(),
            callbacks=[callback()],
            max_epochs=2,
            ckpt_path=folder / "kept" / "epoch=1.ckpt",
        )
        assert_same(weights(resumed), weights(module))

    return check


def learning_rate_finder(folder):
    """The run equals one with the rate that was found, and both stages begin at it."""
    finder, steps = LearningRateFinder(1e-5, 1e-2, 16, early_stop_threshold=None), Steps()
    module, _ = two_stages(folder / "found", finder, steps, data=two_tasks(batch_size=2))
    rate = finder.optimal_lr.suggestion()
    assert rate not in (None, 1e-3)
    assert steps.rates == 2 * [pytest.approx(rate), pytest.approx(rate * 0.5**0.9)]
    assert stored(folder / "found", 3)["hyper_parameters"]["lr"] == rate
    given, _ = two_stages(folder / "given", module=tiny_module(two_tasks(), lr=rate), data=two_tasks(batch_size=2))
    assert_same(weights(module), weights(given))


def learning_rate_finder_of_another_optimizer(folder):
    """The rate of a given optimizer is found, too, and its groups keep their ratio."""
    finder, steps = LearningRateFinder(1e-5, 1e-2, 16, early_stop_threshold=None), Steps()
    adamw = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-4}}
    module = tiny_module(two_tasks(), optimizer=adamw, backbone_lr_factor=0.1)
    two_stages(folder, finder, steps, module=module, data=two_tasks(batch_size=2))
    rate = finder.optimal_lr.suggestion()
    assert steps.rates == 2 * [pytest.approx(0.1 * rate), pytest.approx(0.1 * rate * 0.5**0.9)]


def learning_rate_monitor(folder):
    """The rates in the log are those of the schedule, which restarts."""
    two_stages(folder, LearningRateMonitor(), logger=CSVLogger(folder, name="", version=""))
    with (folder / "metrics.csv").open() as file:
        rates = [float(row["lr-Adam"]) for row in csv.DictReader(file) if row["lr-Adam"]]
    assert rates == 2 * [pytest.approx(1e-3), pytest.approx(1e-3 * 0.5**0.9)]


def batch_size_finder(folder):
    """The run equals one with the size that was found."""
    finder = BatchSizeFinder(init_val=1, max_trials=2, steps_per_trial=1)
    module, _ = two_stages(folder / "found", finder, data=two_tasks())
    assert finder.optimal_batch_size == 2
    given, trainer = two_stages(folder / "given", data=two_tasks(batch_size=2))
    assert trainer.global_step == 4 * 6
    assert_same(weights(module), weights(given))


def accumulation(folder):
    """Epochs count from the start of a stage, in a resumed run, too."""
    scheduler = GradientAccumulationScheduler({1: 3})
    module, _ = two_stages(folder, scheduler, steps := Steps())
    assert steps.steps == [3, 1, 3, 1]
    assert scheduler.scheduling == {1: 3, 0: 1}
    path = folder / "kept" / "epoch=2.ckpt"
    again = fitted(
        folder / "again",
        LabelDiscovery(),
        9,
        two_tasks(),
        callbacks=[GradientAccumulationScheduler({1: 3})],
        max_epochs=2,
        ckpt_path=path,
    )
    assert_same(weights(again[0]), weights(module))


def stochastic_weight_averaging(folder):
    """In a single stage: the averaged weights are validated and saved, after an epoch for BatchNorm."""
    swa = StochasticWeightAveraging(swa_lrs=1e-3, swa_epoch_start=1, annealing_epochs=1)
    module, trainer = fitted(
        folder, LabelDiscovery(stages=1), data=two_tasks(), callbacks=[swa, seen := Validated()], max_epochs=2
    )
    assert trainer.current_epoch == 3
    assert_same(student_of(stored(folder, 2)), seen.weights[2])
    assert_same(weights(module), seen.weights[2])


def stop(hook):
    """Another callback that stops training, as ``Timer`` does, ends the run and not the stage."""

    class Stop(Callback):
        pass

    setattr(Stop, hook, lambda self, trainer, *_: setattr(trainer, "should_stop", True))

    def check(folder):
        with pytest.warns(UserWarning, match="Training ended in stage 1 of 2"):
            _, trainer = two_stages(folder, Stop(), EarlyStopping(**MONITOR, patience=3))
        assert trainer.global_step == (1 if hook == "on_train_batch_end" else 3)

    return check


KEPT = {
    "EarlyStopping": early_stopping,
    "EarlyStopping, min_epochs": minimum_of_epochs,
    "EarlyStopping, ModelCheckpoint, metric of training": training_metric,
    "EarlyStopping, RunCheckpoint, rising metric": rising_metric,
    "WeightAveraging": averaging(WeightAveraging),
    "EMAWeightAveraging": averaging(lambda: EMAWeightAveraging(decay=0.5)),
    "LearningRateFinder": learning_rate_finder,
    "LearningRateFinder, AdamW": learning_rate_finder_of_another_optimizer,
    "LearningRateMonitor": learning_rate_monitor,
    "BatchSizeFinder": batch_size_finder,
    "GradientAccumulationScheduler": accumulation,
    "StochasticWeightAveraging": stochastic_weight_averaging,
    "stop of a batch": stop("on_train_batch_end"),
    "stop of an epoch": stop("on_train_epoch_end"),
}


@pytest.mark.parametrize("check", KEPT.values(), ids=list(KEPT))
def test_callback_keeps_its_promise_in_each_stage(check, tmp_path):
    check(tmp_path)


REFUSED = {
    "StochasticWeightAveraging": (lambda: StochasticWeightAveraging(swa_lrs=1e-3), {}, "2 stages"),
    "BackboneFinetuning": (BackboneFinetuning, {}, "model.freeze_backbone"),
    "ModelPruning": (lambda: ModelPruning("l1_unstructured"), {}, "renames weights"),
    "EMAWeightAveraging": (lambda: EMAWeightAveraging(update_starting_at_step=5), {}, "update_starting_at_step 5"),
    "GradientAccumulationScheduler": (
        lambda: GradientAccumulationScheduler({1: 3}),
        {"lr_interval": "step"},
        "model.lr_interval epoch",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_callback_is_refused_before_training_with_the_reason(name, tmp_path):
    callback, options, reason = REFUSED[name]
    with pytest.raises(ConfigError, match=f"trainer.callbacks must be without {name}, .*{reason}"):
        two_stages(tmp_path, callback(), module=tiny_module(two_tasks(), **options))
    assert not list(tmp_path.rglob("*.ckpt"))


def test_page_lists_every_callback_that_was_tried():
    page = (ROOT / "docs" / "lightning.md").read_text()
    tried = [name.partition(",")[0] for name in (*KEPT, *REFUSED) if not name.startswith("stop of")]
    assert [name for name in tried if f"| `{name}`" not in page and f", `{name}`" not in page] == []


@pytest.mark.parametrize("finder", [LearningRateFinder, BatchSizeFinder])
def test_finder_is_refused_in_a_resumed_run(finder, tmp_path):
    fitted(tmp_path / "run", limit_train_batches=1, limit_val_batches=0)
    option = "model.lr" if finder is LearningRateFinder else "data.batch_size"
    with pytest.raises(ConfigError, match=f"{finder.__name__} .* resumes.*{option}"):
        fitted(tmp_path, callbacks=[finder()], ckpt_path=tmp_path / "run" / "kept" / "epoch=0.ckpt")


def test_finder_keeps_pretrained_weights(tmp_path):
    data = two_tasks()
    source, path = tiny_module(data).net.backbone.model, tmp_path / "weights.pth"
    torch.save(source.state_dict(), path)
    finder = BatchSizeFinder(init_val=2, max_trials=1, steps_per_trial=1)
    module = tiny_module(data, pretrained=str(path), lr=1e-30)
    fitted(tmp_path, data=data, module=module, callbacks=[finder], limit_train_batches=1, limit_val_batches=0)
    key = "conv1.0.weight"
    torch.testing.assert_close(module.net.backbone.model.state_dict()[key], source.state_dict()[key])
