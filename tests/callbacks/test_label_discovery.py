import shutil

import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from htt_lightning import HTTModule, LabelDiscovery
from htt_lightning.discovery import DiscoveryLossWeights, TeacherEnsemble
from htt_lightning.errors import HTTError
from tests.test_module import assert_same, ruined_scenes, weights
from tests.tiny import tiny_data, tiny_module, tiny_trainer


def few(**changes):
    """Three of the tasks are enough, and quicker."""
    return tiny_data(**({"train_images": 12, "tasks": "semseg,depth,edges", "labels": "random-label"} | changes))


def fitted(folder, discovery=None, seed=0, data=None, ckpt_path=None, module=None, **trainer):
    """A run that keeps a checkpoint of every epoch."""
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


def test_one_stage_is_the_supervised_run_bit_for_bit(tmp_path):
    plain, _ = fitted(tmp_path / "plain", max_epochs=2)
    staged, trainer = fitted(tmp_path / "staged", LabelDiscovery(stages=1), max_epochs=2)
    assert trainer.current_epoch == 2
    assert_same(weights(plain), weights(staged))


def test_the_first_stage_is_the_supervised_run_and_becomes_the_teacher_of_the_second(tmp_path):
    plain, _ = fitted(tmp_path / "plain", max_epochs=2)
    _, trainer = fitted(tmp_path / "staged", LabelDiscovery(), max_epochs=2)
    assert trainer.current_epoch == 4
    first, second, last = (stored(tmp_path / "staged", epoch) for epoch in (1, 2, 3))
    student = {key.removeprefix("net."): value for key, value in first["state_dict"].items() if key.startswith("net.")}
    assert_same(weights(plain), student)
    assert [state_of(x)["stage"] for x in (first, second, last)] == [0, 1, 1]
    assert state_of(first)["teachers"] == []
    for checkpoint in (second, last):
        assert_same(student, state_of(checkpoint)["teachers"][0]["state_dict"])


