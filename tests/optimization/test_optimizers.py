import pytest
import torch
from lightning.pytorch.callbacks import Callback

from htt_lightning import HTTModule, LabelDiscovery
from htt_lightning.errors import ConfigError
from htt_lightning.optimization.optimizers import make_schedule, parameter_groups
from tests.callbacks.test_label_discovery import few, fitted, stored
from tests.test_module import assert_same, weights
from tests.tiny import tiny_module

ADAMW = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-2, "weight_decay": 0.1, "betas": [0.8, 0.9]}}
COSINE = {"class_path": "torch.optim.lr_scheduler.CosineAnnealingLR", "init_args": {"T_max": 2}}
PLATEAU = "torch.optim.lr_scheduler.ReduceLROnPlateau"


class Optimizers(Callback):
    """Record optimizer and learning rate of every step."""

    def __init__(self):
        self.kinds, self.rates = [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.kinds.append(trainer.optimizers[0])
        self.rates.append(self.kinds[-1].param_groups[0]["lr"])


def trained(folder, discovery=None, ckpt_path=None, **options):
    """Train without validation."""
    seen, trainer = Optimizers(), {key: options.pop(key) for key in ("max_epochs",) if key in options}
    data = few(tasks="depth", labels="full")
    module = tiny_module(data, **options)
    fitted(
        folder,
        discovery,
        data=data,
        module=module,
        ckpt_path=ckpt_path,
        callbacks=[seen],
        limit_val_batches=0,
        **trainer,
    )
    return module, seen


def test_given_optimizer_trains_each_stage_from_its_start(tmp_path):
    module, seen = trained(tmp_path, LabelDiscovery(), max_epochs=2, optimizer=ADAMW, lr_scheduler=COSINE)
    assert {type(kind) for kind in seen.kinds} == {torch.optim.AdamW}
    assert len({id(kind) for kind in seen.kinds}) == 2
    assert seen.rates == pytest.approx(2 * [1e-2, 1e-2, 1e-2, 5e-3, 5e-3, 5e-3])
    defaults = seen.kinds[-1].defaults
    assert (defaults["weight_decay"], defaults["betas"]) == (0.1, (0.8, 0.9))
    again, _ = trained(
        tmp_path / "again", LabelDiscovery(), tmp_path / "kept" / "epoch=2.ckpt", max_epochs=2, optimizer=ADAMW,
        lr_scheduler=COSINE,
    )  # fmt: skip
    assert_same(weights(module), weights(again))


def test_checkpoint_holds_optimizer_and_its_rate_once(tmp_path):
    trained(tmp_path, optimizer=ADAMW, lr_scheduler=COSINE, lr=5.0)
    hyperparameters = stored(tmp_path, 0)["hyper_parameters"]
    assert hyperparameters["lr"] == 1e-2
    assert "lr" not in hyperparameters["optimizer"]["init_args"]
    loaded = HTTModule.load_from_checkpoint(tmp_path / "kept" / "epoch=0.ckpt")
    assert loaded.hparams["lr"] == 1e-2
    assert loaded.hparams["optimizer"] == hyperparameters["optimizer"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"lr_interval": "step", "poly_power": 1.0}, [1 - k / 6 for k in range(6)]),
        ({"lr_interval": "step", "poly_power": 1.0, "warmup": 2}, [1 / 3, 2 / 3, 1, 3 / 4, 2 / 4, 1 / 4]),
        ({"lr_interval": "step", "lr_scheduler": COSINE, "warmup": 2}, [1 / 3, 2 / 3, 1, 1 / 2, 0, 1 / 2]),
        ({"warmup": 1}, 3 * [1 / 2] + 3 * [1]),
        ({"poly_power": 0.0}, 6 * [1]),
    ],
)
def test_schedule_and_warmup_advance_by_step_or_epoch(options, expected, tmp_path):
    _, seen = trained(tmp_path, LabelDiscovery(), max_epochs=2, lr=1e-3, **options)
    assert seen.rates == pytest.approx([1e-3 * factor for factor in 2 * expected], abs=1e-12)


def test_run_resumed_in_its_warmup_equals_an_uninterrupted_one(tmp_path):
    options = {"lr_interval": "step", "warmup": 4, "lr_scheduler": COSINE}
    module, _ = trained(tmp_path, max_epochs=2, **options)
    again, _ = trained(tmp_path / "again", None, tmp_path / "kept" / "epoch=0.ckpt", max_epochs=2, **options)
    assert_same(weights(module), weights(again))


