import json
from dataclasses import replace
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

from htt_lightning import HTTModule
from htt_lightning.data.datasets.synthetic import SyntheticScenes
from htt_lightning.errors import ConfigError, HTTError
from tests.run_if import RunIf
from tests.tiny import tiny_data, tiny_module, tiny_trainer


@pytest.fixture(scope="module")
def data():
    data = tiny_data()
    data.setup("fit")
    return data


@pytest.fixture
def batch(data):
    return next(iter(data.train_dataloader()))


def silent(module):
    """Return a module that can take a training step without a trainer."""
    module.log = lambda *args, **kwargs: None
    return module


def weights(module):
    return {key: value.clone() for key, value in module.net.state_dict().items()}


def assert_same(one, other):
    assert one.keys() == other.keys()
    assert [key for key in one if not torch.equal(one[key], other[key])] == []


def fitted(folder, data, seed=0, module=None, ckpt_path=None, callbacks=(), **trainer):
    """Train, and keep a checkpoint of every epoch."""
    torch.manual_seed(seed)
    module = module or tiny_module(data)
    callbacks = [ModelCheckpoint(dirpath=folder / "kept", save_top_k=-1, filename="{epoch}"), *callbacks]
    trainer = tiny_trainer(folder, callbacks=callbacks, enable_checkpointing=True, **trainer)
    trainer.fit(module, data, ckpt_path=ckpt_path)
    return module