def test_the_schedule_begins_again_at_the_border(tmp_path):
    class Rates(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            seen.append((trainer.optimizers[0].param_groups[0]["lr"], len(trainer.optimizers[0].state)))

    seen = []
    fitted(tmp_path, LabelDiscovery(stages=3), max_epochs=2, callbacks=[Rates()], max_steps=-1)
    first = [rate for rate, _ in seen]
    assert first[:2] == first[2:4] == first[4:]
    assert first[:2] == [pytest.approx(1e-3), pytest.approx(1e-3 * 0.5**0.9)]
    assert [bool(count) for _, count in seen] == [False, True] * 3


def test_a_fresh_student_is_another_draw_and_an_inherited_one_is_the_teacher(tmp_path):
    class Beginning(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            begun.append(weights(pl_module))

    begun = []
    for student in ("random", "teacher"):
        discovery = LabelDiscovery(student_init=student)
        fitted(tmp_path / student, discovery, max_epochs=1, callbacks=[Beginning()])
        first, second = begun[-2:]
        teacher = state_of(stored(tmp_path / student, 1))["teachers"][0]["state_dict"]
        key = "global_tokens.tokens" if "global_tokens.tokens" in first else next(iter(first))
        assert not torch.equal(first[key], second[key])
        same = all(torch.equal(second[name], teacher[name]) for name in second)
        assert same == (student == "teacher")


@pytest.mark.parametrize("epoch", [0, 1, 2])
def test_resuming_at_the_end_of_any_epoch_of_any_stage_is_bitwise(epoch, tmp_path, through):
    path = through.folder / "kept" / f"epoch={epoch}.ckpt"
    resumed, trainer = fitted(tmp_path, LabelDiscovery(), seed=99, max_epochs=2, ckpt_path=path)
    assert trainer.current_epoch == 4
    assert_same(weights(through.module), weights(resumed))


def test_the_second_views_of_a_resumed_run_are_those_of_an_uninterrupted_one(tmp_path, through):
    teacher = str(through.folder / "kept" / "epoch=1.ckpt")
    discovery = [LabelDiscovery(teacher=teacher, target_type="soft_tta") for _ in range(2)]
    whole, _ = fitted(tmp_path / "whole", discovery[0], max_epochs=2)
    path = tmp_path / "whole" / "kept" / "epoch=0.ckpt"
    resumed, _ = fitted(tmp_path / "resumed", discovery[1], seed=99, max_epochs=2, ckpt_path=path)
    assert_same(weights(whole), weights(resumed))


def test_a_run_killed_inside_an_epoch_of_the_second_stage_replays_it(tmp_path, through):
    class Killer(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.current_epoch == 3 and batch_idx == 1:
                raise KeyError("killed")

    with pytest.raises(KeyError):
        fitted(tmp_path, LabelDiscovery(), max_epochs=2, callbacks=[Killer()])
    path = tmp_path / "kept" / "epoch=2.ckpt"
    resumed, _ = fitted(tmp_path / "again", LabelDiscovery(), seed=99, max_epochs=2, ckpt_path=path)
    assert_same(weights(through.module), weights(resumed))


@pytest.fixture(scope="module")
def through(tmp_path_factory):
    class Run:
        folder = tmp_path_factory.mktemp("through")

    Run.module, Run.trainer = fitted(Run.folder, LabelDiscovery(), max_epochs=2)
    return Run


def test_a_checkpoint_of_a_finished_stage_teaches_as_the_stage_itself_did(tmp_path, through):
    teacher = str(through.folder / "checkpoints" / "stage_1.ckpt")
    taught = state_of(stored(through.folder, 3))["teachers"][0]["state_dict"]
    assert_same(weights(HTTModule.load_from_checkpoint(teacher)), taught)
    _, trainer = fitted(tmp_path, LabelDiscovery(teacher=teacher), max_epochs=2)
    assert trainer.current_epoch == 2
    again = state_of(stored(tmp_path, 1))
    assert again["stage"] == 1
    assert_same(again["teachers"][0]["state_dict"], taught)


def test_a_given_teacher_is_not_needed_again_after_resuming(tmp_path, through):
    teacher = tmp_path / "teacher.ckpt"
    shutil.copy(through.folder / "checkpoints" / "stage_1.ckpt", teacher)
    whole, _ = fitted(tmp_path / "whole", LabelDiscovery(teacher=str(teacher)), max_epochs=2)
    teacher.unlink()
    path = tmp_path / "whole" / "kept" / "epoch=0.ckpt"
    again, _ = fitted(tmp_path / "again", LabelDiscovery(teacher=str(teacher)), 99, max_epochs=2, ckpt_path=path)
    assert_same(weights(whole), weights(again))


def test_a_student_inherits_a_given_teacher_at_the_beginning_alone(tmp_path, through):
    class Beginning(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            begun.append(weights(pl_module))

    begun = []
    teacher = str(through.folder / "checkpoints" / "stage_1.ckpt")
    discovery = LabelDiscovery(teacher=teacher, student_init="teacher")
    whole, _ = fitted(tmp_path / "whole", discovery, max_epochs=2, callbacks=[Beginning()])
    assert_same(begun[0], state_of(stored(through.folder, 3))["teachers"][0]["state_dict"])
    path = tmp_path / "whole" / "kept" / "epoch=0.ckpt"
    again, _ = fitted(tmp_path / "again", discovery, 99, max_epochs=2, ckpt_path=path)
    assert_same(weights(whole), weights(again))


def test_a_network_that_cannot_be_inherited_is_refused(tmp_path, through):
    teacher = str(through.folder / "checkpoints" / "stage_1.ckpt")
    module = tiny_module(few(), use_fine_tokens=False)
    with pytest.raises(HTTError, match="no student can inherit its weights"):
        fitted(tmp_path, LabelDiscovery(teacher=teacher, student_init="teacher"), module=module)


def test_every_checkpoint_loads_as_the_student(through):
    path = through.folder / "kept" / "epoch=3.ckpt"
    assert_same(weights(HTTModule.load_from_checkpoint(path)), weights(through.module))


def test_coverage_confidence_and_precision_are_logged(through):
    for task in ("semseg", "depth", "edges"):
        for key in (f"train/{task}/pseudo_label_coverage", f"train/{task}/pseudo_label_confidence"):
            assert 0 <= through.trainer.callback_metrics[key] <= 1
        precision = through.trainer.callback_metrics[f"val/{task}/pseudo_label_accuracy"]
        assert torch.isnan(precision) or 0 <= precision <= 100


def test_a_trial_run_goes_through_all_stages(tmp_path):
    data = few()
    trainer = tiny_trainer(tmp_path, callbacks=[LabelDiscovery(stages=3)], fast_dev_run=1)
    trainer.fit(tiny_module(data), data)
    assert trainer.current_epoch == trainer.global_step == 3


def test_hidden_labels_do_not_reach_the_second_stage_either(tmp_path, through, monkeypatch):
    data = few()
    ruined_scenes(monkeypatch, data)
    ruined, _ = fitted(tmp_path, LabelDiscovery(), data=few(), max_epochs=2)
    assert_same(weights(through.module), weights(ruined))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stages": 0}, "discovery.stages must be at least 1"),
        ({"stages": 1, "teacher": "x.ckpt"}, "discovery.stages to at least 2"),
        ({"teacher": []}, "discovery.teacher names no checkpoint"),
        ({"num_teachers": 0}, "discovery.num_teachers is 0; it must be at least 1"),
        ({"num_teachers": 2}, "a stage each before that of the student: discovery.stages is 2"),
        ({"num_teachers": 2, "stages": 3, "teacher": "ema"}, "more only with discovery.teacher previous"),
        (
            {"num_teachers": 2, "stages": 3, "loss_weights": DiscoveryLossWeights(1, 1, 1)},
            "Features of several teachers",
        ),
        (
            {"teacher": ["a.ckpt", "b.ckpt"], "loss_weights": DiscoveryLossWeights(1, 1, 1)},
            "Features of several teachers",
        ),
        ({"ema_decay": 1.0}, "ema_decay must be in"),
        ({"rampup_epochs": -1}, "rampup_epochs must be a number of epochs"),
        ({"target_type": "firm"}, "target_type is 'firm'; it must be one of hard, soft, soft_tta"),
        ({"teacher_precision": "half"}, "teacher_precision is 'half'; it must be null or bf16-mixed"),
        ({"confidence_thresholds": {"depth": 1.5}}, "confidence_thresholds of depth must be in"),
        ({"confidence_thresholds": {"dpeth": 0.5}}, "confidence_thresholds names dpeth"),
        ({"pseudo_label_weights": {"dpeth": 0.5}}, "pseudo_label_weights names dpeth"),
        ({"class_balance_powers": {"depth": 0.5}}, "class_balance_powers names depth, which has no"),
        ({"teacher": "absent.ckpt"}, "existing checkpoint, got absent.ckpt"),
    ],
)
def test_bad_arguments_are_refused_before_training(arguments, message, tmp_path):
    with pytest.raises(HTTError, match=message):
        fitted(tmp_path, LabelDiscovery(**arguments))


@pytest.mark.parametrize(
    ("data", "model", "message"),
    [
        ({"tasks": "semseg,depth"}, {}, "was trained on semseg, depth, edges"),
        ({}, {"token_dim": 16}, "has token_dim 8, the student 16"),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused(data, model, message, tmp_path, through):
    path = str(through.folder / "kept" / "epoch=0.ckpt")
    data = few(**data)
    with pytest.raises(HTTError, match=message):
        fitted(tmp_path, LabelDiscovery(teacher=path), data=data, module=tiny_module(data, **model))


def test_a_teacher_without_tokens_is_refused(tmp_path):
    data = few()
    fitted(tmp_path / "plain", data=data, module=tiny_module(data, network="multitask"))
    path = str(tmp_path / "plain" / "kept" / "epoch=0.ckpt")
    with pytest.raises(HTTError, match="has no tokens"):
        fitted(tmp_path, LabelDiscovery(teacher=path), data=data)


def test_terms_can_be_switched_off(tmp_path):
    nothing = DiscoveryLossWeights(pseudo_label=0, feature_labeled=0, feature_unlabeled=0)
    discovery = LabelDiscovery(student_init="teacher", loss_weights=nothing)
    _, trainer = fitted(tmp_path, discovery, max_epochs=1)
    assert trainer.callback_metrics["train/pseudo_label_loss"] == 0


@pytest.mark.parametrize("targets", ["soft", "soft_tta"])
def test_soft_labels_count_everywhere_and_teach_something_else(targets, tmp_path, through):
    path = str(through.folder / "kept" / "epoch=1.ckpt")
    hard, _ = fitted(tmp_path / "hard", LabelDiscovery(teacher=path), max_epochs=1)
    soft, trainer = fitted(tmp_path / targets, LabelDiscovery(teacher=path, target_type=targets), max_epochs=1)
    coverage = [
        trainer.callback_metrics[f"train/{name}/pseudo_label_coverage"] for name in ("semseg", "depth", "edges")
    ]
    assert coverage == [1, 1, 0]  # nothing of edges is asked for
    assert any(not torch.equal(weights(hard)[key], value) for key, value in weights(soft).items())


@pytest.mark.parametrize(("teacher", "times"), [("previous", 1), ("ema", 3)])
def test_the_precision_of_a_frozen_teacher_is_measured_once(teacher, times, tmp_path, monkeypatch):
    def counted(self, batch):
        seen.append(batch["id"])
        return precision(self, batch)

    seen, precision = [], TeacherEnsemble.pseudo_label_hits
    monkeypatch.setattr(TeacherEnsemble, "pseudo_label_hits", counted)
    fitted(tmp_path, LabelDiscovery(teacher=teacher), max_epochs=3)
    assert len(seen) == times


def test_a_callback_that_is_used_again_begins_anew(tmp_path):
    discovery = LabelDiscovery()
    one, _ = fitted(tmp_path / "one", discovery)
    two, _ = fitted(tmp_path / "two", discovery)
    assert_same(weights(one), weights(two))


def test_a_given_teacher_teaches_in_double_precision(tmp_path, through):
    teacher = str(through.folder / "checkpoints" / "stage_1.ckpt")
    student, _ = fitted(tmp_path, LabelDiscovery(teacher=teacher), precision="64-true")
    assert all(value.dtype != torch.float32 for value in weights(student).values())


def test_the_weights_of_a_finished_stage_cannot_be_resumed_and_say_so(tmp_path, through):
    path = through.folder / "checkpoints" / "stage_1.ckpt"
    with pytest.raises(HTTError, match="holds weights alone"):
        fitted(tmp_path, LabelDiscovery(), ckpt_path=path)


def test_a_checkpoint_of_another_kind_of_teacher_is_refused(tmp_path, through):
    path = through.folder / "kept" / "epoch=3.ckpt"
    with pytest.raises(HTTError, match=r"discovery\.teacher is previous, not ema"):
        fitted(tmp_path, LabelDiscovery(teacher="ema"), ckpt_path=path)


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
@pytest.mark.parametrize("name", ["checkpoints/stage_1.ckpt", "kept/epoch=3.ckpt"])
def test_evaluation_takes_any_checkpoint_whatever_its_teacher(name, tmp_path, through):
    data = few()
    trainer = tiny_trainer(tmp_path, callbacks=[LabelDiscovery(teacher="ema")])
    (metrics,) = trainer.validate(tiny_module(data), data, ckpt_path=through.folder / name, verbose=False)
    assert metrics["val/depth/abs_err"] > 0


@pytest.mark.parametrize(("epochs", "total"), [(1, 3), (3, 6)])
def test_a_stage_of_another_length_ends_there_and_the_next_follows(epochs, total, tmp_path, through):
    path = through.folder / "kept" / "epoch=1.ckpt"  # the end of the first stage of two epochs
    _, trainer = fitted(tmp_path, LabelDiscovery(), max_epochs=epochs, ckpt_path=path)
    assert trainer.current_epoch == total
    assert state_of(stored(tmp_path, total - 1))["stage"] == 1


def test_a_stage_that_is_left_out_is_said(tmp_path):
    with pytest.warns(UserWarning, match="ended in stage 1 of 2"):
        fitted(tmp_path, LabelDiscovery(), max_epochs=1, max_steps=1)


def test_a_stage_that_cannot_be_kept_is_one_error(tmp_path):
    (tmp_path / "checkpoints").write_text("in the way")
    with pytest.raises(HTTError, match=r"Cannot write .*stage_1\.ckpt"):
        fitted(tmp_path, LabelDiscovery())
