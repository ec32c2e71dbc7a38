from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from htt_lightning.discovery.loss import (
    DiscoveryLossWeights,
    TeacherEnsemble,
    discovery_loss,
    flip_and_shift_image,
    shift_map,
)
from htt_lightning.output import TaskOutput
from tests.tasks.samples import TASKS, random_logits
from tests.tiny import tiny_data, tiny_module

each_task = pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
PREDICTION = DiscoveryLossWeights(feature_labeled=0, feature_unlabeled=0)


def output(task, seed):
    logits = random_logits(task, h=3, w=4, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    return TaskOutput(logits, torch.randn(3, 5, 3, 4, generator=generator), torch.full((3, 1, 3, 4), 0.5))


@each_task
def test_a_belief_teaches_unlabelled_images_alone_and_no_padding(task):
    student, teacher = output(task, 1), output(task, 2)
    student.logits.requires_grad_()
    labeled = torch.tensor([True, False, False])
    valid = torch.ones(3, 12, 16, dtype=torch.bool)
    valid[2, :, 9:] = False  # within the third column of cells
    soft_target = task.soft_target(teacher)
    never = replace(task, confidence_threshold=1.0)
    added = discovery_loss(never, student, teacher, labeled, valid, 2.0, PREDICTION, soft_target=soft_target)
    (gradient,) = torch.autograd.grad(added.loss.sum(), student.logits)
    whole = torch.ones(3, 3, 4, dtype=torch.bool)
    whole[2, :, 2:] = False
    cells = task.distillation_loss(student, task.finalize_soft_target(soft_target, whole))
    assert added.loss[0] == 0
    torch.testing.assert_close(added.loss[1], 2 * task.pseudo_label_weight * cells[1].mean())
    torch.testing.assert_close(added.loss[2], 2 * task.pseudo_label_weight * cells[2, :, :2].mean())
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
            outputs[task.name] = TaskOutput(logits, cells, torch.ones_like(cells))
        return outputs


class Strided(nn.Module):
    """Somebody else's network: a convolution for all tasks, and one for the logits of each."""

    def __init__(self, tasks, stride=4, width=8):
        super().__init__()
        self.shared = nn.Conv2d(3, width, stride, stride)
        self.logits = nn.ModuleDict({task.name: nn.Conv2d(width, task.num_tokens, 1) for task in tasks})

    def forward(self, image):
        feature = self.shared(image)
        trust = torch.ones_like(feature[:, :1])
        return {name: TaskOutput(logits(feature), feature, trust) for name, logits in self.logits.items()}


@pytest.mark.parametrize(
    ("targets", "stride", "terms"),
    [
        ("hard", 8, DiscoveryLossWeights()),
        ("soft", 4, DiscoveryLossWeights()),
        ("soft_tta", 4, DiscoveryLossWeights()),
        ("hard", 4, DiscoveryLossWeights(1, 1, 1)),
    ],
)
def test_networks_of_different_kinds_teach_each_other(targets, stride, terms):
    data = tiny_data()
    data.setup("fit")
    batch, ours = next(iter(data.train_dataloader())), tiny_module(data, token_dim=8).net
    tasks = [replace(task, confidence_threshold=0.0, pseudo_label_weight=1.0) for task in data.tasks]
    for student, teacher in ((Strided(tasks, stride), ours), (ours, Strided(tasks, stride))):
        device = torch.device("cpu")
        taught = TeacherEnsemble([teacher], tasks, dict.fromkeys(batch["labeled"], 1.0), terms, device, targets)
        student.requires_grad_(True)
        loss = taught.loss(batch, student(batch["image"]))
        assert loss.shape == (4,)
        assert (loss > 0).all()
        loss.sum().backward()
        assert all(x.grad is not None and x.grad.isfinite().all() for x in student.parameters())
        assert all(x.grad is None for x in teacher.parameters())


@pytest.mark.parametrize(
    "terms", [DiscoveryLossWeights(), DiscoveryLossWeights(1, 0, 1), DiscoveryLossWeights(1, 1, 1)], ids=str
)
def test_only_images_that_have_something_to_learn_are_looked_at(terms):
    """Which changes nothing in what they learn, nor in the account of it."""
    data = tiny_data()
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    batch["labeled"]["depth"][:] = True
    torch.manual_seed(0)
    student, teacher = (tiny_module(data).net.eval() for _ in range(2))
    taught = TeacherEnsemble([teacher], data.tasks, dict.fromkeys(batch["labeled"], 1.0), terms, torch.device("cpu"))
    with torch.no_grad():
        outputs, seen = student(batch["image"]), teacher(batch["image"])
        expected = {
            task.name: discovery_loss(
                task, outputs[task.name], seen[task.name], batch["labeled"][task.name], batch["valid"], 1.0, terms
            )
            for task in data.tasks
        }
        asked = []
        for head in teacher.heads.values():
            head.register_forward_hook(lambda head, inputs, output: asked.append(len(output.logits)))
        loss = taught.loss(batch, outputs)
    torch.testing.assert_close(loss, sum(added.loss for added in expected.values()), rtol=1e-4, atol=1e-6)
    lacking = [int((~batch["labeled"][task.name]).sum()) for task in data.tasks]
    assert asked == ([4] * len(data.tasks) if terms.feature_labeled else [count for count in lacking if count])
    for key, value in taught.compute_and_reset().items():
        name, figure = key.split("/")
        values = getattr(expected[name], figure.removeprefix("pseudo_label_"))[~batch["labeled"][name]]
        assert value == pytest.approx(float(values.mean()), rel=1e-3, nan_ok=True)


def discovery(teacher, tasks, targets):
    return TeacherEnsemble(
        [teacher] if teacher else [], tasks, {}, DiscoveryLossWeights(), torch.device("cpu"), targets
    )


@given(st.integers(9, 15), st.integers(9, 15), st.sampled_from([1, 2, 4]), st.integers(-2, 2), st.integers(-2, 2))
def test_what_is_seen_again_lies_upon_itself(height, width, stride, down, right):
    image = torch.rand(1, 2, height, width)
    view = flip_and_shift_image(image, stride, down, right)
    assert view.shape[-2:] == (-(-height // stride) * stride, -(-width // stride) * stride)
    back = shift_map(view.flip(-1), -down * stride, right * stride)
    inside = shift_map(torch.ones_like(view[:1, :1], dtype=torch.bool), -down * stride, right * stride)
    back, inside = (values[..., :height, :width] for values in (back, inside))
    assert torch.equal(torch.where(inside, back, image), image)
    assert inside.any()


@pytest.mark.parametrize("width", [16, 13])
def test_beliefs_about_both_views_lie_upon_each_other(width):
    """Also where the width is no multiple of the stride."""
    tasks = [task for task in TASKS if task.name != "normals"]
    averaged = discovery(Pointwise(tasks), tasks, "soft_tta")
    image = torch.rand(2, 3, 8, width)
    image[..., 12:] = image[..., 12:13]
    taught = averaged.teachers[0](image)
    for _ in range(10):
        soft_targets = averaged._beliefs(image, taught)
        for task in tasks:
            torch.testing.assert_close(
                soft_targets[task.name], task.soft_target(taught[task.name]), atol=1e-5, rtol=1e-5
            )


def test_averaged_beliefs_of_a_network_mirror_with_the_image(monkeypatch):
    monkeypatch.setattr("htt_lightning.discovery.loss.MAX_VIEW_SHIFT", 0)
    data = tiny_data()
    teacher = tiny_module(data).net
    averaged = discovery(teacher, data.tasks, "soft_tta")
    image = torch.rand(2, 3, 32, 64)
    one = averaged._beliefs(image, teacher(image))
    other = averaged._beliefs(image.flip(-1), teacher(image.flip(-1)))
    for task in (task for task in data.tasks if task.pseudo_label_weight):
        torch.testing.assert_close(task.unflip(other[task.name]), one[task.name])
        assert not torch.equal(one[task.name], task.soft_target(teacher(image)[task.name]))


def test_the_second_view_depends_on_the_seed_alone():
    data = tiny_data()
    averaged = discovery(tiny_module(data).net, data.tasks, "soft_tta")
    image = torch.rand(2, 3, 32, 64)
    taught, drawn = averaged.teachers[0](image), []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn.append(averaged._beliefs(image, taught)["depth"])
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_nothing_is_believed_that_nobody_learns():
    data = tiny_data()
    teacher = tiny_module(data).net
    image = torch.rand(2, 3, 32, 64)
    taught = teacher(image)
    learned = [task.name for task in data.tasks if task.pseudo_label_weight]
    assert list(discovery(teacher, data.tasks, "soft")._beliefs(image, taught)) == learned
    assert discovery(None, data.tasks, "soft")._beliefs(image, {}) == {}
    assert discovery(teacher, data.tasks, "hard")._beliefs(image, taught) == {}
    features = TeacherEnsemble(
        [teacher], data.tasks, {}, DiscoveryLossWeights(pseudo_label=0), torch.device("cpu"), "soft_tta"
    )
    assert features._beliefs(image, taught) == {}


def test_several_teachers_are_asked_in_turn_and_shown_as_their_mean():
    data = tiny_data()
    teachers, image = [tiny_module(data).net.eval() for _ in range(3)], torch.rand(2, 3, 32, 64)
    several = TeacherEnsemble(teachers, data.tasks, {}, DiscoveryLossWeights(), torch.device("cpu"), "soft_tta")
    logits = torch.stack([teacher(image)["depth"].logits for teacher in teachers])
    torch.testing.assert_close(several._mean(image)["depth"].logits, logits.mean(0))
    asked = []
    for index, teacher in enumerate(teachers):
        teacher.register_forward_pre_hook(lambda *_, index=index: asked.append(index))
    batch = {"image": image, "valid": torch.ones(2, 32, 64, dtype=torch.bool)}
    batch["labeled"] = {task.name: torch.zeros(2, dtype=torch.bool) for task in data.tasks}
    several.task_weights = {task.name: 1.0 for task in data.tasks}
    outputs = tiny_module(data)(image)
    for _ in range(12):
        assert several.loss(batch, outputs).isfinite().all()
    pairs = list(zip(asked[::2], asked[1::2], strict=True))
    assert len(pairs) == 12
    assert all(one != other for one, other in pairs)
    assert set(asked) == {0, 1, 2}


def test_a_teacher_may_compute_in_bfloat16_while_the_run_does_not():
    data = tiny_data()
    data.setup("fit")
    batch, teacher = next(iter(data.train_dataloader())), tiny_module(data).net
    arguments = (
        data.tasks,
        {task.name: 1.0 for task in data.tasks},
        DiscoveryLossWeights(feature_labeled=1, feature_unlabeled=1),
        torch.device("cpu"),
    )
    whole, half = (
        TeacherEnsemble([teacher], *arguments, teacher_precision=precision) for precision in (None, "bf16-mixed")
    )
    outputs = teacher(batch["image"])
    losses = [discovery.loss(batch, outputs) for discovery in (whole, half)]
    assert losses[0].shape == (4,)
    assert not torch.equal(losses[0], losses[1])
    torch.testing.assert_close(losses[1], losses[0], rtol=0.05, atol=0.05)
    assert losses[1].dtype == torch.float32
    assert all(parameter.dtype == torch.float32 for parameter in teacher.parameters())
