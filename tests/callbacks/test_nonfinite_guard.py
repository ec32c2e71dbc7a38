import re

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from htt_lightning import LabelDiscovery, NonFiniteLossGuard
from htt_lightning.discovery.loss import DiscoveryLossWeights
from htt_lightning.errors import HTTError
from htt_lightning.steps import replay
from tests.test_module import assert_same, weights
from tests.tiny import tiny_data, tiny_module, tiny_trainer


class Poison(Callback):
    """Makes one label of a batch so large that its loss is infinite, while gradients stay finite."""

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
    """All that a step changes."""
    moments = trainer.optimizers[0].state_dict()["state"]
    moments = {f"{index} {key}": value.clone() for index, row in moments.items() for key, value in row.items()}
    return weights(module) | moments


def few(**changes):
    return tiny_data(**({"tasks": "semseg,depth", "labels": "random-label", "train_images": 18} | changes))


def fitted(folder, *callbacks, data=None, seed=0, **trainer):
    data = data or few()
    torch.manual_seed(seed)
    module, trainer = (
        tiny_module(data),
        tiny_trainer(folder, callbacks=[*callbacks], **({"limit_val_batches": 0} | trainer)),
    )
    trainer.fit(module, data)
    return module, trainer


def test_nothing_changes_where_every_loss_is_finite(tmp_path):
    one, other = (tmp_path / name for name in ("plain", "guarded"))
    plain, theirs = fitted(one, LabelDiscovery(targets="averaged"))
    module, ours = fitted(other, LabelDiscovery(targets="averaged"), NonFiniteLossGuard("skip"))
    assert_same(weights(plain), weights(module))
    figures = dict(ours.callback_metrics)
    assert figures.pop("train/skipped") == 0
    assert figures.keys() == theirs.callback_metrics.keys()
    for key, value in theirs.callback_metrics.items():
        torch.testing.assert_close(figures[key], value, rtol=0, atol=0, equal_nan=True)
    assert not (other / "replay").exists()


def test_the_task_the_term_the_image_and_the_step_are_named_and_the_step_is_kept(tmp_path):
    poison = Poison(1)
    with pytest.raises(HTTError) as caught:
        fitted(tmp_path, poison, NonFiniteLossGuard())
    path = tmp_path / "replay" / "step_1.pt"
    assert str(caught.value).splitlines() == [
        "The loss of step 1 (epoch 0) is not finite:",
        f"  depth, supervised: image '{poison.images[0]}'",
        f"  kept as {path}; htt_lightning.steps.replay does the step again.",
        "--guard.policy skip leaves such steps out.",
    ]
    again = replay(path)
    assert again.loss.isinf()
    stored = torch.load(path, weights_only=True)["state_dict"]
    assert_same({f"net.{key}": value for key, value in poison.before[0].items() if " " not in key}, stored)
    moments = again.optimizer.state_dict()["state"]
    for index, row in moments.items():
        for key, value in row.items():
            assert torch.equal(value, poison.before[0][f"{index} {key}"])
    assert [path] == [*path.parent.iterdir()]


