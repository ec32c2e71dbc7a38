"""Cross-task consistency on cases computed by hand."""

import pytest
import torch
import torch.nn.functional as F

from htt_lightning.discovery.cross_task import CrossTaskConsistency, PairMapping
from htt_lightning.models import MultiTaskNet
from htt_lightning.tasks import Depth, Edges, Normals
from tests.tasks.samples import lose, output_of, random_logits, random_target
from tests.tiny import BACKBONE

TASKS = [Normals(), Depth(num_bins=4), Edges()]
LABELED = {"normals": [True, False, True], "depth": [False, False, True], "edges": [False, True, False]}


@pytest.fixture
def loss():
    torch.manual_seed(0)
    net = MultiTaskNet({task.name: task.num_tokens for task in TASKS}, backbone=BACKBONE, token_dim=4)
    loss = CrossTaskConsistency(TASKS, {}, net, width=4)
    torch.nn.init.normal_(loss.mapping.film.weight)
    loss._feature = torch.randn(3, net.backbone.channels[-1], 2, 2)
    return loss


@pytest.fixture
def batch():
    """Three images of 64x64 pixels with 16x16 cells; the left half of the depth of the last one is missing."""
    batch = {"image": torch.rand(3, 3, 64, 64), "valid": torch.ones(3, 64, 64, dtype=torch.bool)}
    batch["labeled"] = {name: torch.tensor(values) for name, values in LABELED.items()}
    for task in TASKS:
        batch[task.name] = lose(task, random_target(task, h=64, w=64, missing=0.0), ~batch["labeled"][task.name])
    batch["depth"][2, :, :, :32] = torch.nan
    return batch


@pytest.fixture
def outputs():
    return {task.name: output_of(random_logits(task, h=64, w=64, stride=4)) for task in TASKS}


def test_constant_mapping_leaves_the_alignment(loss, batch, outputs):
    """Equal maps have no distance; what is left is the angle to the feature."""
    last, feature = loss.mapping.convs[-1], loss._feature
    torch.nn.init.zeros_(last.weight)
    torch.nn.init.normal_(last.bias)
    angle = 1 - F.cosine_similarity(feature, last.bias.detach()[None, :, None, None])
    expected = 2 * torch.stack([angle[0].mean(), angle[1].mean(), (angle[2].mean() + angle[2, :, 1].mean()) / 2])
    torch.testing.assert_close(loss(batch, outputs, None, 0), expected)
    loss._feature, loss.alignment_weight = feature, 0
    torch.testing.assert_close(loss(batch, outputs, None, 0), torch.zeros(3), atol=1e-6, rtol=0)


def test_loss_is_the_mean_over_pairs_one_by_one(loss, batch, outputs):
    feature, expected = loss._feature, torch.zeros(3)
    with torch.no_grad():
        total = loss(batch, outputs, None, 0)
        for image, pairs in enumerate([[(0, 1), (0, 2)], [(2, 0), (2, 1)], [(0, 2), (1, 2)]]):
            for target, source in pairs:
                task, other, chosen = TASKS[target], TASKS[source], slice(image, image + 1)
                valid = task.valid_mask(batch[task.name][chosen])
                encoded = F.avg_pool2d(task.encode_label(batch[task.name][chosen], valid), 4)
                stacks = torch.zeros(2, 3 + 1 + 2 + 1, 16, 16)
                first = [0, 3, 4]
                stacks[0, first[target] : first[target] + task.num_channels] = encoded[0]
                stacks[0, -1] = valid[0, ::4, ::4]
                found = other.encode_prediction(outputs[other.name])[image]
                stacks[1, first[source] : first[source] + other.num_channels] = found
                stacks[1, -1] = 1
                mapped = loss.mapping(stacks, torch.tensor([3 * target + source, 3 * source + target]))
                label, prediction, shared = mapped[:1], mapped[1:], feature[chosen]
                sums = sum(
                    1 - F.cosine_similarity(*x) for x in [(label, prediction), (label, shared), (prediction, shared)]
                )
                missing_left = target == 1  # half of the depth of the last image
                expected[image] += (sums[:, :, 1] if missing_left else sums).mean() / 2
    torch.testing.assert_close(total, expected)


def test_gradient_reaches_predictions_of_unlabeled_tasks(loss, batch, outputs):
    feature = loss._feature.requires_grad_()
    for output in outputs.values():
        output.logits.requires_grad_()
    loss(batch, outputs, None, 0).sum().backward()
    for task in TASKS:
        learned = (outputs[task.name].logits.grad != 0).flatten(1).any(1)
        assert torch.equal(learned, ~batch["labeled"][task.name])
    assert (feature.grad != 0).any()
    assert all((parameter.grad != 0).any() for parameter in loss.parameters())


def test_padding_changes_nothing(loss, batch, outputs):
    feature = loss._feature
    batch["valid"][:, :, 32:] = False
    for task in TASKS:
        batch[task.name] = lose(task, batch[task.name], ~batch["valid"])
    before = loss(batch, outputs, None, 0)
    for output in outputs.values():
        output.logits[..., 8:] += 3
    loss._feature = feature
    assert torch.equal(loss(batch, outputs, None, 0), before)


@pytest.mark.parametrize("everything", [True, False])
def test_batch_without_pairs_has_zero_loss_and_gradient(everything, loss, batch, outputs):
    batch["labeled"] = {name: torch.full((3,), everything) for name in LABELED}
    total = loss(batch, outputs, None, 0)
    assert torch.equal(total.detach(), torch.zeros(3))
    total.sum().backward()
    assert all((parameter.grad == 0).all() for parameter in loss.parameters())


def test_mapping_depends_on_the_pair():
    mapping, x = PairMapping(3, 4, 5, num_halvings=2, num_pairs=4), torch.randn(1, 3, 9, 8).repeat(2, 1, 1, 1)
    assert mapping(x, torch.tensor([0, 1])).shape == (2, 5, 3, 2)
    same = mapping(x, torch.tensor([0, 1]))
    assert torch.equal(same[0], same[1])
    torch.nn.init.normal_(mapping.film.weight)
    one, other = mapping(x, torch.tensor([0, 1]))
    assert not torch.allclose(one, other)


def test_feature_is_kept_in_training_and_used_once():
    net = MultiTaskNet({task.name: task.num_tokens for task in TASKS}, backbone=BACKBONE, token_dim=4)
    loss = CrossTaskConsistency(TASKS, {}, net, width=4)
    loss.watch(net)
    image = torch.rand(3, 3, 64, 64)
    with torch.no_grad():
        net(image)
    assert loss._feature is None
    net(image)
    assert loss._feature.shape == (3, net.backbone.channels[-1], 2, 2)