class LearningRates(Callback):
    def __init__(self):
        self.rates = []

    def on_train_epoch_start(self, trainer, pl_module):
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Three epochs with a worker process."""
    folder, rates, data = tmp_path_factory.mktemp("trained"), LearningRates(), tiny_data(num_workers=1)
    module = fitted(folder, data, max_epochs=3, callbacks=[rates])
    return SimpleNamespace(
        folder=folder, data=data, module=module, rates=rates.rates, checkpoint=folder / "kept" / "epoch=2.ckpt"
    )


@pytest.mark.parametrize("image_weighting", [None, "num_tasks", "per_label", "none"])
def test_loss_is_the_weighted_mean_over_images(image_weighting):
    data = tiny_data(labels="random-label")
    options = {"image_weighting": image_weighting} if image_weighting else {}
    module = silent(tiny_module(data, dropout=0.0, loss_weights={"depth": 0.25}, **options))
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    module.discovery = Mock(loss=lambda *_: torch.arange(4.0), last_loss_terms=[])
    with torch.no_grad():
        ours = module.training_step(batch, 0)
        outputs = module(batch["image"])
        losses = {task.name: task.loss(outputs[task.name], batch[task.name]) for task in data.tasks}
    weights = {task.name: 0.25 if task.name == "depth" else task.loss_weight for task in data.tasks}
    expected, sizes = 0.0, set()
    for image in range(4):
        names = [name for name, labeled in batch["labeled"].items() if labeled[image]]
        sizes.add(len(names))
        terms = image + sum(weights[name] * float(losses[name][image]) for name in names)
        expected += {"per_label": 6 / len(names), "none": 1}.get(image_weighting, 6) * terms / 4
    assert len(sizes) > 1
    assert float(ours) == pytest.approx(expected, rel=1e-4)


def test_image_without_labels_keeps_the_loss_finite(data, batch):
    for task in data.tasks:
        batch["labeled"][task.name][:2] = False
    assert silent(tiny_module(data, image_weighting="per_label")).training_step(batch, 0).isfinite()


def ruined_scenes(monkeypatch, data):
    """Change the labels that the scenes of ``data`` hide."""

    def ruin(self, index, task):
        label = read(self, index, task)
        given = task in data.labels_per_image("train", data.build_dataset("train")).get(str(index), ())
        return label if given or self._key[1] else np.roll(label, 7, axis=0)

    read = SyntheticScenes.label
    monkeypatch.setattr(SyntheticScenes, "label", ruin)


def test_hidden_labels_change_nothing_bitwise(trained, tmp_path, monkeypatch):
    ruined_scenes(monkeypatch, trained.data)
    assert_same(weights(trained.module), weights(fitted(tmp_path, tiny_data(), max_epochs=3)))


@pytest.mark.parametrize("epoch", [0, 1])
def test_resumed_run_equals_an_uninterrupted_one(epoch, trained, tmp_path):
    """Without worker processes, which change nothing."""
    path = trained.folder / "kept" / f"epoch={epoch}.ckpt"
    resumed = fitted(tmp_path, tiny_data(), seed=99, max_epochs=3, ckpt_path=path)
    assert_same(weights(trained.module), weights(resumed))


def test_task_without_labels_gives_its_head_zero_gradient(data, batch):
    module = silent(tiny_module(data))
    batch["labeled"]["depth"][:] = False
    batch["depth"][:] = torch.nan
    module.training_step(batch, 0).backward()
    head = [p.grad for p in module.net.heads["depth"].parameters()]
    assert all(grad is not None and (grad == 0).all() for grad in head)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in module.net.parameters())


def test_tasks_see_labeled_images_alone(data, batch, monkeypatch):
    batch["labeled"]["depth"] = torch.tensor([False, True, False, True])
    module, depth = silent(tiny_module(data, dropout=0.0)), next(task for task in data.tasks if task.name == "depth")
    expected, loss, seen = module.training_step(batch, 0), type(depth).loss, []
    monkeypatch.setattr(type(depth), "loss", lambda *args: seen.append(args[1:]) or loss(*args))
    assert module.training_step(batch, 0) == expected
    assert module.training_step(data.on_before_batch_transfer(batch, 0), 0) == expected
    for output, target in seen:
        assert len(output.logits) == 2
        assert torch.equal(target.nan_to_num(), batch["depth"][[1, 3]].nan_to_num())


def test_moments_in_another_memory_format_continue_equally(data):
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

    assert_same(stepped(relaid=True), stepped(relaid=False))


def test_batch_without_valid_pixels_has_zero_loss(data, batch):
    module = silent(tiny_module(data))
    for task in data.tasks:
        batch[task.name] = torch.full_like(batch[task.name], torch.nan if task.field_channels else 255)
        batch["labeled"][task.name][:] = True
    loss = module.training_step(batch, 0)
    loss.backward()
    assert loss == 0
    assert all((p.grad == 0).all() for p in module.net.parameters())


def test_resuming_with_other_labels_is_refused(trained, tmp_path):
    with pytest.raises(HTTError, match="labels"):
        fitted(tmp_path, tiny_data(seed=5), max_epochs=4, ckpt_path=trained.checkpoint)


def test_checkpoint_loads_safely_and_predicts_the_same(trained):
    loaded = HTTModule.load_from_checkpoint(trained.checkpoint, weights_only=True)
    assert loaded.tasks == trained.data.tasks
    assert_same(weights(trained.module), weights(loaded))
    image = torch.rand(2, 3, 40, 50)
    with torch.no_grad():
        ours, theirs = trained.module.eval().decode(image), loaded.eval().decode(image)
    assert all(torch.equal(ours[task], theirs[task]) for task in ours)


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_checkpoint_of_other_tasks_is_refused(trained, tmp_path, data):
    def validated(tasks):
        module = HTTModule(tasks, backbone="test_resnet", token_dim=8)
        tiny_trainer(tmp_path, limit_val_batches=1).validate(module, trained.data, ckpt_path=trained.checkpoint)

    with pytest.raises(HTTError, match=r"semseg, .*, got depth"):
        validated([task for task in data.tasks if task.name == "depth"])
    # As many bins elsewhere: the weights would fit, and every depth would be wrong.
    with pytest.raises(HTTError, match=r"max_depth 10\.0 of task depth"):
        validated([replace(task, max_depth=20.0) if task.name == "depth" else task for task in data.tasks])
    validated([replace(task, loss_weight=9) for task in data.tasks])


def test_checkpoint_of_the_other_form_is_refused(trained, tmp_path, data):
    trainer = tiny_trainer(tmp_path, limit_val_batches=1)
    with pytest.raises(HTTError, match=r"model\.tokens must be exchange, as in the checkpoint, got released"):
        trainer.validate(tiny_module(data, tokens="released"), data, ckpt_path=trained.checkpoint)


def test_baseline_has_no_tokens_to_leave_out(data):
    with pytest.raises(ConfigError, match=r"model\.use_fine_tokens must be true for model\.network multitask"):
        tiny_module(data, network="multitask", use_fine_tokens=False)


def test_training_takes_normalization_of_the_weights(tmp_path, data):
    module = tiny_module(data, backbone="tf_efficientnet_lite0", pretrained=True, std=[0.1, 0.2, 0.3])
    fitted(tmp_path, data, module=module, limit_train_batches=1)
    loaded = HTTModule.load_from_checkpoint(tmp_path / "kept" / "epoch=0.ckpt")
    assert loaded.net.mean.flatten().tolist() == [0.5, 0.5, 0.5]
    assert loaded.net.std.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])


def test_checkpoint_with_pretrained_weights_needs_no_file(tmp_path, data):
    source, path = tiny_module(data).net.backbone.model, tmp_path / "weights.pth"
    torch.save(source.state_dict(), path)
    module = tiny_module(data, pretrained=str(path), lr=1e-30)
    fitted(tmp_path / "run", data, module=module, limit_train_batches=1)
    key = "conv1.0.weight"
    torch.testing.assert_close(module.net.backbone.model.state_dict()[key], source.state_dict()[key])
    path.unlink()
    checkpoint = tmp_path / "run" / "kept" / "epoch=0.ckpt"
    loaded = HTTModule.load_from_checkpoint(checkpoint)
    assert_same(weights(module), weights(loaded))
    fitted(tmp_path / "further", data, module=loaded, limit_train_batches=1)
    again = tiny_module(data, pretrained=str(path))
    fitted(tmp_path / "resumed", data, module=again, ckpt_path=checkpoint, max_epochs=2, limit_train_batches=1)


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`")
def test_fit_loads_pretrained_weights_after_a_validation(trained, tmp_path, data):
    trainer = tiny_trainer(tmp_path, limit_val_batches=1)
    trainer.validate(tiny_module(data), data, ckpt_path=trained.checkpoint)
    with pytest.raises(HTTError, match=r"missing\.pth"):
        trainer.fit(tiny_module(data, pretrained="missing.pth"), data)


def test_learning_rate_decays_polynomially_per_epoch(trained):
    assert trained.rates == pytest.approx([1e-3 * (1 - epoch / 3) ** 0.9 for epoch in range(3)])


def test_endless_run_is_refused(tmp_path, data):
    with pytest.raises(ConfigError, match=r"trainer\.max_epochs.*-1"):
        fitted(tmp_path, data, max_epochs=-1, max_steps=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"network": "mtl"}, r"model\.network must be one of htt, multitask, got 'mtl'"),
        ({"image_weighting": "images"}, r"model\.image_weighting.*'images'"),
        ({"loss_weights": {"dpeth": 1.0}}, r"model\.loss_weights.*'dpeth'.*'depth'"),
        ({"single_task_baselines": {"semseg": 30.0}}, r"model\.single_task_baselines\.human_parts.*None"),
        ({"single_task_baselines": {"semseg": 0.0}}, r"model\.single_task_baselines\.semseg.*0\.0"),
    ],
)
def test_wrong_arguments_are_named(arguments, message, data):
    with pytest.raises(ConfigError, match=message):
        tiny_module(data, **arguments)


def test_predict_returns_maps_of_the_size_of_the_images(tmp_path, data):
    predictions = tiny_trainer(tmp_path).predict(tiny_module(data), data)
    assert [name for batch in predictions for name in batch["id"]] == ["0", "1", "2", "3"]
    assert predictions[0]["semseg"].shape == (4, 32, 48)
    assert predictions[0]["normals"].shape == (4, 3, 32, 48)
    assert predictions[0]["depth"].shape == (4, 1, 32, 48)


def test_multitask_baseline_trains_on_a_single_task(tmp_path):
    data = tiny_data(tasks="depth", labels="full")
    trainer = tiny_trainer(tmp_path, limit_train_batches=1)
    trainer.fit(tiny_module(data, network="multitask"), data)
    assert "val/depth/abs_err" in trainer.callback_metrics


def test_bf16_trains(tmp_path, data):
    module = fitted(tmp_path, data, precision="bf16-mixed")
    assert all(p.isfinite().all() for p in module.net.parameters())


def test_saved_label_mask_can_be_given_to_another_run(trained):
    path = trained.folder / "label_mask.json"
    assert json.loads(path.read_text())["tasks"] == [task.name for task in trained.data.tasks]
    again = tiny_data(labels=str(path), seed=7)
    again.setup("fit")
    assert again.mask.fingerprint == trained.data.mask.fingerprint


@RunIf(min_gpus=1)
def test_gpu_training_step_equals_that_of_the_cpu(data, batch):
    torch.manual_seed(0)
    module = silent(tiny_module(data, dropout=0.0).double())
    batch = data.on_before_batch_transfer(batch | {"image": batch["image"].double()}, 0)
    losses, gradients = [], []
    for device in ("cpu", "cuda"):
        module.to(device).zero_grad()
        loss = module.training_step(data.transfer_batch_to_device(batch, torch.device(device), 0), 0)
        loss.backward()
        losses.append(loss.detach().cpu())
        gradients.append([p.grad.cpu() for p in module.net.parameters()])
    torch.testing.assert_close(losses[1], losses[0])
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-6, atol=1e-9)


@RunIf(min_gpus=1)
@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_mixed_precision_trains_on_a_gpu(precision, tmp_path, data):
    module = fitted(tmp_path, data, accelerator="gpu", devices=1, precision=precision)
    assert all(p.isfinite().all() for p in module.net.parameters())


@pytest.mark.parametrize(
    "load",
    [
        lambda module, other: module.load_state_dict(other.state_dict()),
        lambda module, other: module.net.load_state_dict(other.net.state_dict()),
        lambda module, other: module.net.load_state_dict(other.net.state_dict(), assign=True),
        lambda module, other: setattr(module, "net", other.net),
        lambda module, other: module.net.heads.load_state_dict(other.net.heads.state_dict()),
        lambda module, other: torch.optim.Adam(module.parameters(), 0.1, fused=True).step(
            lambda: sum(weight.sum() for weight in module.parameters()).backward()
        ),
    ],
    ids=["module", "network", "assigned", "replaced", "heads", "own loop"],
)
def test_weights_are_random_until_they_change(load):
    data = tiny_data(tasks="depth", labels="full")
    module, other = tiny_module(data), tiny_module(data)
    assert module.to(torch.float64).float().eval().has_random_weights
    assert tiny_module(data).to(torch.bfloat16).has_random_weights
    module.net.backbone.load_state_dict(other.net.backbone.state_dict())  # pretrained weights are not enough
    assert module.has_random_weights
    load(module, other)
    assert not module.has_random_weights
