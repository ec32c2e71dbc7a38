"""Joint-task regularization on cases computed by hand."""

import pytest
import torch

from htt_lightning.discovery.joint_task import JointTaskRegularization
from htt_lightning.tasks import Depth, Edges, SemSeg
from tests.tasks.samples import lose, output_of, random_logits, random_target

TASKS = [SemSeg(classes=("a", "b", "c")), Depth(num_bins=4), Edges()]
LABELED = {"semseg": [True, True], "depth": [True, False], "edges": [False, False]}
SIZE = (12, 10)


@pytest.fixture
def loss():
    torch.manual_seed(0)
    return JointTaskRegularization(TASKS, {}, None, width=4)


@pytest.fixture
def batch():
    batch = {"image": torch.rand(2, 3, *SIZE), "valid": torch.ones(2, *SIZE, dtype=torch.bool)}
    batch["labeled"] = {name: torch.tensor(values) for name, values in LABELED.items()}
    for task in TASKS:
        target = random_target(task, 2, *SIZE, missing=0.0)
        batch[task.name] = lose(task, target, ~batch["labeled"][task.name])
    batch["semseg"][1, :, :5] = 255
    return batch


@pytest.fixture
def outputs():
    """Outputs of stride 1."""
    return {task.name: output_of(random_logits(task, 2, *SIZE)) for task in TASKS}


def test_labels_replace_predictions_where_there_are_any(loss, batch, outputs):
    predicted, known = loss.stacks(batch, outputs)
    assert predicted.shape == known.shape == (2, 3 + 1 + 2, *SIZE)
    assert torch.equal(known[0, :3].argmax(0), batch["semseg"][0])
    assert torch.equal(known[1, :3, :, 5:].argmax(0), batch["semseg"][1, :, 5:])
    assert torch.equal(known[1, :3, :, :5], predicted[1, :3, :, :5])
    encoded = TASKS[1].encode_label(batch["depth"], batch["depth"].isfinite()[:, 0])
    torch.testing.assert_close(known[0, 3:4], encoded[0])
    assert torch.equal(known[1, 3:4], predicted[1, 3:4])
    assert torch.equal(known[:, 4:], predicted[:, 4:])


def test_prediction_equal_to_the_labels_has_no_distance(loss, batch, outputs):
    loss.reconstruction_weight = 0
    assert (loss(batch, outputs, None, 0) > 1e-4).all()
    one_hot = TASKS[0].encode_label(batch["semseg"], batch["semseg"] != 255)
    outputs["semseg"] = output_of(torch.where(one_hot.any(1, keepdim=True), 200 * one_hot, outputs["semseg"].logits))
    batch["labeled"]["depth"][:] = False
    torch.testing.assert_close(loss(batch, outputs, None, 0), torch.zeros(2), atol=1e-6, rtol=0)


def test_reconstruction_is_the_mean_over_channels_and_tasks(loss, batch, outputs):
    """A decoder that returns zeros leaves the mean square of the maps."""
    distance_alone = JointTaskRegularization(TASKS, {}, None, width=4, reconstruction_weight=0)
    distance_alone.load_state_dict(loss.state_dict())
    batch["valid"][1, :6] = False
    distance = distance_alone(batch, outputs, None, 0)
    torch.nn.init.zeros_(loss.autoencoder.restore.weight)
    torch.nn.init.zeros_(loss.autoencoder.restore.bias)
    stacks = loss.stacks(batch, outputs)
    expected = torch.zeros(2)
    for stack in stacks:
        for part in stack.split([3, 1, 2], 1):
            square = part.square().mean(1)
            expected += torch.stack([square[0].mean(), square[1, 6:].mean()]) / 6
    torch.testing.assert_close(loss(batch, outputs, None, 0) - distance, expected)


def test_gradient_of_the_distance_reaches_predictions(loss, batch, outputs):
    for output in outputs.values():
        output.logits.requires_grad_()
    loss(batch, outputs, None, 0).sum().backward()
    grads = {name: output.logits.grad for name, output in outputs.items()}
    assert all((grad[0] != 0).any() for grad in grads.values())  # through the labels of another task
    assert all((parameter.grad != 0).any() for parameter in loss.parameters())


def test_reconstruction_has_no_gradient_to_predictions(loss, batch, outputs):
    logits = outputs["semseg"].logits.requires_grad_()
    both = torch.autograd.grad(loss(batch, outputs, None, 0).sum(), logits)[0]
    loss.reconstruction_weight = 0
    distance = torch.autograd.grad(loss(batch, outputs, None, 0).sum(), logits)[0]
    torch.testing.assert_close(both, distance)


def test_padding_changes_nothing(loss, batch, outputs):
    batch["valid"][:, :, 6:] = False
    before = loss(batch, outputs, None, 0)
    for output in outputs.values():
        output.logits[..., 6:] += 3
    assert torch.equal(loss(batch, outputs, None, 0), before)
