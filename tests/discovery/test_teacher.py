from dataclasses import replace

import pytest
import torch
from torch import nn

from htt_lightning.discovery import DiscoveryLossWeights, TeacherEnsemble, discovery_loss
from htt_lightning.output import TaskOutput
from tests.run_if import RunIf
from tests.tiny import tiny_data, tiny_module

PSEUDO_LABELS = DiscoveryLossWeights()


class StridedNet(nn.Module):
    """A network that is not this library's: a shared convolution, and one for the logits of each task."""

    def __init__(self, tasks, stride=4, width=8):
        super().__init__()
        self.shared = nn.Conv2d(3, width, stride, stride)
        self.logits = nn.ModuleDict({task.name: nn.Conv2d(width, task.num_tokens, 1) for task in tasks})

    def forward(self, image):
        feature = self.shared(image)
        confidence = torch.ones_like(feature[:, :1])
        return {name: TaskOutput(logits(feature), feature, confidence) for name, logits in self.logits.items()}


@pytest.fixture(scope="module")
def data():
    data = tiny_data()
    data.setup("fit")
    return data


@pytest.fixture
def batch(data):
    return next(iter(data.train_dataloader()))


def ensemble(teachers, tasks, loss_weights=PSEUDO_LABELS, device="cpu", **options):
    weights = {task.name: 1.0 for task in tasks}
    return TeacherEnsemble(teachers, tasks, weights, loss_weights, torch.device(device), **options)


@pytest.mark.parametrize(
    ("target_type", "stride", "loss_weights"),
    [
        ("hard", 8, DiscoveryLossWeights()),
        ("soft", 4, DiscoveryLossWeights()),
        ("soft_tta", 4, DiscoveryLossWeights()),
        ("hard", 4, DiscoveryLossWeights(1, 1, 1)),
    ],
)
def test_networks_of_different_kinds_teach_each_other(target_type, stride, loss_weights, data, batch):
    tasks = [replace(task, confidence_threshold=0.0, pseudo_label_weight=1.0) for task in data.tasks]
    ours, other = tiny_module(data).net, StridedNet(tasks, stride)
    for student, teacher in ((other, ours), (ours, other)):
        discovery = ensemble([teacher], tasks, loss_weights, target_type=target_type)
        student.requires_grad_(True)
        loss = discovery.loss(batch, student(batch["image"]))
        assert loss.shape == (4,)
        assert (loss > 0).all()
        student.zero_grad()
        loss.sum().backward()
        assert all(x.grad is not None and x.grad.isfinite().all() for x in student.parameters())
        assert not any(x.requires_grad for x in teacher.parameters())


@pytest.mark.parametrize("loss_weights", [(1, 0, 0), (1, 0, 1), (1, 1, 1)])
def test_teacher_sees_only_images_to_learn_from(loss_weights, data, batch):
    """It changes neither the loss nor the metrics."""
    loss_weights = DiscoveryLossWeights(*loss_weights)
    batch["labeled"]["depth"][:] = True
    torch.manual_seed(0)
    student, teacher = (tiny_module(data).net.eval() for _ in range(2))
    discovery = ensemble([teacher], data.tasks, loss_weights)
    with torch.no_grad():
        outputs, seen = student(batch["image"]), teacher(batch["image"])
        expected = {
            task.name: discovery_loss(
                task,
                outputs[task.name],
                seen[task.name],
                batch["labeled"][task.name],
                batch["valid"],
                1.0,
                loss_weights,
            )
            for task in data.tasks
        }
        batch_sizes = []
        for head in teacher.heads.values():
            head.register_forward_hook(lambda head, inputs, output: batch_sizes.append(len(output.logits)))
        loss = discovery.loss(batch, outputs)
    torch.testing.assert_close(loss, sum(added.loss for added in expected.values()), rtol=1e-4, atol=1e-6)
    unlabeled = [int((~batch["labeled"][task.name]).sum()) for task in data.tasks]
    assert batch_sizes == ([4] * len(data.tasks) if loss_weights.feature_labeled else [n for n in unlabeled if n])
    for key, value in discovery.compute_and_reset().items():
        name, metric = key.split("/pseudo_label_")
        values = getattr(expected[name], metric)[~batch["labeled"][name]]
        assert value == pytest.approx(float(values.mean()), rel=1e-3, nan_ok=True)


def test_soft_targets_are_made_only_for_tasks_with_their_loss(data, batch, monkeypatch):
    asked = []

    def recorded(tasks, *arguments):
        asked.append([task.name for task in tasks])
        return {}

    monkeypatch.setattr("htt_lightning.discovery.teacher.soft_targets", recorded)
    teacher = tiny_module(data).net.eval()
    outputs = teacher(batch["image"])
    off = DiscoveryLossWeights(pseudo_label=0)
    ensemble([teacher], data.tasks, target_type="hard").loss(batch, outputs)
    ensemble([teacher], data.tasks, target_type="soft").loss(batch, outputs)
    ensemble([teacher], data.tasks, off, target_type="soft_tta").loss(batch, outputs)
    assert asked == [[task.name for task in data.tasks if task.pseudo_label_weight], []]


