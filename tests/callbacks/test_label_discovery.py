import shutil
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from htt_lightning import HTTModule, LabelDiscovery
from htt_lightning.discovery import DiscoveryLossWeights, TeacherEnsemble
from htt_lightning.errors import CheckpointError, HTTError
from htt_lightning.io.checkpoints import AtomicCheckpointIO
from htt_lightning.training.loading import load_teacher
from tests.discovery.test_teacher import StridedNet
from tests.test_module import assert_same, ruined_scenes, weights
from tests.tiny import tiny_data, tiny_module, tiny_trainer

NO_LOSS = DiscoveryLossWeights(0, 0, 0)


def few(**changes):
    """Three of the tasks are enough, and quicker."""
    return tiny_data(**({"train_images": 12, "tasks": "semseg,depth,edges", "labels": "random-label"} | changes))


def fitted(folder, discovery=None, seed=0, data=None, ckpt_path=None, module=None, **trainer):
    """Train, and keep a checkpoint of every epoch."""
    data = data or few()
    torch.manual_seed(seed)
    module = module or tiny_module(data)
    keep = ModelCheckpoint(dirpath=folder / "kept", save_top_k=-1, filename="{epoch}")
    callbacks = [keep, *([discovery] if discovery else []), *trainer.pop("callbacks", [])]
    trainer = tiny_trainer(folder, callbacks=callbacks, enable_checkpointing=True, **trainer)
    trainer.fit(module, data, ckpt_path=ckpt_path)
    return module, trainer


def stored(folder, epoch):
    return torch.load(folder / "kept" / f"epoch={epoch}.ckpt", weights_only=True)


def state_of(checkpoint):
    return checkpoint["callbacks"]["LabelDiscovery"]


def teacher_of(folder, epoch):
    return state_of(stored(folder, epoch))["teachers"][0]["state_dict"]


def student_of(checkpoint):
    parts = checkpoint["state_dict"].items()
    return {key.removeprefix("net."): value for key, value in parts if key.startswith("net.")}


class EpochStart(Callback):
    """Record weights, learning rate and size of the optimizer's state as each epoch starts."""

    def __init__(self):
        self.weights, self.rates, self.moments = [], [], []

    def on_train_epoch_start(self, trainer, pl_module):
        self.weights.append(weights(pl_module))
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])
        self.moments.append(len(trainer.optimizers[0].state))


def run(folder, discovery, **options):
    """Train, and count the batches on which pseudo-labels are compared with the ground truth."""
    starts, counted = EpochStart(), []
    with pytest.MonkeyPatch.context() as patch:
        hits = TeacherEnsemble.pseudo_label_hits
        patch.setattr(TeacherEnsemble, "pseudo_label_hits", lambda *x: counted.append(x) or hits(*x))
        module, trainer = fitted(folder, discovery, callbacks=[starts], **options)
    return SimpleNamespace(
        folder=folder, discovery=discovery, module=module, trainer=trainer, starts=starts, counted=len(counted)
    )


@pytest.fixture(scope="module")
def supervised(tmp_path_factory):
    """Two epochs without label discovery."""
    return run(tmp_path_factory.mktemp("supervised"), None, max_epochs=2)


@pytest.fixture(scope="module")
def staged(tmp_path_factory):
    """Two stages of two epochs."""
    return run(tmp_path_factory.mktemp("staged"), LabelDiscovery(), max_epochs=2)


@pytest.fixture(scope="module")
def given(tmp_path_factory, staged):
    """Two epochs with the checkpoint of a stage as teacher and initial weights; the file is gone afterwards."""
    folder = tmp_path_factory.mktemp("given")
    path = shutil.copy(staged.folder / "checkpoints" / "stage_1.ckpt", folder / "teacher.ckpt")
    result = run(folder, LabelDiscovery(teacher=str(path), student_init="teacher"), max_epochs=2)
    path.unlink()
    return result


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """Two teachers of one epoch each, and a student."""
    discovery = LabelDiscovery(stages=3, num_teachers=2, target_type="soft_tta")
    return run(tmp_path_factory.mktemp("several"), discovery)


