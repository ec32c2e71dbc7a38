import json
import logging
from dataclasses import fields
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from htt_lightning import HTTModule
from htt_lightning.data.datasets.synthetic import SyntheticScenes
from htt_lightning.data.transforms import AugmentConfig
from htt_lightning.errors import HTTError
from htt_lightning.losses import labeled_sum
from htt_lightning.tasks import Depth
from tests.tiny import tiny_data, tiny_module, tiny_trainer


def batch_of(data):
    data.setup("fit")
    return next(iter(data.train_dataloader()))


def weights(module):
    return {key: value.clone() for key, value in module.net.state_dict().items()}


def assert_same(one, other):
    assert one.keys() == other.keys()
    assert [key for key in one if not torch.equal(one[key], other[key])] == []


def fitted(tmp_path, data, seed=0, module=None, ckpt_path=None, **trainer):
    torch.manual_seed(seed)
    module = module or tiny_module(data)
    tiny_trainer(tmp_path, **trainer).fit(module, data, ckpt_path=ckpt_path)
    return module


@pytest.mark.parametrize("image_weighting", [None, "num_tasks", "per_label", "none"])
def test_the_loss_is_the_balanced_mean_over_images_of_their_labelled_terms(image_weighting):
    data = tiny_data(labels="random-label")
    chosen = {"image_weighting": image_weighting} if image_weighting else {}
    module = tiny_module(data, dropout=0.0, loss_weights={"depth": 0.25}, **chosen)
    batch = batch_of(data)
    module.log = lambda *args, **kwargs: None
    module.discovery = Mock(loss=lambda *_: torch.arange(4.0), last_loss_terms=[])
    with torch.no_grad():
        ours = module.training_step(batch, 0)
        outputs = module(batch["image"])
        losses = {task.name: task.loss(outputs[task.name], batch[task.name]) for task in data.tasks}
    weights = {task.name: 0.25 if task.name == "depth" else task.loss_weight for task in data.tasks}
    expected, sizes = 0.0, []
    for image in range(4):
        names = [name for name, marks in batch["labeled"].items() if marks[image]]
        sizes.append(len(names))
        terms = image + sum(weights[name] * float(losses[name][image]) for name in names)
        expected += {"per_label": 6 / len(names), "none": 1}.get(image_weighting, 6) * terms / 4
    assert len(set(sizes)) > 1
    assert float(ours) == pytest.approx(expected, rel=1e-4)


def test_an_image_without_a_label_keeps_the_loss_finite():
    data = tiny_data()
    module = tiny_module(data, image_weighting="per_label")
    batch = batch_of(data)
    for task in data.tasks:
        batch["labeled"][task.name][:2] = False
    module.log = lambda *args, **kwargs: None
    assert module.training_step(batch, 0).isfinite()


def ruined_scenes(monkeypatch, data):
    """From now on, the labels that the scenes of ``data`` hide are wrong."""

    def ruin(self, index, task):
        label = read(self, index, task)
        given = task in data.labels_per_image("train", data.build_dataset("train")).get(str(index), ())
        return label if given or self._key[1] else np.roll(label, 7, axis=0)

    read = SyntheticScenes.label
    monkeypatch.setattr(SyntheticScenes, "label", ruin)


def test_hidden_labels_change_nothing_bit_for_bit(tmp_path, monkeypatch):
    data = tiny_data(train_images=8)
    plain = weights(fitted(tmp_path, data, max_epochs=2))
    ruined_scenes(monkeypatch, data)
    assert_same(plain, weights(fitted(tmp_path, tiny_data(train_images=8), max_epochs=2)))


def test_a_batch_without_labels_for_a_task_trains_the_others_and_gives_that_head_zero_gradient():
    data = tiny_data()
    module = tiny_module(data)
    batch = batch_of(data)
    batch["labeled"]["depth"][:] = False
    batch["depth"][:] = torch.nan
    module.log = lambda *args, **kwargs: None
    module.training_step(batch, 0).backward()
    head = [p.grad for p in module.net.heads["depth"].parameters()]
    assert all(grad is not None and (grad == 0).all() for grad in head)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.net.parameters())