def test_stored_pseudo_labels_replace_teachers(data, batch):
    teacher, student = (tiny_module(data).net.eval() for _ in range(2))
    tasks = [replace(task, confidence_threshold=0.0) for task in data.tasks]
    taught = ensemble([teacher], tasks)
    outputs = student(batch["image"])
    expected = taught.loss(batch, outputs)
    batch["pseudo_labels"] = taught.pseudo_labels(batch)
    stored = ensemble([], tasks, target_type="soft")
    torch.testing.assert_close(stored.loss(batch, outputs), expected, rtol=1e-4, atol=1e-5)
    assert stored.pseudo_labels(batch) == batch["pseudo_labels"]


def test_origin_weights_scale_stored_pseudo_labels(data, batch):
    teacher, student = (tiny_module(data).net.eval() for _ in range(2))
    tasks = [replace(task, confidence_threshold=0.0) for task in data.tasks if task.name in ("depth", "normals")]
    outputs = student(batch["image"])
    batch["pseudo_labels"] = ensemble([teacher], tasks).pseudo_labels(batch)

    def loss(weight):
        weights = {"depth": torch.full((4,), weight), "normals": torch.ones(4)}
        return ensemble([], tasks).loss(batch | {"label_weights": weights}, outputs)

    torch.testing.assert_close(loss(1.0), ensemble([], tasks).loss(batch, outputs))
    assert not torch.equal(loss(1.0), loss(0.0))
    torch.testing.assert_close(loss(0.5), (loss(0.0) + loss(1.0)) / 2)
    batch["labeled"]["depth"][:] = True
    torch.testing.assert_close(loss(1.0), loss(0.0), msg="labeled images have no pseudo-label")


def test_several_teachers_are_drawn_in_turn_and_averaged(data):
    teachers, image = [tiny_module(data).net.eval() for _ in range(3)], torch.rand(2, 3, 32, 64)
    several = ensemble(teachers, data.tasks, target_type="soft_tta")
    depth = next(task for task in data.tasks if task.name == "depth")
    outputs = [teacher(image)["depth"] for teacher in teachers]
    mean = TaskOutput(*(torch.stack(x).mean(0) for x in zip(*outputs, strict=True)))
    torch.testing.assert_close(several.pseudo_labels({"image": image})["depth"], depth.pseudo_label(mean, (32, 64)))
    called = []
    for index, teacher in enumerate(teachers):
        teacher.register_forward_pre_hook(lambda *_, index=index: called.append(index))
    batch = {"image": image, "valid": torch.ones(2, 32, 64, dtype=torch.bool)}
    batch["labeled"] = {task.name: torch.zeros(2, dtype=torch.bool) for task in data.tasks}
    student = tiny_module(data)(image)
    for _ in range(12):
        assert several.loss(batch, student).isfinite().all()
    pairs = list(zip(called[::2], called[1::2], strict=True))
    assert len(pairs) == 12
    assert all(first != second for first, second in pairs)
    assert set(called) == {0, 1, 2}


def test_bf16_teacher_leaves_the_loss_in_float32(data, batch):
    teacher, weights = tiny_module(data).net, DiscoveryLossWeights(1, 1, 1)
    outputs = teacher(batch["image"])
    full, half = (
        ensemble([teacher], data.tasks, weights, teacher_precision=precision).loss(batch, outputs)
        for precision in (None, "bf16-mixed")
    )
    assert not torch.equal(full, half)
    torch.testing.assert_close(half, full, rtol=0.05, atol=0.05)
    assert half.dtype == torch.float32
    assert all(parameter.dtype == torch.float32 for parameter in teacher.parameters())


@RunIf(min_gpus=1)
@pytest.mark.parametrize("target_type", ["hard", "soft_tta"])
def test_gpu_loss_equals_that_of_the_cpu(target_type, data, batch):
    torch.manual_seed(0)
    student, teacher = (tiny_module(data).double().net.eval() for _ in range(2))
    batch = data.on_before_batch_transfer(batch | {"image": batch["image"].double()}, 0)
    losses = []
    for device in ("cpu", "cuda"):
        moved = data.transfer_batch_to_device(batch, torch.device(device), 0)
        discovery = ensemble(
            [teacher.to(device)], data.tasks, DiscoveryLossWeights(1, 1, 1), device, target_type=target_type
        )
        torch.manual_seed(1)
        losses.append(discovery.loss(moved, student.to(device)(moved["image"])).cpu())
    torch.testing.assert_close(losses[1], losses[0])
