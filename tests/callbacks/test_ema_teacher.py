import math

import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from htt_lightning import LabelDiscovery
from htt_lightning.errors import ConfigError
from tests.callbacks.test_label_discovery import few, fitted, run, teacher_of
from tests.test_module import assert_same, weights
from tests.tiny import tiny_data, tiny_module


def test_ema_needs_one_stage_and_resumes_bitwise(tmp_path):
    whole = run(tmp_path / "whole", LabelDiscovery(teacher="ema"), max_epochs=2)
    assert whole.trainer.current_epoch == whole.counted == 2  # the teacher changes, so it is scored every epoch
    path = tmp_path / "whole" / "kept" / "epoch=0.ckpt"
    resumed, _ = fitted(tmp_path / "again", LabelDiscovery(teacher="ema"), seed=99, max_epochs=2, ckpt_path=path)
    assert_same(weights(whole.module), weights(resumed))
    average = teacher_of(tmp_path / "whole", 1)
    assert_same(average, teacher_of(tmp_path / "again", 1))
    assert any(not torch.equal(average[key], value) for key, value in weights(resumed).items())


def test_ema_is_updated_once_per_optimizer_step(tmp_path, monkeypatch):
    updates = []
    monkeypatch.setattr("htt_lightning.callbacks.label_discovery.update_ema", lambda *args: updates.append(args))
    _, trainer = fitted(tmp_path, LabelDiscovery(teacher="ema"), data=few(batch_size=2), accumulate_grad_batches=2)
    assert len(updates) == trainer.global_step > 0


def test_ema_of_16_bits_which_hardly_moves_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"trainer\.precision must be .* ema.* got bf16-true"):
        fitted(tmp_path, LabelDiscovery(teacher="ema"), precision="bf16-true")


def test_ema_does_not_rebalance_classes_by_default():
    module = tiny_module(tiny_data())

    def powers(**arguments):
        tasks = LabelDiscovery(**arguments).tasks_with_overrides(module)
        return {task.name: task.class_balance_power for task in tasks if hasattr(task, "class_balance_power")}

    assert powers() == {"semseg": 0.5, "human_parts": 0.5}
    assert powers(teacher="ema") == {"semseg": 0, "human_parts": 0}
    assert powers(teacher="ema", class_balance_powers={"semseg": 0.3}) == {"semseg": 0.3, "human_parts": 0}


class Scales(Callback):
    def __init__(self):
        self.seen = []

    def on_train_epoch_end(self, trainer, pl_module):
        self.seen.append(pl_module.discovery.scale if pl_module.discovery else None)


@pytest.mark.filterwarnings("ignore:You.re resuming from a checkpoint that ended before the epoch")
def test_loss_ramps_up_after_resuming_inside_an_epoch(tmp_path):
    def trained(folder, ckpt_path=None):
        every = ModelCheckpoint(tmp_path / folder / "steps", "{step}", save_top_k=-1, every_n_train_steps=1)
        discovery = LabelDiscovery(teacher="ema", rampup_epochs=4)
        watch = Scales()
        options = {"data": few(batch_size=2), "callbacks": [every, watch], "max_epochs": 2, "ckpt_path": ckpt_path}
        _, trainer = fitted(tmp_path / folder, discovery, **options)
        return watch.seen, trainer.global_step

    seen, steps = trained("whole")
    assert trained("again", tmp_path / "whole" / "steps" / f"step={steps - 1}.ckpt")[0] == seen[1:]


@pytest.mark.slow
def test_loss_ramps_up_in_every_stage_and_after_resuming(tmp_path):
    def scales(folder, discovery, **arguments):
        watch = Scales()
        module, _ = fitted(tmp_path / folder, discovery, callbacks=[watch], max_epochs=3, **arguments)
        return watch.seen, module

    rising = [math.exp(-5), math.exp(-5 / 4), 1]
    assert scales("average", LabelDiscovery(teacher="ema", rampup_epochs=2))[0] == pytest.approx(rising)
    seen, whole = scales("stages", LabelDiscovery(stages=3, rampup_epochs=2))
    assert seen == pytest.approx([None] * 3 + 2 * rising)
    path = tmp_path / "stages" / "kept" / "epoch=6.ckpt"
    seen, resumed = scales("again", LabelDiscovery(stages=3, rampup_epochs=2), ckpt_path=path)
    assert seen == pytest.approx(rising[1:])
    assert_same(weights(whole), weights(resumed))
    assert scales("flat", LabelDiscovery(teacher="ema"))[0] == [1, 1, 1]
