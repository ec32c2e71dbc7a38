"""Every task against every promise of ``Task``."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from htt_lightning.losses import labeled_sum
from htt_lightning.tasks import IGNORE_INDEX, Depth, Edges, Normals, PixelClassification, SemSeg
from htt_lightning.tasks.colormap import MISSING_GRAY
from tests.tasks.samples import TASKS, is_missing, lose, output_of, random_logits, random_target

EVERY_TASK = pytest.mark.parametrize("task", TASKS, ids=lambda t: t.name)
few = settings(max_examples=25)
SEEDS = st.integers(0, 2**20)


def loss_and_gradient(task, logits, target):
    logits = logits.detach().clone().requires_grad_()
    loss = task.loss(output_of(logits), target)
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    return loss.detach(), gradient


def truth_as_prediction(task, target):
    """Return the perfect prediction, with any valid value where ground truth is missing."""
    if task.field_channels is not None:
        return target.nan_to_num(1.0)
    index = target.masked_fill(target == IGNORE_INDEX, 0)
    return index if isinstance(task, PixelClassification) else index.float()


def primary_metric(task, pairs):
    metric = task.metrics()
    for pred, target in pairs:
        metric.update(pred, target)
    return metric.compute()[task.primary_metric].item()


# Losses


@EVERY_TASK
@pytest.mark.parametrize("stride", [1, 4])
def test_loss_of_unlabeled_image_is_zero(task, stride):
    logits, target = random_logits(task, stride=stride), random_target(task)
    full, full_gradient = loss_and_gradient(task, logits, target)
    loss, gradient = loss_and_gradient(task, logits, lose(task, target, torch.tensor([1])))
    assert full[1] > 0
    assert loss[1] == 0
    assert not gradient[1].any()
    others = torch.tensor([0, 2])
    assert torch.equal(loss[others], full[others])
    assert torch.equal(gradient[others], full_gradient[others])


@EVERY_TASK
def test_loss_of_single_valid_pixel(task):
    logits, target = random_logits(task, b=1), random_target(task, b=1, missing=0)
    alone = torch.ones(1, 6, 7, dtype=torch.bool)
    alone[0, 2, 3] = False
    loss, gradient = loss_and_gradient(task, logits, lose(task, target, alone))
    pixel, _ = loss_and_gradient(task, logits[..., 2:3, 3:4], target[..., 2:3, 3:4])
    torch.testing.assert_close(loss, pixel)
    assert not gradient.movedim(1, -1)[alone].any()


@EVERY_TASK
@pytest.mark.parametrize("stride", [1, 4])
def test_loss_is_per_image(task, stride):
    logits, target = random_logits(task, stride=stride), random_target(task)
    together, gradient = loss_and_gradient(task, logits, target)
    for i in range(3):
        loss, own = loss_and_gradient(task, logits[i : i + 1], target[i : i + 1])
        torch.testing.assert_close(loss, together[i : i + 1])
        torch.testing.assert_close(own, gradient[i : i + 1])


@EVERY_TASK
@given(labeled=st.lists(st.booleans(), min_size=1, max_size=5), seed=SEEDS)
@few
def test_labeled_sum_ignores_unlabeled_images(task, labeled, seed):
    mask, b = torch.tensor(labeled), len(labeled)
    output, target = output_of(random_logits(task, b=b, seed=seed)), random_target(task, b=b, seed=seed)
    ruined = target.clone()
    ruined[~mask] = random_target(task, b=b, seed=seed + 1)[~mask]
    assert labeled_sum(task.loss(output, ruined), mask) == labeled_sum(task.loss(output, target), mask)


@EVERY_TASK
@given(seed=SEEDS)
@few
def test_loss_ignores_missing_pixels(task, seed):
    logits, target = random_logits(task, seed=seed), random_target(task, seed=seed, missing=0.5)
    gone = is_missing(task, target)
    loss, gradient = loss_and_gradient(task, logits, target)
    assert not gradient.movedim(1, -1)[gone].any()
    other = torch.where(gone[:, None], random_logits(task, seed=seed + 1), logits)
    assert torch.equal(loss_and_gradient(task, other, target)[0], loss)


@EVERY_TASK
def test_gradient_is_zero_at_unused_cells(task):
    gone = torch.zeros(3, 32, 32, dtype=torch.bool)
    gone[:, :, 16:] = True
    target = lose(task, random_target(task, h=32, w=32), gone)
    _, gradient = loss_and_gradient(task, random_logits(task, h=32, w=32, stride=4), target)
    assert gradient[..., :5].any()
    assert not gradient[..., 5:].any()


@EVERY_TASK
def test_loss_is_near_zero_for_confident_truth(task):
    target = random_target(task)
    if task.field_channels is None:
        index, seen = target, target != IGNORE_INDEX
    else:
        index = random_target(SemSeg(classes=("",) * task.num_tokens), seed=5)
        seen = index != IGNORE_INDEX
        bin_centers = task.bin_centers(torch.zeros(())).view(task.num_tokens, -1)
        target = bin_centers[index.masked_fill(~seen, 0)].movedim(-1, 1).masked_fill(~seen[:, None], torch.nan)
    truth = index.masked_fill(~seen, 0)
    if isinstance(task, Edges):
        logits = 60.0 * (2 * truth[:, None] - 1)
    else:
        logits = 60 * torch.nn.functional.one_hot(truth, task.num_tokens).movedim(-1, 1).float()
    assert task.loss(output_of(logits), target).max() < 1e-5
    assert task.loss(output_of(-logits), target).min() > 0.1


@pytest.fixture
def every_warning():
    """Warnings that torch gives once per process are given every time."""
    before = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    yield
    torch.set_warn_always(before)


@EVERY_TASK
@pytest.mark.usefixtures("every_warning")
def test_loss_takes_noncontiguous_targets(task):
    logits, target = random_logits(task), random_target(task)
    turned = target.transpose(-1, -2).contiguous().transpose(-1, -2)
    assert not turned.is_contiguous()
    torch.testing.assert_close(task.loss(output_of(logits), turned), task.loss(output_of(logits), target))


# Decoding


@EVERY_TASK
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("stride", [4, 16])
@pytest.mark.parametrize(("height", "width"), [(32, 48), (37, 51), (33, 5), (1, 1)])
def test_decode_returns_size_type_and_range(task, height, width, stride, dtype):
    logits = random_logits(task, h=height, w=width, stride=stride).to(dtype)
    decoded = task.decode(output_of(logits), (height, width))
    assert decoded.shape == (
        (3, height, width) if task.field_channels is None else (3, task.field_channels, height, width)
    )
    if isinstance(task, PixelClassification):
        assert decoded.dtype == torch.int64
        assert set(decoded.unique().tolist()) <= set(range(task.num_tokens))
        return
    assert decoded.dtype == torch.float32
    if isinstance(task, Depth):
        assert task.min_depth * (1 - 1e-6) <= decoded.min()
        assert decoded.max() <= task.max_depth * (1 + 1e-6)
    elif isinstance(task, Normals):
        torch.testing.assert_close(decoded.norm(dim=1), torch.ones(3, height, width))
    else:
        assert ((decoded >= 0) & (decoded <= 1)).all()


@EVERY_TASK
@given(order=st.permutations(range(4)), seed=SEEDS)
@few
def test_decode_is_per_image(task, order, seed):
    logits = random_logits(task, b=4, h=9, w=7, seed=seed, stride=4)
    decoded = task.decode(output_of(logits), (9, 7))
    torch.testing.assert_close(task.decode(output_of(logits[list(order)]), (9, 7)), decoded[list(order)])


@EVERY_TASK
def test_decode_of_one_hot_logits(task):
    logits = 1e3 * torch.eye(task.num_tokens)[:, :, None, None] - 500
    decoded = task.decode(output_of(logits), (1, 1))[..., 0, 0]
    if task.field_channels is not None:
        torch.testing.assert_close(decoded, task.bin_centers(torch.zeros(())).view(task.num_tokens, -1))
    else:
        assert decoded.tolist() == ([1.0] if isinstance(task, Edges) else list(range(task.num_tokens)))


# Metrics and constants


@EVERY_TASK
def test_primary_metric_is_best_for_truth(task):
    target = random_target(task, h=20, w=20)
    best = primary_metric(task, [(truth_as_prediction(task, target), target)])
    assert best == pytest.approx(100 if task.higher_is_better else 0, abs=1e-5)
    guess = task.decode(output_of(random_logits(task, h=20, w=20)), (20, 20))
    assert task.relative_gain(primary_metric(task, [(guess, target)]), best or 1e-9) < -5


@EVERY_TASK
def test_primary_metric_ignores_missing_pixels(task):
    target, logits = random_target(task), random_logits(task)
    gone = is_missing(task, target)
    other = torch.where(gone[:, None], random_logits(task, seed=1), logits)
    figures = [primary_metric(task, [(task.decode(output_of(x), (6, 7)), target)]) for x in (logits, other)]
    assert figures[0] == figures[1]
    assert math.isnan(primary_metric(task, [(task.decode(output_of(logits), (6, 7)), lose(task, target))]))


# Colours


@EVERY_TASK
def test_colorize_is_gray_where_missing(task):
    target = random_target(task, h=16, w=16)
    picture = task.colorize(target)
    assert picture.dtype == torch.uint8
    assert picture.shape == (3, 3, 16, 16)
    assert torch.equal((picture == MISSING_GRAY).all(1), is_missing(task, target))


@EVERY_TASK
def test_colorize_of_predictions_has_no_gray(task):
    decoded = task.decode(output_of(random_logits(task, h=16, w=16)), (16, 16))
    picture = task.colorize(decoded)
    assert picture.dtype == torch.uint8
    assert picture.shape == (3, 3, 16, 16)
    assert not (picture == MISSING_GRAY).all(1).any()
    assert len(picture.movedim(1, -1).reshape(-1, 3).unique(dim=0)) >= min(task.num_tokens, 3)


@EVERY_TASK
def test_colorize_of_truth_equals_target(task):
    target = random_target(task)
    seen = ~is_missing(task, target)
    ours, theirs = task.colorize(truth_as_prediction(task, target)), task.colorize(target)
    assert torch.equal(ours.movedim(1, -1)[seen], theirs.movedim(1, -1)[seen])


@EVERY_TASK
def test_error_map_is_zero_for_the_truth_and_grows(task):
    target = random_target(task)
    seen = ~is_missing(task, target)
    truth = truth_as_prediction(task, target)
    assert task.error_map(truth, target)[seen].abs().max() < 0.02
    assert task.error_map(truth.roll(1, -1), target)[seen].max() > 0.5


@EVERY_TASK
def test_legend_maps_have_colors_of_the_task(task):
    for text, values in task.legend():
        assert text
        picture = task.colorize(values)
        assert picture.shape[:3] == (1, 3, 1)
        assert not (picture == MISSING_GRAY).all(1).any()


@pytest.mark.parametrize("classes", [2, 13, 21, 40])
def test_class_palette_has_distinct_colors(classes):
    picture = SemSeg(classes=("",) * classes).colorize(torch.arange(classes).view(1, 1, -1))
    assert len(picture[0, :, 0].T.unique(dim=0)) == classes
