from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from htt_lightning.discovery.loss import (
    DiscoveryLossWeights,
    discovery_loss,
    flip_and_shift_image,
    shift_map,
    soft_targets,
)
from htt_lightning.output import TaskOutput
from tests.tasks.samples import TASKS, random_logits
from tests.tiny import tiny_data, tiny_module

each_task = pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
PSEUDO_LABELS = DiscoveryLossWeights(feature_labeled=0, feature_unlabeled=0)
ALL_VALID = torch.ones(3, 12, 16, dtype=torch.bool)
UNLABELED = torch.zeros(3, dtype=torch.bool)


def output(task, seed):
    logits = random_logits(task, h=3, w=4, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    return TaskOutput(logits, torch.randn(3, 5, 3, 4, generator=generator), torch.full((3, 1, 3, 4), 0.5))


@each_task
def test_soft_targets_count_on_unlabeled_images_without_padding(task):
    student, teacher = output(task, 1), output(task, 2)
    student.logits.requires_grad_()
    labeled, valid = torch.tensor([True, False, False]), ALL_VALID.clone()
    valid[2, :, 9:] = False  # within the third column of cells
    soft_target = task.soft_target(teacher)
    never = replace(task, confidence_threshold=1.0)
    added = discovery_loss(never, student, teacher, labeled, valid, 2.0, PSEUDO_LABELS, soft_target=soft_target)
    (gradient,) = torch.autograd.grad(added.loss.sum(), student.logits)
    valid_cells = torch.ones(3, 3, 4, dtype=torch.bool)
    valid_cells[2, :, 2:] = False
    cells = task.distillation_loss(student, task.finalize_soft_target(soft_target, valid_cells))
    assert added.loss[0] == 0
    torch.testing.assert_close(added.loss[1], 2 * task.pseudo_label_weight * cells[1].mean())
    torch.testing.assert_close(added.loss[2], 2 * task.pseudo_label_weight * cells[2, :, :2].mean())
    assert (gradient[0] == 0).all()
    assert (gradient[2, :, :, 2:] == 0).all()
    assert added.coverage.tolist() == [1, 1, 1]


@each_task
def test_soft_target_counts_without_a_teacher(task):
    student, teacher = output(task, 1), output(task, 2)
    arguments = UNLABELED, ALL_VALID, 1.0, PSEUDO_LABELS
    soft_target = task.soft_target(teacher)
    expected = discovery_loss(task, student, teacher, *arguments, soft_target=soft_target)
    added = discovery_loss(task, student, None, *arguments, soft_target=soft_target)
    assert (added.prediction > 0).all()
    assert torch.equal(added.prediction, expected.prediction)
    assert torch.equal(added.coverage, expected.coverage)
    assert added.confidence.isnan().all()
    both = discovery_loss(task, student, None, *arguments, task.pseudo_label(teacher, (12, 16)), soft_target)
    assert torch.equal(both.prediction, expected.prediction)


@each_task
def test_pseudo_labels_count_without_a_teacher(task):
    student, teacher = output(task, 1), output(task, 2)
    arguments = UNLABELED, ALL_VALID, 1.0, PSEUDO_LABELS
    added = discovery_loss(task, student, None, *arguments, task.pseudo_label(teacher, (12, 16)))
    for ours, theirs in zip(added, discovery_loss(task, student, teacher, *arguments), strict=True):
        assert torch.equal(ours, theirs)
    assert not any(x.any() for x in discovery_loss(task, student, None, *arguments))


class PointwiseNet(nn.Module):
    """A network that looks at single cells of four pixels, so that its outputs move with the image."""

    def __init__(self, tasks):
        super().__init__()
        self.tasks = tasks

    def forward(self, image):
        cells = nn.functional.avg_pool2d(image, 4, ceil_mode=True).mean(1, keepdim=True)
        outputs = {}
        for task in self.tasks:
            logits = cells * torch.linspace(-3, 3, task.num_tokens).view(1, -1, 1, 1)
            outputs[task.name] = TaskOutput(logits, cells, torch.ones_like(cells))
        return outputs


@given(st.integers(9, 15), st.integers(9, 15), st.sampled_from([1, 2, 4]), st.integers(-2, 2), st.integers(-2, 2))
def test_flip_and_shift_image_is_undone_by_shift_map(height, width, stride, down, right):
    image = torch.rand(1, 2, height, width)
    view = flip_and_shift_image(image, stride, down, right)
    assert view.shape[-2:] == (-(-height // stride) * stride, -(-width // stride) * stride)
    back = shift_map(view.flip(-1), -down * stride, right * stride)
    inside = shift_map(torch.ones_like(view[:1, :1], dtype=torch.bool), -down * stride, right * stride)
    back, inside = (values[..., :height, :width] for values in (back, inside))
    assert torch.equal(torch.where(inside, back, image), image)
    assert inside.any()


@pytest.mark.parametrize("width", [16, 13])
def test_soft_targets_of_both_views_coincide(width):
    """Also for a width that is not a multiple of the stride."""
    tasks = [task for task in TASKS if task.name != "normals"]
    teacher, image = PointwiseNet(tasks), torch.rand(2, 3, 8, width)
    image[..., 12:] = image[..., 12:13]
    outputs = teacher(image)
    for _ in range(10):
        targets = soft_targets(tasks, outputs, image, teacher)
        for task in tasks:
            expected = task.soft_target(outputs[task.name])
            torch.testing.assert_close(targets[task.name], expected, atol=1e-5, rtol=1e-5)


def test_averaged_soft_targets_are_equivariant_to_flips(monkeypatch):
    monkeypatch.setattr("htt_lightning.discovery.loss.MAX_VIEW_SHIFT", 0)
    data = tiny_data()
    teacher, image = tiny_module(data).net.eval(), torch.rand(2, 3, 32, 64)
    one, other = (soft_targets(data.tasks, teacher(x), x, teacher) for x in (image, image.flip(-1)))
    for task in data.tasks:
        torch.testing.assert_close(task.unflip(other[task.name]), one[task.name])
        assert not torch.equal(one[task.name], task.soft_target(teacher(image)[task.name]))


def test_second_view_depends_on_the_seed_alone():
    data = tiny_data()
    teacher, image = tiny_module(data).net.eval(), torch.rand(2, 3, 32, 64)
    outputs, drawn = teacher(image), []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn.append(soft_targets(data.tasks, outputs, image, teacher)["depth"])
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_soft_targets_of_one_view_need_no_second_pass():
    data = tiny_data()
    outputs = tiny_module(data)(torch.rand(2, 3, 32, 64))
    targets = soft_targets(data.tasks[:2], outputs, torch.rand(2, 3, 32, 64))
    assert list(targets) == [task.name for task in data.tasks[:2]]
    assert soft_targets([], {}, torch.rand(2, 3, 32, 64), lambda view: pytest.fail("needless pass")) == {}