class Deaf(Callback):
    """Takes the weights of the teacher's depth away in the second stage."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if pl_module.discovery is not None:
            for weight in pl_module.discovery.teachers[0].heads["depth"].parameters():
                weight.fill_(torch.nan)
            self.given = batch["labeled"]["depth"].tolist()
            self.ids = batch["id"]


def test_terms_of_label_discovery_are_named_and_done_again_with_their_teacher(tmp_path):
    deaf, discovery = Deaf(), LabelDiscovery(targets="soft", terms=DiscoveryLossWeights(1, 1, 1))
    with pytest.raises(HTTError) as caught:
        fitted(tmp_path, discovery, deaf, NonFiniteLossGuard())
    message = str(caught.value)
    assert message.startswith("The loss of step 3 (epoch 1) is not finite:\n")
    lacking = [name for name, given in zip(deaf.ids, deaf.given, strict=True) if not given]
    found = re.findall(r"  (\w+), ([\w-]+): images? (.*)", message)
    assert found == [
        ("depth", "feature", ", ".join(map(repr, deaf.ids))),
        ("depth", "pseudo-label", ", ".join(map(repr, lacking))),
    ]
    assert 0 < len(lacking) < 4
    again = replay(tmp_path / "replay" / "step_3.pt")
    wrong = [term for term in again.module.last_loss_terms if not term.loss.isfinite().all()]
    assert [(term.task, term.kind) for term in wrong] == [row[:2] for row in found]
    assert wrong[1].loss.isfinite().tolist() == deaf.given


def test_a_step_is_left_out_counted_and_told_of(tmp_path):
    poison = Poison(1, 5)
    with pytest.warns(UserWarning, match="is not finite") as warned:
        _, trainer = fitted(tmp_path, poison, NonFiniteLossGuard("skip"), max_epochs=2, gradient_clip_val=1.0)
    told = [text for text in (str(warning.message) for warning in warned) if text.startswith("The loss of")]
    assert [text.splitlines()[0] for text in told] == [
        "The loss of step 1 (epoch 0) is not finite:", "The loss of step 5 (epoch 1) is not finite:"
    ]  # fmt: skip
    assert all(f"depth, supervised: image '{name}'" in text for name, text in zip(poison.images, told, strict=True))
    assert all(text.endswith("The step is left out.") for text in told)
    for before, after in zip(poison.before, poison.after, strict=True):
        assert_same(before, after)
    assert poison.before[0].keys() == poison.before[1].keys()
    assert not all(torch.equal(poison.before[0][key], poison.before[1][key]) for key in poison.before[0])
    assert trainer.callback_metrics["train/skipped"] == 1
    losses = {key: value for key, value in trainer.callback_metrics.items() if key.endswith("/loss")}
    assert len(losses) == 3
    assert all(value.isfinite() for value in losses.values())
    assert len([*(tmp_path / "replay").iterdir()]) == 1


def test_without_the_guard_such_a_loss_goes_unnoticed(tmp_path):
    poison = Poison(1)
    _, trainer = fitted(tmp_path, poison, NonFiniteLossGuard("off"))
    assert trainer.callback_metrics["train/loss"].isinf()
    assert not all(torch.equal(poison.before[0][key], poison.after[0][key]) for key in poison.before[0])


def test_all_batches_whose_gradients_are_added_up_are_left_out(tmp_path):
    poison, data = Poison(2), few(train_images=22)
    with pytest.warns(UserWarning, match="is not finite"):
        module, _ = fitted(tmp_path, poison, NonFiniteLossGuard("skip"), data=data, accumulate_grad_batches=2)
    parameters = dict(module.net.named_parameters())
    assert_same({key: poison.before[0][key] for key in parameters}, parameters)


class Overflow(Callback):
    """A step whose loss is finite, but whose gradients are not."""

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        if trainer.global_step == 0:
            next(pl_module.parameters()).grad.fill_(torch.inf)


def test_weights_that_are_not_finite_end_the_run_as_no_step_mends_them(tmp_path):
    with pytest.raises(HTTError, match=r"step 1 .*\n(.*\n)*The weights are not finite to begin with") as caught:
        fitted(tmp_path, Overflow(), NonFiniteLossGuard("skip"))
    assert "leaves such steps out" not in str(caught.value)


def test_a_broken_image_is_named_as_such(tmp_path):
    class Broken(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            batch["image"][2, 0, 5, 5] = torch.nan
            self.image = batch["id"][2]

    broken = Broken()
    with pytest.raises(HTTError) as caught:
        fitted(tmp_path, broken, NonFiniteLossGuard(replays=0))
    assert f"  not the loss alone, but the pixels of image '{broken.image}'\n" in str(caught.value)
    assert "kept as" not in str(caught.value)
    assert not (tmp_path / "replay").exists()


def test_a_sum_that_overflows_is_told_from_its_terms(tmp_path):
    data = few()
    module = tiny_module(data, loss_weights={"depth": 1e39})
    with pytest.raises(HTTError, match="every term is finite, but not their sum; the images are '"):
        tiny_trainer(tmp_path, callbacks=[NonFiniteLossGuard()]).fit(module, data)


def test_where_a_step_cannot_be_kept_the_finding_is_told_all_the_same(tmp_path):
    (tmp_path / "replay").write_text("in the way")
    with pytest.raises(HTTError, match=r"depth, supervised: image .*\n  not kept: Cannot write .*step_0\.pt"):
        fitted(tmp_path, Poison(0), NonFiniteLossGuard())


def test_a_trial_run_keeps_no_step(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(HTTError, match="is not finite"):
        fitted(tmp_path, Poison(0), NonFiniteLossGuard(), fast_dev_run=1)
    assert not [*tmp_path.rglob("*.pt")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"policy": "ignore"}, "guard.policy is 'ignore'; it must be one of raise, skip, off"),
        ({"replays": -1}, "guard.replays must be at least 0"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(HTTError, match=message):
        NonFiniteLossGuard(**arguments)
