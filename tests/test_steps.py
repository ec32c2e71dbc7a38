"""A step that is kept and done again."""

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from htt_lightning import LabelDiscovery
from htt_lightning.callbacks.nonfinite_guard import teachers_of
from htt_lightning.discovery.loss import DiscoveryLossWeights
from htt_lightning.errors import HTTError
from htt_lightning.steps import keep_step, replay
from tests.test_module import assert_same, weights
from tests.tiny import tiny_data, tiny_module, tiny_trainer


class Keeper(Callback):
    """Keeps the second step of the second stage, and notes what becomes of it."""

    def __init__(self, path):
        self.path = path

    def wanted(self, trainer, batch_idx):
        return (trainer.current_epoch, batch_idx) == (1, 1)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if self.wanted(trainer, batch_idx):
            pl_module.net.heads["depth"].eval()  # as somebody may do who fine-tunes
            pl_module.generators = [torch.get_rng_state()]
            teachers = teachers_of(trainer, pl_module)
            keep_step(self.path, pl_module, trainer.optimizers[0], batch, trainer.precision, teachers)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if self.wanted(trainer, batch_idx):
            self.loss, self.weights = outputs["loss"], weights(pl_module)
            self.terms, self.batch = pl_module.last_loss_terms, batch


@pytest.mark.parametrize(
    ("discovery", "precision"),
    [
        (
            {"targets": "averaged", "terms": DiscoveryLossWeights(1, 1, 1), "ramp": 2, "thresholds": {"depth": 0.1}},
            "bf16-mixed",
        ),
        ({"teacher_precision": "bf16", "betas": {"depth": 0.5}}, "64-true"),
    ],
)
def test_a_step_done_again_is_the_step(discovery, precision, tmp_path):
    data = tiny_data(tasks="semseg,depth", labels="random-label")
    keeper = Keeper(tmp_path / "step.pt")
    module = tiny_module(data, loss_weights={"depth": 0.5}, balance="labels")
    callbacks = [LabelDiscovery(**discovery), keeper]
    tiny_trainer(tmp_path, callbacks=callbacks, precision=precision, limit_val_batches=0).fit(module, data)
    before = torch.get_rng_state()
    again = replay(keeper.path)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(again.loss, keeper.loss)
    assert again.batch["id"] == keeper.batch["id"]
    kinds = {term.kind for term in keeper.terms}
    assert len(kinds) == 3
    for ours, theirs in zip(again.module.last_loss_terms, keeper.terms, strict=True):
        assert ours[:2] == theirs[:2]
        assert torch.equal(ours.loss, theirs.loss)
    again.loss.backward()
    again.optimizer.step()
    assert_same(weights(again.module), keeper.weights)


def test_a_step_on_a_completed_dataset_comes_back_with_its_labels(tmp_path):
    data = tiny_data(tasks="semseg,depth", labels="full")
    data.setup("fit")
    batch = data.on_before_batch_transfer(next(iter(data.train_dataloader())), 0)
    module = tiny_module(data)
    outputs = module(batch["image"])
    batch["discovered"] = {task.name: task.pseudo_label(outputs[task.name], (32, 48)) for task in data.tasks}
    module.generators = [torch.get_rng_state()]
    keep_step(tmp_path / "step.pt", module, torch.optim.Adam(module.parameters()), batch, "32-true")
    again = replay(tmp_path / "step.pt").batch
    assert again.keys() == batch.keys()
    for task, found in batch["discovered"].items():
        assert torch.equal(again["discovered"][task].confidence, found.confidence)
        assert torch.equal(again["rows"][task], batch["rows"][task])


def test_what_is_no_kept_step_is_refused(tmp_path):
    data = tiny_data(tasks="depth", labels="full")
    trainer = tiny_trainer(tmp_path)
    trainer.fit(tiny_module(data), data)
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    (tmp_path / "broken.pt").write_bytes(b"broken")
    for name, message in [
        ("run.ckpt", "no step that was kept"),
        ("broken.pt", "damaged"),
        ("absent.pt", "there is no"),
    ]:
        with pytest.raises(HTTError, match=message):
            replay(tmp_path / name)