def test_one_stage_equals_supervised_training_bitwise(tmp_path, supervised):
    module, trainer = fitted(tmp_path, LabelDiscovery(stages=1), max_epochs=2)
    assert trainer.current_epoch == 2
    assert_same(weights(supervised.module), weights(module))


def test_first_stage_is_supervised_and_becomes_the_teacher(supervised, staged):
    assert staged.trainer.current_epoch == 4
    first, second, last = (stored(staged.folder, epoch) for epoch in (1, 2, 3))
    assert_same(weights(supervised.module), student_of(first))
    assert [state_of(x)["stage"] for x in (first, second, last)] == [0, 1, 1]
    assert state_of(first)["teachers"] == []
    for epoch in (2, 3):
        assert_same(student_of(first), teacher_of(staged.folder, epoch))


def test_every_stage_starts_a_fresh_optimizer_and_schedule(staged):
    assert staged.starts.rates == 2 * [pytest.approx(1e-3), pytest.approx(1e-3 * 0.5**0.9)]
    assert [bool(count) for count in staged.starts.moments] == 2 * [False, True]


def test_random_student_has_new_weights(staged):
    first, second = staged.starts.weights[0], staged.starts.weights[2]
    key = "global_tokens.tokens" if "global_tokens.tokens" in first else next(iter(first))
    assert not torch.equal(first[key], second[key])
    assert not torch.equal(second[key], teacher_of(staged.folder, 3)[key])


def test_student_inherits_the_teacher_of_the_previous_stage(tmp_path):
    inherited = run(tmp_path, LabelDiscovery(student_init="teacher", loss_weights=NO_LOSS), limit_train_batches=1)
    assert_same(inherited.starts.weights[1], teacher_of(tmp_path, 1))
    assert inherited.trainer.callback_metrics["train/pseudo_label_loss"] == 0


@pytest.mark.parametrize("epoch", [0, 1, 2])
def test_resumed_run_equals_an_uninterrupted_one(epoch, tmp_path, staged):
    path = staged.folder / "kept" / f"epoch={epoch}.ckpt"
    resumed, trainer = fitted(tmp_path, LabelDiscovery(), seed=99, max_epochs=2, ckpt_path=path)
    assert trainer.current_epoch == 4
    assert_same(weights(staged.module), weights(resumed))


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_killed_epoch_is_replayed_by_the_same_trainer(tmp_path, staged):
    class Killer(Callback):
        kill = True

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if self.kill and batch_idx == 1:
                raise KeyError("killed")

    killer, data, path = Killer(), few(), staged.folder / "kept" / "epoch=2.ckpt"
    discovery = LabelDiscovery()
    trainer = tiny_trainer(tmp_path, callbacks=[discovery, killer], max_epochs=2)
    with pytest.raises(KeyError):
        trainer.fit(tiny_module(data), data, ckpt_path=path)
    assert trainer.max_epochs == 2
    killer.kill = False
    for _ in range(2):  # also after a fit that has ended
        module = tiny_module(data)
        trainer.fit(module, data, ckpt_path=path)
        assert len(discovery.state_dict()["teachers"]) == 1
        assert (trainer.current_epoch, trainer.max_epochs) == (4, 2)
        assert_same(weights(staged.module), weights(module))


def test_checkpoint_of_a_stage_teaches_as_the_stage_did(staged, given):
    taught = teacher_of(staged.folder, 3)
    assert_same(weights(HTTModule.load_from_checkpoint(staged.folder / "checkpoints" / "stage_1.ckpt")), taught)
    assert given.trainer.current_epoch == 2
    assert state_of(stored(given.folder, 1))["stage"] == 1
    assert_same(teacher_of(given.folder, 1), taught)


def test_given_teacher_initializes_the_student_only_at_the_start(tmp_path, given):
    assert_same(given.starts.weights[0], teacher_of(given.folder, 1))
    path = given.folder / "kept" / "epoch=0.ckpt"  # the teacher's own file is gone
    discovery = LabelDiscovery(teacher=str(given.folder / "teacher.ckpt"), student_init="teacher")
    resumed, _ = fitted(tmp_path, discovery, 99, max_epochs=2, ckpt_path=path)
    assert_same(weights(given.module), weights(resumed))