def test_a_task_is_asked_for_the_loss_of_labelled_images_alone():
    data = tiny_data()
    batch = batch_of(data)
    batch["labeled"]["depth"] = torch.tensor([False, True, False, True])

    class Watched(Depth):
        def loss(self, output, target):
            assert len(target) == len(output.logits) == 2
            assert torch.equal(target.nan_to_num(), batch["depth"][[1, 3]].nan_to_num())
            return super().loss(output, target)

    depth = next(task for task in data.tasks if task.name == "depth")
    watched = Watched(**{field.name: getattr(depth, field.name) for field in fields(depth)})
    tasks = [watched if task is depth else task for task in data.tasks]
    module = tiny_module(data, dropout=0.0)
    module.log = lambda *args, **kwargs: None
    plain = module.training_step(batch, 0)
    module.tasks = tasks
    assert module.training_step(batch, 0) == plain
    assert module.training_step(data.on_before_batch_transfer(batch, 0), 0) == plain


def test_moments_in_another_memory_layout_go_on_as_they_were():
    def stepped(relaid):
        torch.manual_seed(0)
        module = tiny_module(data)
        module.trainer = tiny_trainer(None, max_epochs=1)
        optimizer = module.configure_optimizers()["optimizer"]
        for step in range(2):
            torch.manual_seed(step)
            for parameter in module.parameters():
                parameter.grad = torch.empty_like(parameter).copy_(torch.randn(parameter.shape))
            optimizer.step()
            state = optimizer.state_dict()
            if relaid:
                for moments in state["state"].values():
                    moments.update({key: value.contiguous() for key, value in moments.items()})
            optimizer.load_state_dict(state)
        return module.state_dict()

    data = tiny_data()
    assert_same(stepped(relaid=True), stepped(relaid=False))


def test_training_on_a_batch_without_any_valid_pixel_is_a_finite_zero():
    data = tiny_data()
    module = tiny_module(data)
    batch = batch_of(data)
    for task in data.tasks:
        batch[task.name] = torch.full_like(batch[task.name], torch.nan if task.field_channels else 255)
        batch["labeled"][task.name][:] = True
    module.log = lambda *args, **kwargs: None
    loss = module.training_step(batch, 0)
    loss.backward()
    assert loss == 0
    assert all((p.grad == 0).all() for p in module.net.parameters())


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(tmp_path):
    def checkpoint(folder):
        keep = ModelCheckpoint(dirpath=tmp_path / folder, save_top_k=-1, filename="{epoch}")
        return {"callbacks": [keep], "enable_checkpointing": True}

    through = fitted(tmp_path, tiny_data(num_workers=1), max_epochs=3, **checkpoint("a"))
    for epoch in (0, 1):
        path = tmp_path / "a" / f"epoch={epoch}.ckpt"
        resumed = fitted(tmp_path, tiny_data(), seed=99, max_epochs=3, ckpt_path=path, **checkpoint(f"b{epoch}"))
        assert_same(weights(through), weights(resumed))


def test_the_number_of_workers_changes_nothing(tmp_path):
    one = fitted(tmp_path, tiny_data(num_workers=0), max_epochs=1)
    assert_same(weights(one), weights(fitted(tmp_path, tiny_data(num_workers=2), max_epochs=1)))


def test_a_resumed_run_with_other_labels_is_refused(tmp_path):
    keep = ModelCheckpoint(dirpath=tmp_path / "kept", filename="run")
    fitted(tmp_path, tiny_data(), callbacks=[keep], enable_checkpointing=True)
    with pytest.raises(HTTError, match="other labels"):
        fitted(tmp_path, tiny_data(seed=5), max_epochs=2, ckpt_path=tmp_path / "kept" / "run.ckpt")


def test_checkpoints_load_safely_with_their_tasks_and_predict_the_same(tmp_path):
    data = tiny_data(tasks=["semseg", Depth(num_bins=7)], labels="full")
    keep = ModelCheckpoint(dirpath=tmp_path / "kept", filename="run")
    module = fitted(tmp_path, data, callbacks=[keep], enable_checkpointing=True)
    loaded = HTTModule.load_from_checkpoint(tmp_path / "kept" / "run.ckpt", weights_only=True)
    assert loaded.tasks == data.tasks
    assert_same(weights(module), weights(loaded))
    image = torch.rand(2, 3, 40, 50)
    with torch.no_grad():
        ours, theirs = module.eval().decode(image), loaded.eval().decode(image)
    assert all(torch.equal(ours[task], theirs[task]) for task in ours)


