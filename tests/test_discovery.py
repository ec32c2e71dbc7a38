from dataclasses import replace

import pytest
import torch
from torch import nn

from htt_lightning.discovery import Discovery, Terms, discover_task
from htt_lightning.output import Output
from tests.tasks.samples import TASKS, random_logits
from tests.tiny import tiny_data, tiny_module

each_task = pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
PREDICTION = Terms(feature_labeled=0, feature_unlabeled=0)


def output(task, seed):
    logits = random_logits(task, h=3, w=4, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    return Output(logits, torch.randn(3, 5, 3, 4, generator=generator), torch.full((3, 1, 3, 4), 0.5))


@each_task
def test_a_belief_teaches_unlabelled_images_alone_and_no_padding(task):
    student, teacher = output(task, 1), output(task, 2)
    student.logits.requires_grad_()
    labeled = torch.tensor([True, False, False])
    valid = torch.ones(3, 12, 16, dtype=torch.bool)
    valid[2, :, 9:] = False  # within the third column of cells
    belief = task.belief(teacher)
    never = replace(task, threshold=1.0)
    added = discover_task(never, student, teacher, labeled, valid, 2.0, PREDICTION, belief=belief)
    (gradient,) = torch.autograd.grad(added.loss.sum(), student.logits)
    cells = task.imitation_loss(student, belief)
    assert added.loss[0] == 0
    torch.testing.assert_close(added.loss[1], 2 * task.beta * cells[1].mean())
    torch.testing.assert_close(added.loss[2], 2 * task.beta * cells[2, :, :2].mean())
    assert (gradient[0] == 0).all()
    assert (gradient[2, :, :, 2:] == 0).all()
    assert added.coverage.tolist() == [1, 1, 1]


class Pointwise(nn.Module):
    """A teacher that looks at single cells of four pixels: its beliefs follow the image wherever it moves."""

    def __init__(self, tasks):
        super().__init__()
        self.tasks = tasks

    def forward(self, image):
        cells = nn.functional.avg_pool2d(image, 4, ceil_mode=True).mean(1, keepdim=True)
        outputs = {}
        for task in self.tasks:
            logits = cells * torch.linspace(-3, 3, task.num_tokens).view(1, -1, 1, 1)
            outputs[task.name] = Output(logits, cells, torch.ones_like(cells))
        return outputs


def test_beliefs_about_both_views_lie_upon_each_other():
    """Also where the width is no multiple of the stride."""
    tasks = [task for task in TASKS if task.name != "normals"]
    mirrored = Discovery(Pointwise(tasks), tasks, {}, Terms(), torch.device("cpu"), "mirrored")
    for width in (16, 13):
        image = torch.rand(2, 3, 8, width)
        image[..., 12:] = image[..., 12:13]
        taught = mirrored.teacher(image)
        for task in tasks:
            belief = mirrored._beliefs(image, taught)[task.name]
            torch.testing.assert_close(belief, task.belief(taught[task.name]), atol=1e-5, rtol=1e-5)


def test_mirrored_beliefs_of_a_network_mirror_with_the_image():
    data = tiny_data()
    teacher = tiny_module(data).net
    mirrored = Discovery(teacher, data.tasks, {}, Terms(), torch.device("cpu"), "mirrored")
    image = torch.rand(2, 3, 32, 64)
    one = mirrored._beliefs(image, teacher(image))
    other = mirrored._beliefs(image.flip(-1), teacher(image.flip(-1)))
    for task in data.tasks:
        torch.testing.assert_close(task.mirror(other[task.name]), one[task.name])
        assert not torch.equal(one[task.name], task.belief(teacher(image)[task.name]))


def test_without_a_teacher_or_with_hard_labels_there_are_no_beliefs():
    data = tiny_data()
    teacher = tiny_module(data).net
    soft = Discovery(teacher, data.tasks, {}, Terms(), torch.device("cpu"), "soft")
    image = torch.rand(2, 3, 32, 64)
    taught = teacher(image)
    assert list(soft._beliefs(image, taught)) == [task.name for task in data.tasks]
    assert Discovery(None, data.tasks, {}, Terms(), torch.device("cpu"), "soft")._beliefs(image, {}) == {}
    assert Discovery(teacher, data.tasks, {}, Terms(), torch.device("cpu"))._beliefs(image, taught) == {}
