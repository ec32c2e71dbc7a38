import re

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from htt_lightning import LabelDiscovery, NonFiniteLossGuard
from htt_lightning.discovery.loss import DiscoveryLossWeights
from htt_lightning.errors import ConfigError, HTTError
from tests.test_module import assert_same, weights
from tests.tiny import tiny_data, tiny_module, tiny_trainer


class Poison(Callback):
    """Make one label of a batch so large that its loss is infinite, while gradients stay finite."""

    def __init__(self, *steps, task="depth"):
        self.steps, self.task, self.images, self.before, self.after = steps, task, [], [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.fit_loop.total_batch_idx in self.steps:
            last = int(batch["labeled"][self.task].nonzero()[-1, 0])
            batch[self.task][last] = 3e38
            self.images.append(batch["id"][last])
            self.before.append(state(trainer, pl_module))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.fit_loop.total_batch_idx in self.steps:
            self.after.append(state(trainer, pl_module))


def state(trainer, module):
    """Copy all tensors that a step changes."""
    moments = trainer.optimizers[0].state_dict()["state"]
    moments = {f"{index} {key}": value.clone() for index, row in moments.items() for key, value in row.items()}
    return weights(module) | moments


def few(**changes):
    return tiny_data(**({"tasks": "semseg,depth", "labels": "random-label", "train_images": 18} | changes))


def fitted(folder, *callbacks, data=None, **trainer):
    data = data or few()
    torch.manual_seed(0)
    module = tiny_module(data)
    trainer = tiny_trainer(folder, callbacks=[*callbacks], **({"limit_val_batches": 0} | trainer))
    trainer.fit(module, data)
    return module, trainer


def test_guard_changes_nothing_for_finite_losses(tmp_path):
    plain, trainer = fitted(tmp_path / "plain", LabelDiscovery(target_type="soft_tta"))
    guard = NonFiniteLossGuard("skip")
    guarded, guarded_trainer = fitted(tmp_path / "guarded", LabelDiscovery(target_type="soft_tta"), guard)
    assert_same(weights(plain), weights(guarded))
    metrics = dict(guarded_trainer.callback_metrics)
    assert metrics.pop("train/skipped_steps") == 0
    assert metrics.keys() == trainer.callback_metrics.keys()
    for key, value in trainer.callback_metrics.items():
        torch.testing.assert_close(metrics[key], value, rtol=0, atol=0, equal_nan=True)


def test_guard_names_task_term_image_and_step(tmp_path):
    poison = Poison(1)
    with pytest.raises(HTTError) as caught:
        fitted(tmp_path, poison, NonFiniteLossGuard())
    first, finding, advice = str(caught.value).splitlines()
    assert "step 1 (epoch 0)" in first
    assert finding == f"  depth, supervised: image '{poison.images[0]}'"
    assert "--guard.policy skip" in advice


class BrokenTeacher(Callback):
    """Set the teacher's depth head to NaN in the second stage."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if pl_module.discovery is not None:
            for weight in pl_module.discovery.teachers[0].heads["depth"].parameters():
                weight.fill_(torch.nan)
            self.labeled, self.ids = batch["labeled"]["depth"].tolist(), batch["id"]


def test_guard_names_the_terms_of_label_discovery(tmp_path):
    broken = BrokenTeacher()
    discovery = LabelDiscovery(target_type="soft", loss_weights=DiscoveryLossWeights(1, 1, 1))
    with pytest.raises(HTTError) as caught:
        fitted(tmp_path, discovery, broken, NonFiniteLossGuard())
    unlabeled = [name for name, labeled in zip(broken.ids, broken.labeled, strict=True) if not labeled]
    assert 0 < len(unlabeled) < 4
    found = re.findall(r"  depth, .*: images? (.*)", str(caught.value))
    assert found == [", ".join(map(repr, broken.ids)), ", ".join(map(repr, unlabeled))]


def test_skip_leaves_out_the_step_and_counts_it(tmp_path):
    poison = Poison(1, 5)
    with pytest.warns(UserWarning, match="is not finite") as warned:
        _, trainer = fitted(tmp_path, poison, NonFiniteLossGuard("skip"), max_epochs=2, gradient_clip_val=1.0)
    messages = [text for text in (str(warning.message) for warning in warned) if text.startswith("The loss of")]
    for step, name, message in zip((1, 5), poison.images, messages, strict=True):
        assert f"step {step} " in message
        assert f"depth, supervised: image '{name}'" in message
    for before, after in zip(poison.before, poison.after, strict=True):
        assert_same(before, after)
    assert not all(torch.equal(poison.before[0][key], poison.before[1][key]) for key in poison.before[0])
    assert trainer.callback_metrics["train/skipped_steps"] == 1
    losses = {key: value for key, value in trainer.callback_metrics.items() if key.endswith("/loss")}
    assert len(losses) == 3
    assert all(value.isfinite() for value in losses.values())


def test_policy_off_lets_the_loss_pass(tmp_path):
    poison = Poison(1)
    _, trainer = fitted(tmp_path, poison, NonFiniteLossGuard("off"))
    assert trainer.callback_metrics["train/loss"].isinf()
    assert not all(torch.equal(poison.before[0][key], poison.after[0][key]) for key in poison.before[0])


def test_skip_drops_all_accumulated_batches(tmp_path):
    poison, data = Poison(2), few(train_images=22)
    with pytest.warns(UserWarning, match="is not finite"):
        module, _ = fitted(tmp_path, poison, NonFiniteLossGuard("skip"), data=data, accumulate_grad_batches=2)
    parameters = dict(module.net.named_parameters())
    assert_same({key: poison.before[0][key] for key in parameters}, parameters)


class Overflow(Callback):
    """Make the gradients of the first step infinite."""

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        if trainer.global_step == 0:
            next(pl_module.parameters()).grad.fill_(torch.inf)


def test_weights_that_are_not_finite_stop_the_run(tmp_path):
    with pytest.raises(HTTError, match="weights are not finite") as caught:
        fitted(tmp_path, Overflow(), NonFiniteLossGuard("skip"))
    assert "gradient_clip_val" in str(caught.value)


def test_guard_names_images_with_broken_pixels(tmp_path):
    class Broken(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            batch["image"][2, 0, 5, 5] = torch.nan
            self.image = batch["id"][2]

    broken = Broken()
    with pytest.raises(HTTError) as caught:
        fitted(tmp_path, broken, NonFiniteLossGuard())
    assert f"  pixels: image '{broken.image}'\n" in str(caught.value)


def test_guard_tells_an_overflow_of_the_sum_from_its_terms(tmp_path):
    data = few()
    module = tiny_module(data, loss_weights={"depth": 1e39})
    with pytest.raises(HTTError, match="sum of finite terms: images '"):
        tiny_trainer(tmp_path, callbacks=[NonFiniteLossGuard()]).fit(module, data)


def test_guard_refuses_an_unknown_policy():
    with pytest.raises(ConfigError, match=r"guard\.policy.*'ignore'"):
        NonFiniteLossGuard("ignore")