def test_several_teachers_are_trained_apart(several, tmp_path):
    assert several.trainer.current_epoch == 3
    first, second, last = (stored(several.folder, epoch) for epoch in range(3))
    networks = [student_of(x) for x in (first, second)]
    assert [len(state_of(x)["teachers"]) for x in (first, second, last)] == [0, 1, 2]
    for network, teacher in zip(networks, state_of(last)["teachers"], strict=True):
        assert_same(network, teacher["state_dict"])
    assert any(not torch.equal(networks[0][key], value) for key, value in networks[1].items())
    plain, _ = fitted(tmp_path, LabelDiscovery(loss_weights=NO_LOSS))  # its second stage is supervised alone
    assert_same(weights(plain), networks[1])


@pytest.mark.parametrize("epoch", [0, 1])
def test_run_with_several_teachers_resumes_bitwise(epoch, several, tmp_path):
    path = several.folder / "kept" / f"epoch={epoch}.ckpt"
    discovery = LabelDiscovery(stages=3, num_teachers=2, target_type="soft_tta")
    resumed, _ = fitted(tmp_path, discovery, seed=99, ckpt_path=path)
    assert_same(weights(several.module), weights(resumed))


def test_several_checkpoints_teach_as_the_stages_did(several, tmp_path):
    paths = [str(several.folder / "checkpoints" / f"stage_{k}.ckpt") for k in (1, 2)]
    fitted(tmp_path, LabelDiscovery(teacher=paths, target_type="soft_tta"), limit_train_batches=1)
    ours, theirs = (state_of(stored(*at))["teachers"] for at in ((tmp_path, 0), (several.folder, 2)))
    for one, other in zip(ours, theirs, strict=True):
        assert_same(one["state_dict"], other["state_dict"])


def test_soft_targets_count_everywhere(several):
    metrics = several.trainer.callback_metrics
    coverage = [metrics[f"train/{name}/pseudo_label_coverage"] for name in ("semseg", "depth", "edges")]
    assert coverage == [1, 1, 0]  # edges have no weight


def test_hidden_labels_do_not_reach_the_second_stage(tmp_path, staged, monkeypatch):
    """Fit twice with one callback, which starts over."""
    ruined_scenes(monkeypatch, few())
    ruined, _ = fitted(tmp_path, staged.discovery, data=few(), max_epochs=2)
    assert_same(weights(staged.module), weights(ruined))


def test_every_checkpoint_loads_as_the_student(staged):
    path = staged.folder / "kept" / "epoch=3.ckpt"
    assert_same(weights(HTTModule.load_from_checkpoint(path)), weights(staged.module))
    assert not [key for key in stored(staged.folder, 3)["state_dict"] if "teacher" in key or "discovery" in key]


def test_metrics_of_pseudo_labels_are_logged(staged):
    metrics = staged.trainer.callback_metrics
    for task in ("semseg", "depth", "edges"):
        assert 0 <= metrics[f"train/{task}/pseudo_label_coverage"] <= 1
        assert 0 <= metrics[f"train/{task}/pseudo_label_confidence"] <= 1
        accuracy = metrics[f"val/{task}/pseudo_label_accuracy"]
        assert torch.isnan(accuracy) or 0 <= accuracy <= 100
    assert staged.counted == 1  # the teacher is frozen


def test_fast_dev_run_passes_all_stages_and_restores_limits(tmp_path):
    data = few()
    trainer = tiny_trainer(tmp_path, callbacks=[LabelDiscovery(stages=3)], fast_dev_run=1)
    trainer.fit(tiny_module(data), data)
    assert trainer.current_epoch == trainer.global_step == 3
    assert trainer.max_epochs == trainer.max_steps == 1


class OtherModule(HTTModule):
    """A module around a network that is not this library's."""

    def build_network(self):
        return StridedNet(self.tasks, 4, self.hparams["token_dim"])


