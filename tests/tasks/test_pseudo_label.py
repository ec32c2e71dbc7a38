"""Pseudo-labels, soft targets and their losses against numpy."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from htt_lightning.losses import fully_valid_cells
from htt_lightning.output import feature_stride
from htt_lightning.tasks import Depth, Edges, Normals, PixelClassification, PseudoLabel, Saliency
from tests.tasks.samples import TASKS, output_of, random_logits, random_target

each_task = pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)


def softmax(x):
    e = np.exp(x - x.max(0))
    return e / e.sum(0)


def rule(task, logits):
    """Label and confidence of one image ``k h w``."""
    if isinstance(task, Edges):
        p = 1 / (1 + np.exp(-logits[0]))
        return (p > 0.99).astype(int), 2 * abs(p - 0.5)
    if isinstance(task, Depth | Normals):
        bin_centers = task.bin_centers(torch.zeros((), dtype=torch.float64)).numpy().reshape(len(logits), -1)
        field = np.einsum("khw,kc->chw", softmax(logits), bin_centers)
        field = field / np.linalg.norm(field, axis=0) if isinstance(task, Normals) else field
        return field, softmax(5 * logits).max(0)
    return softmax(logits).argmax(0), softmax(logits).max(0)


def cost(task, student, label, confidence, valid):
    """Loss of one image, pixel by pixel."""
    total, count = 0.0, 0
    zeros = np.mean([label[y, x] == 0 for y, x in zip(*np.nonzero(valid), strict=True)]) if label.ndim == 2 else 0
    for y, x in zip(*np.nonzero(valid), strict=True):
        kept = confidence[y, x] > task.confidence_threshold
        count += kept if isinstance(task, Edges) else 1
        if not kept:
            continue
        if isinstance(task, Edges):
            z, one = student[0, y, x], label[y, x]
            total += 0.95 * one * np.log1p(np.exp(-z)) + 0.05 * (1 - one) * np.log1p(np.exp(z))
        elif isinstance(task, Depth | Normals):
            field, _ = rule(task, student[:, y : y + 1, x : x + 1])
            total += confidence[y, x] * abs(field[:, 0, 0] - label[:, y, x]).mean()
        else:
            weight = (zeros if label[y, x] == 1 else 1 - zeros) if isinstance(task, Saliency) else 1
            total -= weight * np.log(softmax(student[:, y, x])[label[y, x]])
    return total / max(count, 1)


@each_task
def test_pseudo_labels_and_losses_agree_with_numpy(task):
    task = replace(task, confidence_threshold=0.6)
    teacher, student = (random_logits(task, seed=seed).double() for seed in (1, 2))
    valid = torch.rand(3, 6, 7, generator=torch.Generator().manual_seed(3)) < 0.8
    found = task.pseudo_label(output_of(teacher), (6, 7))
    loss = task.pseudo_label_loss(output_of(student), found, valid)
    assert 0.05 < task.confidence_mask(found.confidence).float().mean() < 0.98
    for k in range(3):
        label, confidence = rule(task, teacher[k].numpy())
        np.testing.assert_allclose(found.label[k].numpy(), label, rtol=1e-9)
        np.testing.assert_allclose(found.confidence[k].numpy(), confidence, rtol=1e-9)
        expected = cost(task, student[k].numpy(), label, confidence, valid[k].numpy())
        assert float(loss[k]) == pytest.approx(expected, rel=1e-9)


@each_task
def test_pseudo_label_loss_ignores_padding(task):
    teacher, student = random_logits(task, seed=1), random_logits(task, seed=2).requires_grad_()
    found = task.pseudo_label(output_of(teacher), (6, 7))
    valid = torch.zeros(3, 6, 7, dtype=torch.bool)
    valid[1] = valid[2, :3] = True
    nowhere = replace(task, confidence_threshold=1.0)
    assert (nowhere.pseudo_label_loss(output_of(student), found, valid) == 0).all()
    loss = task.pseudo_label_loss(output_of(student), found, valid)
    (gradient,) = torch.autograd.grad(loss.sum(), student)
    assert loss[0] == 0
    assert loss.isfinite().all()
    assert (gradient[0] == 0).all()
    assert (gradient[2, :, 3:] == 0).all()
    spoiled = PseudoLabel(found.label.flip(0), found.confidence.flip(0))
    inside = valid if found.label.ndim == 3 else valid[:, None]
    label = torch.where(inside, found.label, spoiled.label)
    sure = torch.where(valid, found.confidence, spoiled.confidence)
    again = task.pseudo_label_loss(output_of(student), PseudoLabel(label, sure), valid)
    assert torch.equal(loss, again)


def imitated(task, student, soft_target):
    """Loss of one cell ``k`` on the soft target ``c``."""
    if isinstance(task, Edges):
        z, p = student[0], soft_target[0]
        return p * np.log1p(np.exp(-z)) + (1 - p) * np.log1p(np.exp(z))
    if isinstance(task, Depth | Normals):
        bin_centers = task.bin_centers(torch.zeros((), dtype=torch.float64)).numpy().reshape(len(student), -1)
        nearest = (
            (bin_centers @ soft_target).argmax()
            if isinstance(task, Normals)
            else abs(bin_centers[:, 0] - soft_target[0]).argmin()
        )
        field, _ = rule(task, student[:, None, None])
        return abs(field[:, 0, 0] - soft_target).sum() - 0.1 * np.log(softmax(student)[nearest])
    return (soft_target * np.log(soft_target / softmax(student))).sum()


@each_task
def test_distillation_loss_agrees_with_numpy(task):
    teacher, mirrored, student = (random_logits(task, seed=seed).double() for seed in (1, 2, 3))
    soft_target = (task.soft_target(output_of(teacher)) + task.unflip(task.soft_target(output_of(mirrored)))) / 2
    soft_target = task.finalize_soft_target(soft_target, torch.ones(3, 6, 7, dtype=torch.bool))
    loss = task.distillation_loss(output_of(student), soft_target)
    assert loss.shape == (3, 6, 7)
    for k, y, x in np.ndindex(3, 6, 7):
        expected = imitated(task, student[k, :, y, x].numpy(), soft_target[k, :, y, x].numpy())
        assert float(loss[k, y, x]) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("balance", [0.0, 0.5, 1.0])
def test_soft_targets_are_balanced_per_image(balance):
    task = replace(TASKS[0], class_balance_power=balance)
    soft_target = task.soft_target(output_of(random_logits(task).double()))
    valid = torch.rand(3, 6, 7, generator=torch.Generator().manual_seed(3)) < 0.8
    settled = task.finalize_soft_target(soft_target, valid)
    for k in range(3):
        seen = soft_target[k].numpy()
        share = seen[:, valid[k].numpy()].mean(1)
        raised = seen / share[:, None, None] ** balance
        np.testing.assert_allclose(settled[k].numpy(), raised / raised.sum(0), rtol=1e-9)
    nothing = task.finalize_soft_target(soft_target, torch.zeros_like(valid))
    torch.testing.assert_close(nothing, soft_target)


def test_soft_targets_of_normals_are_unit_vectors():
    soft_target = torch.randn(2, 3, 4, 5)
    torch.testing.assert_close(
        Normals().finalize_soft_target(soft_target, torch.ones(2, 4, 5)).norm(dim=1), torch.ones(2, 4, 5)
    )


@each_task
def test_soft_target_decodes_and_unflips(task):
    teacher = output_of(random_logits(task).double())
    soft_target, decoded = task.soft_target(teacher), task.decode(teacher, (6, 7))
    said = (
        soft_target.argmax(1)
        if isinstance(task, PixelClassification)
        else soft_target[:, 1]
        if len(soft_target[0]) == 2
        else soft_target
    )
    torch.testing.assert_close(said.squeeze(1), decoded.squeeze(1))
    torch.testing.assert_close(task.unflip(task.unflip(soft_target)), soft_target)
    if task.field_channels is not None:
        maps = [task.flip(image.movedim(0, -1).numpy()) for image in soft_target]
        torch.testing.assert_close(task.unflip(soft_target).movedim(1, -1), torch.from_numpy(np.stack(maps)))


@each_task
def test_is_correct_holds_for_the_truth(task):
    target = random_target(task, missing=0.0)
    assert task.is_correct(target, target).all()
    assert task.is_correct(target, target).shape == (3, 6, 7)
    if isinstance(task, PixelClassification | Saliency | Edges):
        assert not task.is_correct(target, 1 - target).any()
    else:
        assert not task.is_correct(target, 2 * target if isinstance(task, Depth) else -target).any()


def test_released_edges_keep_the_unconfident():
    confidence = torch.tensor([0.0, 0.2, 0.995])
    assert Edges().confidence_mask(confidence).tolist() == [False, False, True]
    assert Edges(confidence_rule="below_as_released").confidence_mask(confidence).tolist() == [False, True, False]


@given(st.integers(1, 20), st.integers(1, 20), st.sampled_from([1, 2, 4, 16]), st.data())
def test_fully_valid_cells_hold_no_invalid_pixel(h, w, stride, data):
    rows, columns = -(-h // stride), -(-w // stride)
    valid = torch.ones(1, h, w, dtype=torch.bool)
    y, x = data.draw(st.integers(0, h - 1)), data.draw(st.integers(0, w - 1))
    valid[0, y, x] = False
    cells = fully_valid_cells(valid, (rows, columns))
    assert cells.shape == (1, rows, columns)
    scale = feature_stride((rows, columns), (h, w))
    assert (~cells).nonzero().tolist() == [[0, y // scale, x // scale]]