def test_plateau_schedule_follows_its_metric(tmp_path):
    spec = {"class_path": "lightning.pytorch.cli.ReduceLROnPlateau"}
    spec["init_args"] = {"monitor": "train/loss", "patience": 0, "factor": 0.5, "threshold": 1e6}
    module, seen = trained(tmp_path, max_epochs=3, lr_scheduler=spec)
    assert seen.rates[::3] == pytest.approx([1e-3, 5e-4, 2.5e-4])
    path = tmp_path / "kept" / "epoch=1.ckpt"
    again, seen = trained(tmp_path / "again", None, path, max_epochs=3, lr_scheduler=spec)
    assert seen.rates == pytest.approx(3 * [2.5e-4])
    assert_same(weights(module), weights(again))


def test_plateau_schedule_waits_for_a_validation(tmp_path):
    spec = {"class_path": "lightning.pytorch.cli.ReduceLROnPlateau"}
    spec["init_args"] = {"monitor": "val/depth/abs_err", "patience": 0, "factor": 0.5, "threshold": 1e6}
    data, seen = few(tasks="depth", labels="full"), Optimizers()
    options = {"max_epochs": 5, "check_val_every_n_epoch": 2, "limit_train_batches": 1, "callbacks": [seen]}
    fitted(tmp_path, data=data, module=tiny_module(data, lr_scheduler=spec), **options)
    assert seen.rates == pytest.approx([1e-3, 1e-3, 5e-4, 5e-4, 2.5e-4])


def groups_of(**options):
    module = tiny_module(few(), task_weighting="uncertainty")
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    groups = parameter_groups(module, 1e-3, **options)
    assert sorted(id(x) for group in groups for x in group["params"]) == sorted(names)
    return [{**group, "params": [names[id(x)] for x in group["params"]]} for group in groups]


def test_default_recipe_is_one_group_in_the_order_of_parameters():
    module = tiny_module(few())
    (group,) = parameter_groups(module, 1e-3)
    assert list(group) == ["params"]
    assert [*map(id, group["params"])] == [*map(id, module.parameters())]


def test_backbone_has_its_own_learning_rate():
    groups = {group["name"]: group for group in groups_of(backbone_lr_factor=0.1)}
    assert groups["backbone"]["lr"] == pytest.approx(1e-4)
    assert all(name.startswith("net.backbone.") for name in groups["backbone"]["params"])
    assert groups["rest_no_decay"]["params"] == ["uncertainty.log_variance"]
    assert "lr" not in groups["rest"]


def test_norms_biases_and_tokens_do_not_decay():
    groups = {group["name"]: group for group in groups_of(weight_decay_on="weights", backbone_lr_factor=0.5)}
    kept = [*groups["rest"]["params"], *groups["backbone"]["params"]]
    exempt = [*groups["rest_no_decay"]["params"], *groups["backbone_no_decay"]["params"]]
    assert not [name for name in kept if name.endswith(".bias") or "bn" in name]
    assert "net.global_tokens.tokens" in exempt
    assert "net.heads.depth.classify.weight" in kept
    assert "net.heads.depth.classify.bias" in exempt
    assert groups["backbone_no_decay"]["weight_decay"] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": {"class_path": "torch.optim.AdanW"}}, "optimizer must be a class.*AdanW"),
        ({"optimizer": {"class_path": "torch.optim.SGD", "init_args": {"speed": 1}}}, "optimizer must .*speed"),
        ({"lr_scheduler": {"class_path": PLATEAU}}, "lr_scheduler must be lightning.pytorch.cli.ReduceLROnPlateau"),
        ({"warmup": 3}, "model.warmup must be less than the 1 of a stage, got 3"),
    ],
)
def test_optimizer_that_cannot_be_made_is_named(options, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        trained(tmp_path, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": "adamw"}, "optimizer must have class_path and init_args, got 'adamw'"),
        ({"lr_scheduler": {"T_max": 3}}, "lr_scheduler must have class_path"),
        ({"lr_interval": "batch"}, r"model\.lr_interval must be one of epoch, step, got 'batch'"),
        ({"weight_decay_on": "none"}, r"model\.weight_decay_on must be one of all, weights"),
        ({"backbone_lr_factor": 0.0}, r"model\.backbone_lr_factor must be above 0, got 0.0"),
        ({"warmup": -1}, r"model\.warmup must be at least 0, got -1"),
        ({"lr": -1e-3}, r"model\.lr must be at least 0, got -0\.001"),
        ({"weight_decay": -1e-4}, r"model\.weight_decay must be at least 0, got -0\.0001"),
    ],
)
def test_wrong_arguments_of_the_optimizer_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        tiny_module(few(), **options)


def test_schedule_without_warmup_is_the_published_one_bitwise():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2e-5)
    schedule = make_schedule(optimizer, 7, 0, 0.9)
    rates = []
    for _ in range(9):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == [2e-5 * max(1 - epoch / 7, 0) ** 0.9 for epoch in range(9)]