def test_other_networks_pass_the_stages_and_teach_from_a_file(tmp_path):
    data = few()
    module = OtherModule(data.tasks, token_dim=8, lr=1e-3)
    _, trainer = fitted(tmp_path / "staged", LabelDiscovery(), module=module)
    assert trainer.current_epoch == 2
    path = tmp_path / "staged" / "checkpoints" / "stage_1.ckpt"
    teacher = OtherModule.load_from_checkpoint(path, weights_only=True)
    discovery = LabelDiscovery(teacher=str(path), student_init="teacher", loss_weights=DiscoveryLossWeights(1, 1, 1))
    fitted(tmp_path / "taught", discovery, module=OtherModule(data.tasks, token_dim=8, lr=1e-3))
    assert_same(weights(teacher), teacher_of(tmp_path / "taught", 0))


def test_teacher_that_does_not_fit_is_refused(staged, tmp_path):
    path, data = str(staged.folder / "kept" / "epoch=0.ckpt"), few()
    with pytest.raises(HTTError, match="semseg, depth, edges"):
        load_teacher(path, tiny_module(few(tasks="semseg,depth")))
    with pytest.raises(HTTError, match=r"token_dim.*16"):
        load_teacher(path, tiny_module(data, token_dim=16))
    discovery = LabelDiscovery(teacher=path, student_init="teacher")
    with pytest.raises(CheckpointError, match=r"discovery\.teacher.*student_init"):
        fitted(tmp_path / "inherited", discovery, module=tiny_module(data, use_fine_tokens=False))
    plain = tiny_trainer(tmp_path, limit_train_batches=1, limit_val_batches=0)
    plain.fit(tiny_module(data, network="multitask"), data)
    plain.save_checkpoint(tmp_path / "plain.ckpt")
    with pytest.raises(HTTError, match="tokens"):
        load_teacher(str(tmp_path / "plain.ckpt"), tiny_module(data))


def test_teacher_follows_the_precision_of_the_student(tmp_path, staged):
    discovery = LabelDiscovery(teacher=str(staged.folder / "checkpoints" / "stage_1.ckpt"))
    student, _ = fitted(tmp_path, discovery, precision="64-true", limit_train_batches=1)
    assert all(value.dtype != torch.float32 for value in weights(student).values())


@pytest.mark.parametrize(
    ("name", "discovery", "option"),
    [
        ("checkpoints/stage_1.ckpt", {}, "--ckpt_path"),
        ("kept/epoch=3.ckpt", {"teacher": "ema"}, r"discovery\.teacher must be previous"),
    ],
)
def test_checkpoint_that_cannot_be_resumed_is_refused(name, discovery, option, tmp_path, staged):
    with pytest.raises(HTTError, match=option):
        fitted(tmp_path, LabelDiscovery(**discovery), ckpt_path=staged.folder / name)


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
@pytest.mark.parametrize("name", ["checkpoints/stage_1.ckpt", "kept/epoch=3.ckpt"])
def test_evaluation_takes_checkpoints_of_any_teacher(name, tmp_path, staged):
    data = few()
    trainer = tiny_trainer(tmp_path, callbacks=[LabelDiscovery(teacher="ema")])
    (metrics,) = trainer.validate(tiny_module(data), data, ckpt_path=staged.folder / name, verbose=False)
    assert metrics["val/depth/abs_err"] > 0


@pytest.mark.parametrize(("epochs", "total"), [(1, 3), (3, 6)])
def test_resumed_stage_may_have_another_length(epochs, total, tmp_path, staged):
    path = staged.folder / "kept" / "epoch=1.ckpt"  # the end of the first stage of two epochs
    _, trainer = fitted(tmp_path, LabelDiscovery(), max_epochs=epochs, ckpt_path=path, limit_train_batches=1)
    assert trainer.current_epoch == total
    assert state_of(stored(tmp_path, total - 1))["stage"] == 1


def test_limit_that_skips_a_stage_warns(tmp_path):
    with pytest.warns(UserWarning, match="stage 1 of 2.*max_steps"):
        fitted(tmp_path, LabelDiscovery(), max_steps=1)


def test_stage_checkpoint_that_cannot_be_written_is_one_error(tmp_path):
    (tmp_path / "checkpoints").write_text("in the way")
    with pytest.raises(HTTError, match=r"stage_1\.ckpt"):
        fitted(tmp_path, LabelDiscovery(), limit_train_batches=1, plugins=[AtomicCheckpointIO()])
