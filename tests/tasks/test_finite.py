"""Losses stay finite, and are zero on unlabeled images, for all networks and masks.

Logits as large as these are far beyond what networks return: 1e4 in single precision, the largest that float16 holds,
and 1e30 in bfloat16, whose largest are infinite differences in single precision.
"""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from htt_lightning.discovery.loss import DiscoveryLossWeights, discovery_loss
from htt_lightning.losses import feature_mse, fully_valid_cells, masked_mean
from htt_lightning.output import TaskOutput
from tests.tasks.samples import TASKS, lose, output_of, random_logits, random_target

LARGEST = {torch.float32: 1e4, torch.float16: 6e4, torch.bfloat16: 1e30}
SIZE = (6, 7)
EVERY_TASK = pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
EVERY_TYPE = pytest.mark.parametrize("dtype", LARGEST, ids=str)
few = settings(max_examples=12)
seeds, strides = st.integers(0, 2**20), st.sampled_from([1, 4])
networks = st.sampled_from(["usual", "constant", "large", "sure"])
masks = st.lists(st.sampled_from(["some", "none", "one", "all"]), min_size=3, max_size=3)


def logits_of(task, network, dtype, stride, seed):
    """Draw logits: usual, constant, as large as possible, or large in one channel."""
    usual, most = random_logits(task, seed=seed, stride=stride), LARGEST[dtype]
    if network == "constant":
        return usual[:1, :, :1, :1].expand_as(usual).clone().to(dtype)
    if network == "large":
        return (most * usual.sign()).to(dtype)
    if network == "sure":
        return torch.where(usual == usual.amax(1, keepdim=True), most, -most).to(dtype)
    return usual.to(dtype)


def valid_of(kinds, seed):
    """Draw valid masks, bool ``b h w``."""
    generator = torch.Generator().manual_seed(seed)
    valid = torch.zeros(len(kinds), *SIZE, dtype=torch.bool)
    for image, kind in zip(valid, kinds, strict=True):
        if kind == "one":
            image.view(-1)[seed % image.numel()] = True
        elif kind != "none":
            image[:] = torch.rand(SIZE, generator=generator) < (0.5 if kind == "some" else 1)
    return valid


def check(loss, inputs, nothing):
    """Loss and gradients are finite; both are zero on images of ``nothing``."""
    assert loss.shape == nothing.shape
    assert loss.dtype == torch.float32
    assert loss.isfinite().all()
    assert (loss[nothing] == 0).all()
    for values, gradient in zip(inputs, torch.autograd.grad(loss.sum(), inputs), strict=True):
        assert gradient.dtype == values.dtype
        assert gradient.isfinite().all()
        assert not gradient[nothing].any()


@EVERY_TYPE
@EVERY_TASK
@given(network=networks, kinds=masks, stride=strides, seed=seeds)
@few
def test_supervised_losses_are_finite(task, dtype, network, kinds, stride, seed):
    logits, valid = logits_of(task, network, dtype, stride, seed).requires_grad_(), valid_of(kinds, seed)
    target = lose(task, random_target(task, seed=seed, missing=0), ~valid)
    loss = task.loss(output_of(logits), target)
    check(loss, [logits], ~valid.any((1, 2)))
    assert (loss >= 0).all()
    assert task.decode(output_of(logits), SIZE).isfinite().all()


@EVERY_TYPE
@EVERY_TASK
@given(network=networks, teacher=networks, kinds=masks, stride=strides, threshold=st.sampled_from([0, 0.8]), seed=seeds)
@few
def test_pseudo_label_losses_are_finite(task, dtype, network, teacher, kinds, stride, threshold, seed):
    task, valid = replace(task, confidence_threshold=threshold), valid_of(kinds, seed)
    logits = logits_of(task, network, dtype, stride, seed).requires_grad_()
    found = task.pseudo_label(output_of(logits_of(task, teacher, dtype, stride, seed + 1)), SIZE)
    assert ((found.confidence >= 0) & (found.confidence <= 1)).all()
    check(task.pseudo_label_loss(output_of(logits), found, valid), [logits], ~valid.any((1, 2)))


@EVERY_TYPE
@EVERY_TASK
@given(network=networks, teachers=st.tuples(networks, networks), kinds=masks, stride=strides, seed=seeds)
@few
def test_distillation_losses_are_finite(task, dtype, network, teachers, kinds, stride, seed):
    """The soft targets average two contradicting views, with full class balance."""
    task = replace(task, class_balance_power=1.0) if hasattr(task, "class_balance_power") else task
    logits = logits_of(task, network, dtype, stride, seed).requires_grad_()
    one, other = (
        task.soft_target(output_of(logits_of(task, kind, dtype, stride, seed + k))) for k, kind in enumerate(teachers)
    )
    cells = fully_valid_cells(valid_of(kinds, seed), (logits.shape[-2], logits.shape[-1]))
    soft_target = task.finalize_soft_target((one + task.unflip(other)) / 2, cells)
    assert soft_target.isfinite().all()
    check(masked_mean(task.distillation_loss(output_of(logits), soft_target), cells), [logits], ~cells.any((1, 2)))


@EVERY_TYPE
@given(kinds=masks, stride=strides, seed=seeds, scale=st.sampled_from([0, 1, 1e4]), weighted=st.booleans())
@few
def test_feature_mse_is_finite(dtype, kinds, stride, seed, scale, weighted):
    """1e4 in all types: squares of what only bfloat16 holds beside single precision are infinite in both."""
    like = random_logits(TASKS[0], seed=seed, stride=stride)
    far = (scale * like).clamp(-1e4, 1e4)  # twice as much, the gradient of one value, is still a number in float16
    teacher, student = (-far.flip(0)).to(dtype), far.to(dtype).requires_grad_()
    confidence = like[:, :1].sigmoid().to(dtype) if weighted else None
    valid = valid_of(kinds, seed)
    nothing = ~fully_valid_cells(valid, (like.shape[-2], like.shape[-1])).any((1, 2))
    check(feature_mse(student, teacher, valid, confidence), [student], nothing)


@EVERY_TYPE
@EVERY_TASK
@given(kinds=masks, labeled=st.lists(st.booleans(), min_size=3, max_size=3), teacher=networks, soft=st.booleans(),
       seed=seeds)  # fmt: skip
@few
def test_discovery_loss_is_finite(task, dtype, kinds, labeled, teacher, soft, seed):
    """The loss of a labeled image is zero."""

    def output(network, seed):
        logits = logits_of(task, network, dtype, 4, seed)
        feature = 100 * logits[:, :1].sign().expand(-1, 5, -1, -1)
        return TaskOutput(logits, feature.clone(), logits[:, :1].sigmoid())

    student, taught, valid = output("usual", seed), output(teacher, seed + 1), valid_of(kinds, seed)
    inputs, given = [student.logits.requires_grad_(), student.feature.requires_grad_()], torch.tensor(labeled)
    soft_target = task.soft_target(taught) if soft else None
    added = discovery_loss(
        task, student, taught, given, valid, 2.0, DiscoveryLossWeights(1, 0, 1), soft_target=soft_target
    )
    check(added.loss, inputs, given | ~valid.any((1, 2)))
    assert ((added.coverage >= 0) & (added.coverage <= 1)).all()
    assert added.confidence.isfinite().all()