def test_a_checkpoint_of_other_tasks_is_refused(tmp_path):
    keep = ModelCheckpoint(dirpath=tmp_path / "kept", filename="run")
    fitted(tmp_path, tiny_data(tasks="semseg", labels="full"), callbacks=[keep], enable_checkpointing=True)
    data = tiny_data(tasks="depth", labels="full")
    with pytest.raises(HTTError, match=r"trained on semseg, got depth"):
        tiny_trainer(tmp_path).validate(tiny_module(data), data, ckpt_path=tmp_path / "kept" / "run.ckpt")


def test_a_checkpoint_of_a_task_with_other_bins_is_refused(tmp_path):
    """As many bins elsewhere: the weights would fit, and every depth would be wrong."""
    keep = ModelCheckpoint(dirpath=tmp_path / "kept", filename="run")
    far = tiny_data(tasks=[Depth(max_depth=20.0)], labels="full")
    fitted(tmp_path, far, callbacks=[keep], enable_checkpointing=True)
    path, trainer = tmp_path / "kept" / "run.ckpt", tiny_trainer(tmp_path, callbacks=[keep], enable_checkpointing=True)
    data = tiny_data(tasks="depth", labels="full")
    with pytest.raises(HTTError, match=r"max_depth 20\.0 of task depth"):
        trainer.validate(tiny_module(data), data, ckpt_path=path)
    heavy = tiny_data(tasks=[Depth(max_depth=20.0, loss_weight=9)], labels="full")
    trainer.validate(tiny_module(heavy), heavy, ckpt_path=path)


def test_a_checkpoint_with_pretrained_weights_loads_without_fetching_them(tmp_path):
    source = tiny_module(tiny_data()).net.backbone.model
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    data = tiny_data()
    module = tiny_module(data, pretrained=str(tmp_path / "weights.pth"), lr=1e-30)
    keep = ModelCheckpoint(dirpath=tmp_path / "kept", filename="run")
    fitted(tmp_path, data, module=module, callbacks=[keep], enable_checkpointing=True)
    key = "conv1.0.weight"
    torch.testing.assert_close(module.net.backbone.model.state_dict()[key], source.state_dict()[key])
    (tmp_path / "weights.pth").unlink()
    loaded = HTTModule.load_from_checkpoint(tmp_path / "kept" / "run.ckpt")
    assert_same(weights(module), weights(loaded))
    fitted(tmp_path, data, module=loaded)  # going on with it needs no download either
    again = tiny_module(data, pretrained=str(tmp_path / "weights.pth"))
    keep.dirpath = str(tmp_path / "further")
    going_on = {"ckpt_path": tmp_path / "kept" / "run.ckpt", "max_epochs": 2, "callbacks": [keep]}
    fitted(tmp_path, data, module=again, enable_checkpointing=True, **going_on)


def test_pretrained_weights_are_fetched_whatever_the_trainer_did_before(tmp_path):
    data = tiny_data(tasks="depth", labels="full")
    keep = ModelCheckpoint(dirpath=tmp_path / "kept", filename="run")
    trainer = tiny_trainer(tmp_path, callbacks=[keep], enable_checkpointing=True)
    trainer.fit(tiny_module(data), data)
    trainer.validate(tiny_module(data), data, ckpt_path=tmp_path / "kept" / "run.ckpt")
    keep.dirpath = str(tmp_path / "elsewhere")
    with pytest.raises(HTTError, match=r"missing\.pth"):
        trainer.fit(tiny_module(data, pretrained="missing.pth"), data)


def test_the_learning_rate_decays_polynomially_per_epoch(tmp_path):
    rates = []

    class Watched(HTTModule):
        def on_train_epoch_start(self):
            super().on_train_epoch_start()
            rates.append(self.optimizers().param_groups[0]["lr"])

    data = tiny_data(tasks="depth", labels="full", train_images=4)
    fitted(tmp_path, data, module=Watched(data.tasks, backbone="test_resnet", token_dim=8, lr=0.5), max_epochs=4)
    assert rates == pytest.approx([0.5 * (1 - epoch / 4) ** 0.9 for epoch in range(4)])


