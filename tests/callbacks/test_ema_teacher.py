import math

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from htt_lightning import LabelDiscovery
from tests.callbacks.test_label_discovery import few, fitted, state_of, stored
from tests.test_module import assert_same, weights
from tests.tiny import tiny_data, tiny_module


def test_the_moving_average_resumes_bitwise_and_needs_one_stage(tmp_path):
    whole, trainer = fitted(tmp_path / "whole", LabelDiscovery(teacher="ema"), max_epochs=2)
    assert trainer.current_epoch == 2
    path = tmp_path / "whole" / "kept" / "epoch=0.ckpt"
    resumed, _ = fitted(tmp_path / "again", LabelDiscovery(teacher="ema"), seed=99, max_epochs=2, ckpt_path=path)
    assert_same(weights(whole), weights(resumed))
    one, two = (state_of(stored(tmp_path / name, 1))["teachers"][0]["state_dict"] for name in ("whole", "again"))
    assert_same(one, two)
    assert any(not torch.equal(one[key], value) for key, value in weights(whole).items())


def test_the_average_moves_once_per_step_however_many_batches_it_takes(tmp_path, monkeypatch):
    moves = []
    monkeypatch.setattr("htt_lightning.callbacks.label_discovery.update_ema", lambda *args: moves.append(args))
    _, trainer = fitted(tmp_path, LabelDiscovery(teacher="ema"), data=few(batch_size=2), accumulate_grad_batches=2)
    assert len(moves) == trainer.global_step > 0


def test_a_moving_average_raises_no_classes_unless_told_to():
    module = tiny_module(tiny_data())

    def balances(**arguments):
        return {
            task.name: task.class_balance_power
            for task in LabelDiscovery(**arguments).tasks_with_overrides(module)
            if hasattr(task, "class_balance_power")
        }

    assert balances() == {"semseg": 0.5, "human_parts": 0.5}
    assert balances(teacher="ema") == {"semseg": 0, "human_parts": 0}
    assert balances(teacher="ema", class_balance_powers={"semseg": 0.3}) == {"semseg": 0.3, "human_parts": 0}


@pytest.mark.slow
def test_the_weight_of_what_is_discovered_rises_in_every_stage_and_after_a_restart(tmp_path):
    class Scales(Callback):
        def __init__(self):
            self.seen = []

        def on_train_epoch_end(self, trainer, pl_module):
            self.seen.append(pl_module.discovery.scale if pl_module.discovery else None)

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
