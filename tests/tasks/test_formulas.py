"""Every loss and every decoded map against its formula in numpy, one pixel after another."""

import math

import numpy as np
import pytest
import torch

from htt_lightning.tasks import IGNORE_INDEX, Depth, Edges, Normals, Saliency, Task
from tests.tasks.samples import TASKS, enlarge, lose, output_of, random_logits, random_target

SIZES = [(5, 4, 1), (7, 10, 4), (8, 8, 4)]
VARIANTS = (
    Depth(num_bins=50, min_depth=0.01, max_depth=0.4922, bin_loss_weight=0.3),
    Edges(pos_weight=0.8),
    Normals(num_bins=11),
)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(0))
    return e / e.sum(0)


def unit(v: np.ndarray) -> np.ndarray:
    return v / np.linalg.norm(v, axis=0)


def half_sphere(task: Normals) -> np.ndarray:
    golden, directions = math.pi * (3 - math.sqrt(5)), []
    for k in range(task.num_bins):
        z = 1 - (2 * k + 1) / (2 * task.num_bins)
        r = math.sqrt(1 - z**2)
        directions.append((r * math.cos(k * golden), r * math.sin(k * golden), z))
    return np.array(directions)


def centres_of(task: Depth | Normals) -> np.ndarray:
    if isinstance(task, Normals):
        return half_sphere(task)
    return np.exp(np.linspace(math.log(task.min_depth), math.log(task.max_depth), task.num_bins))[:, None]


def decoded_field(task: Depth | Normals, x: np.ndarray, stride: int, height: int, width: int) -> np.ndarray:
    """The expectation of logits ``k rows columns`` is taken there and enlarged; normals have unit length throughout."""
    mixed = np.einsum("khw,kc->chw", softmax(x), centres_of(task))
    if isinstance(task, Normals):
        return unit(enlarge(unit(mixed), stride, height, width))
    return enlarge(mixed, stride, height, width)


def decoded_index(task: Task, x: np.ndarray) -> np.ndarray:
    """``x``: logits ``k h w``, enlarged already."""
    if isinstance(task, Edges):
        return 1 / (1 + np.exp(-x[0]))
    return softmax(x)[1] if isinstance(task, Saliency) else x.argmax(0)


def index_loss(task: Task, x: np.ndarray, label: np.ndarray) -> float:
    """``x``: logits ``k h w`` at the size of the label ``h w``."""
    valid = [p for p in np.ndindex(label.shape) if label[p] != IGNORE_INDEX]
    background = sum(label[p] == 0 for p in valid) / max(len(valid), 1)
    total = 0.0
    for y, u in valid:
        truth = label[y, u]
        if isinstance(task, Edges):
            probability = 1 / (1 + math.exp(-x[0, y, u]))
            weight = task.pos_weight if truth else 1 - task.pos_weight
            total -= weight * math.log(probability if truth else 1 - probability)
            continue
        weight = 1.0
        if isinstance(task, Saliency):
            weight = background if truth else 1 - background
        total -= weight * math.log(softmax(x[:, y, u])[truth])
    return total / max(len(valid), 1)


def field_loss(task: Depth | Normals, x: np.ndarray, label: np.ndarray, stride: int) -> float:
    """``x``: logits ``k rows columns``."""
    height, width = label.shape[-2:]
    bin_centers, decoded = centres_of(task), decoded_field(task, x, stride, height, width)
    logits = enlarge(x, stride, height, width)
    distance, surprise, count = 0.0, 0.0, 0
    for y, u in np.ndindex(height, width):
        truth = label[:, y, u]
        if np.isnan(truth).any():
            continue
        count += 1
        distance += sum(abs(decoded[c, y, u] - truth[c]) for c in range(len(truth)))
        far_off = -bin_centers @ truth if isinstance(task, Normals) else abs(bin_centers[:, 0] - truth[0])
        surprise -= math.log(softmax(logits[:, y, u])[int(np.argmin(far_off))])
    return (distance + task.bin_loss_weight * surprise) / max(count, 1)


@pytest.mark.parametrize(("height", "width", "stride"), SIZES)
@pytest.mark.parametrize("task", [*TASKS, *VARIANTS], ids=lambda t: t.name)
def test_loss_agrees_with_numpy(task, height, width, stride):
    logits = random_logits(task, h=height, w=width, stride=stride).double()
    target = lose(task, random_target(task, h=height, w=width), torch.tensor([2]))
    if task.field_channels is not None:
        target = target.double()
    ours = task.loss(output_of(logits), target)
    theirs = []
    for x, label in zip(logits.numpy(), target.numpy(), strict=True):
        if task.field_channels is None:
            theirs.append(index_loss(task, enlarge(x, stride, height, width), label))
        else:
            theirs.append(field_loss(task, x, label, stride))
    assert theirs[2] == 0
    assert ours.dtype == torch.float64
    np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-9)


@pytest.mark.parametrize(("height", "width", "stride"), SIZES)
@pytest.mark.parametrize("task", [*TASKS, *VARIANTS], ids=lambda t: t.name)
def test_decode_agrees_with_numpy(task, height, width, stride):
    logits = random_logits(task, h=height, w=width, stride=stride).double()
    ours = task.decode(output_of(logits), (height, width)).numpy()
    for i, x in enumerate(logits.numpy()):
        if task.field_channels is None:
            theirs = decoded_index(task, enlarge(x, stride, height, width))
        else:
            theirs = decoded_field(task, x, stride, height, width)
        np.testing.assert_allclose(ours[i], theirs, rtol=1e-9, atol=1e-12)


def test_normal_with_a_missing_component_is_missing():
    task, target = Normals(), random_target(Normals(), missing=0).double()
    gone = torch.zeros(3, 6, 7, dtype=torch.bool)
    gone[:, ::2, 1::2] = True
    half = target.clone()
    half[:, 1][gone] = torch.nan
    output = output_of(random_logits(task).double())
    assert torch.equal(task.loss(output, half), task.loss(output, lose(task, target, gone)))


@pytest.mark.parametrize("task", TASKS, ids=lambda t: t.name)
def test_loss_passes_gradcheck(task):
    target = random_target(task, b=1, h=3, w=3)
    target = target if task.field_channels is None else target.double()
    logits = random_logits(task, b=1, h=3, w=3, stride=2).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: task.loss(output_of(x), target), (logits,))


def test_fibonacci_directions_are_even():
    bin_centers = Normals().bin_centers(torch.zeros((), dtype=torch.float64))
    np.testing.assert_allclose(bin_centers.numpy(), half_sphere(Normals()), atol=1e-12)
    assert (bin_centers[:, 2] > 0).all()
    torch.testing.assert_close(bin_centers.norm(dim=1), torch.ones(40, dtype=torch.float64))
    nearest = (bin_centers @ bin_centers.T - 2 * torch.eye(40)).amax(1).acos().rad2deg()
    assert nearest.min() > 0.6 * nearest.max()


@pytest.mark.parametrize("task", [Depth(), Normals()], ids=lambda task: task.name)
def test_decode_of_bfloat16_is_float32(task):
    logits = random_logits(task)
    target = random_target(task)
    with torch.autocast("cpu", torch.bfloat16):
        half = task.decode(output_of(logits.bfloat16()), (6, 7)), task.nearest_bin(target)
    full = task.decode(output_of(logits.bfloat16().float()), (6, 7)), task.nearest_bin(target)
    assert half[0].dtype == torch.float32
    torch.testing.assert_close(half[0], full[0])
    assert torch.equal(half[1], full[1])