def test_an_endless_run_is_refused_because_the_rate_decays_over_epochs(tmp_path):
    data = tiny_data(tasks="depth", labels="full")
    with pytest.raises(HTTError, match=r"trainer\.max_epochs"):
        fitted(tmp_path, data, max_epochs=-1, max_steps=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"network": "mtl"}, "model.network is 'mtl'; it must be one of htt, multitask"),
        (
            {"image_weighting": "images"},
            "model.image_weighting is 'images'; it must be one of num_tasks, per_label, none",
        ),
        ({"loss_weights": {"dpeth": 1.0}}, "loss_weights names 'dpeth'.*Did you mean 'depth'"),
        (
            {"single_task_baselines": {"semseg": 30.0}},
            "single_task_baselines needs a finite figure other than zero for .*depth",
        ),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(HTTError, match=message):
        tiny_module(tiny_data(), **arguments)


def test_predictions_are_the_maps_a_user_wants(tmp_path):
    data = tiny_data()
    predictions = tiny_trainer(tmp_path).predict(tiny_module(data), data)
    assert [name for batch in predictions for name in batch["id"]] == ["0", "1", "2", "3"]
    assert predictions[0]["semseg"].shape == (4, 32, 48)
    assert predictions[0]["normals"].shape == (4, 3, 32, 48)
    assert predictions[0]["depth"].shape == (4, 1, 32, 48)


@pytest.mark.parametrize("network", ["htt", "multitask"])
def test_baseline_and_single_task_share_the_interface(tmp_path, network):
    data = tiny_data(tasks="depth", labels="full")
    trainer = tiny_trainer(tmp_path)
    trainer.fit(tiny_module(data, network=network), data)
    assert "val/depth/abs_err" in trainer.callback_metrics


def test_bf16_trains(tmp_path):
    data = tiny_data()
    module = fitted(tmp_path, data, precision="bf16-mixed", max_epochs=2)
    assert all(p.isfinite().all() for p in module.net.parameters())


def test_the_mask_is_saved_beside_the_run_and_can_be_given_back(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    data = tiny_data()
    fitted(tmp_path, data)
    saved = json.loads((tmp_path / "label_mask.json").read_text())
    assert saved["tasks"] == [task.name for task in data.tasks]
    again = tiny_data(labels=str(tmp_path / "label_mask.json"), seed=7)
    again.setup("fit")
    assert again.mask.fingerprint == data.mask.fingerprint


@pytest.mark.parametrize("seed", [2, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (0, 1))])
def test_eight_images_are_learned_by_every_task(seed):
    """Every task's loss falls below 20 % of its start within 200 steps."""
    torch.manual_seed(seed)
    # Crops of large images, and borders of three pixels: logits at a quarter of the size cannot draw a line of one.
    crop = AugmentConfig(scale_range=(1, 1), crop=(64, 96), hflip_prob=0, photometric_prob=0)
    data = tiny_data(
        train_images=8, image_size=(192, 288), batch_size=8, labels="full", augment=crop, scene_seed=seed
    )  # fmt: skip
    batch = batch_of(data)
    batch["edges"] = torch.nn.functional.max_pool2d(batch["edges"].float(), 3, 1, 1).long()
    channels = {"channels": [32, 48, 64, 96]}
    module = HTTModule(data.tasks, backbone_options=channels, token_dim=32, dilations=[2], dropout=0.0)
    optimizer = torch.optim.Adam(module.parameters(), lr=3e-3)
    first: dict[str, float] = {}
    for _ in range(200):
        outputs = module(batch["image"])
        losses = {
            t.name: labeled_sum(t.loss(outputs[t.name], batch[t.name]), batch["labeled"][t.name]) for t in data.tasks
        }
        last = {name: float(loss.detach()) for name, loss in losses.items()}
        assert all(np.isfinite(list(last.values())))
        first = first or last
        shares = {name: last[name] / first[name] for name in first}
        if max(shares.values()) < 0.2:
            return
        total = sum(module.loss_weights[name] * loss for name, loss in losses.items())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    pytest.fail(f"after 200 steps there is left {shares}")
