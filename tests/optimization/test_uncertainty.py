import math
from dataclasses import replace

import pytest
import torch

from htt_lightning import HTTModule, LabelDiscovery
from htt_lightning.discovery import DiscoveryLossWeights, TeacherEnsemble
from htt_lightning.errors import ConfigError
from tests.callbacks.test_label_discovery import few, fitted, stored
from tests.test_module import assert_same, silent
from tests.tiny import tiny_module

S = {"semseg": 0.5, "depth": -1.0, "edges": 2.0}


@pytest.fixture
def learned():
    """Return a module with the log-variances S, and a batch."""
    data = few()
    data.setup("fit")
    options = {"dropout": 0.0, "task_weighting": "uncertainty", "loss_weights": {"depth": 0.25, "edges": 2.0}}
    module = silent(tiny_module(data, **options))
    with torch.no_grad():
        module.uncertainty.log_variance.copy_(torch.tensor([S[task.name] for task in module.tasks]))
    return module, next(iter(data.train_dataloader()))


def test_loss_is_that_of_the_paper_over_labeled_images(learned):
    module, batch = learned
    total = module.training_step(batch, 0)
    outputs, expected = module(batch["image"]), 0.0
    for task in module.tasks:
        scale = 0.5 if task.name == "depth" else 1.0  # a regression
        for image in batch["labeled"][task.name].nonzero()[:, 0]:
            one = slice(image, image + 1)
            loss = task.loss(type(outputs[task.name])(*(x[one] for x in outputs[task.name])), batch[task.name][one])
            term = scale * math.exp(-S[task.name]) * loss.item() + S[task.name] / 2
            expected += module.loss_weights[task.name] * 3 / 4 * term
    assert total.item() == pytest.approx(expected, rel=1e-4)


def test_task_without_labels_does_not_move_its_weight(learned):
    module, batch = learned
    batch["labeled"]["depth"][:] = False
    module.training_step(batch, 0).backward()
    names = [task.name for task in module.tasks]
    gradient = dict(zip(names, module.uncertainty.log_variance.grad.tolist(), strict=True))
    assert gradient["depth"] == 0
    assert gradient["semseg"] != 0


def test_teachers_learn_with_the_weights_but_do_not_move_them(learned):
    module, batch = learned
    for task in module.tasks:
        batch["labeled"][task.name][:] = False
        batch[task.name] = torch.full_like(batch[task.name], torch.nan if task.field_channels else 255)
    teacher = tiny_module(few(), dropout=0.0).net
    loss_weights = DiscoveryLossWeights()
    tasks = [replace(task, confidence_threshold=0.0, pseudo_label_weight=1.0) for task in module.tasks]

    def loss(task_weights):
        torch.manual_seed(0)
        module.discovery = TeacherEnsemble([teacher], tasks, task_weights, loss_weights, module.device)
        return module.training_step(batch, 0)

    learned_loss = loss(module.loss_weights)
    learned_loss.backward()
    assert (module.uncertainty.log_variance.grad == 0).all()
    factors = {name: (0.5 if name == "depth" else 1.0) * math.exp(-s) for name, s in S.items()}
    module.uncertainty = None
    expected = loss({name: weight * factors[name] for name, weight in module.loss_weights.items()})
    assert learned_loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert learned_loss > 0


def test_weights_are_trained_saved_and_reset_with_a_new_student(tmp_path):
    data = few()
    module, trainer = fitted(
        tmp_path, LabelDiscovery(), module=tiny_module(data, task_weighting="uncertainty"), limit_train_batches=2
    )
    first, second = (stored(tmp_path, epoch)["state_dict"]["uncertainty.log_variance"] for epoch in (0, 1))
    assert 0 < first.abs().max() <= 2.1e-3  # two steps of Adam at 1e-3
    assert 0 < second.abs().max() <= 2.1e-3
    loaded = HTTModule.load_from_checkpoint(tmp_path / "kept" / "epoch=1.ckpt")
    assert torch.equal(loaded.uncertainty.log_variance, second)
    weight = trainer.callback_metrics["train/depth/weight"]
    index = [task.name for task in module.tasks].index("depth")
    assert weight == pytest.approx(module.loss_weights["depth"] * 0.5 * math.exp(-second[index]))
    options = {"task_weighting": "uncertainty"}
    path = tmp_path / "kept" / "epoch=0.ckpt"
    again, _ = fitted(
        tmp_path / "again",
        LabelDiscovery(),
        9,
        module=tiny_module(data, **options),
        ckpt_path=path,
        limit_train_batches=2,
    )
    assert_same(again.state_dict(), module.state_dict())


def test_wrong_task_weighting_is_named():
    with pytest.raises(ConfigError, match=r"model\.task_weighting must be one of fixed, uncertainty, got 'kendall'"):
        tiny_module(few(), task_weighting="kendall")
