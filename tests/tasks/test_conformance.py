"""Supervised losses and decoding of every task against reference vectors of the published implementation.

The reference marks missing pixels of every map by 255 (here: NaN in depth and normals), and treats the decoded
prediction and the bin logits of a regression task as independent inputs, while ``Task.loss`` decodes the logits itself.
Logits at the size of the labels have stride 1, so nothing is resized unless a test says so.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from htt_lightning.losses import l1, labeled_sum
from htt_lightning.output import upsample_to_image
from htt_lightning.tasks import IGNORE_INDEX, Depth, Edges, HumanParts, Normals, Saliency, SemSeg, Task
from tests.tasks.samples import output_of
from tests.vectors import PRECISION, available, load

SEMSEG = SemSeg(classes=("",) * 13)
DEPTH = Depth()
CITYSCAPES_DEPTH = Depth(num_bins=50, min_depth=0.01, max_depth=0.4922)
NORMALS = Normals(bin_directions="published")
INDEXED = {"semseg": SEMSEG, "human_parts": HumanParts(), "sal": Saliency(), "edge": Edges()}
BINNED = {"depth_nyud": DEPTH, "depth_cityscapes": CITYSCAPES_DEPTH, "normals": NORMALS}
DATASETS = {
    "nyud": {"semseg": SEMSEG, "depth": DEPTH, "normals": NORMALS},
    "cityscapes": {"semseg": SemSeg(classes=("",) * 7), "depth": CITYSCAPES_DEPTH},
    "pascal": {**INDEXED, "semseg": SemSeg(classes=("",) * 21), "normals": NORMALS},
}

pytestmark = pytest.mark.parametrize("dtype", PRECISION, ids=str)


def assert_close(ours: Tensor, theirs: np.ndarray, dtype: torch.dtype) -> None:
    """Single losses to their own size, arrays to their largest entry; our type has not changed on the way."""
    expected = torch.from_numpy(np.asarray(theirs, np.float64))
    tolerance = PRECISION[dtype]
    assert ours.dtype == dtype
    assert ours.shape == expected.shape
    slack = tolerance * expected.abs().max().item() if expected.ndim > 1 else 0
    torch.testing.assert_close(ours.detach().double(), expected, rtol=tolerance, atol=slack)


def variable(array: np.ndarray, dtype: torch.dtype) -> Tensor:
    return torch.from_numpy(array).to(dtype).requires_grad_()


def label_of(task: Task, array: np.ndarray, dtype: torch.dtype) -> Tensor:
    """A reference label as a target of a batch."""
    label = torch.from_numpy(array)
    if task.field_channels is None:
        return label[:, 0].long()
    return label.masked_fill(label == 255, torch.nan).to(dtype)


def regression(task: Task, pred: Tensor, target: Tensor) -> Tensor:
    """The L1 part of a regression loss from a decoded prediction; normals are brought to unit length first."""
    unit = F.normalize(pred, dim=1) if task.field_channels == 3 else pred
    return l1(unit, target, target.isfinite().all(1))


def classification(task: Task, logits: Tensor, target: Tensor) -> Tensor:
    """The bin part of a regression loss, by ``Task.loss`` with and without it: weighted like there."""
    with_bins = task.loss(output_of(logits), target)
    return with_bins - replace(task, bin_loss_weight=0.0).loss(output_of(logits), target)


def pooled(array: np.ndarray) -> np.ndarray:
    """Both images as the halves of one."""
    return np.concatenate([array[:1], array[1:]], axis=2)


def test_bin_centers_are_published(dtype):
    vectors = load("bins")
    like = torch.zeros((), dtype=dtype)
    for name, task in BINNED.items():
        assert_close(task.bin_centers(like), vectors[name], dtype)
    if dtype == torch.float32:
        assert_close(NORMALS.bin_centers(like), vectors["normals_f32"], dtype)


@pytest.mark.parametrize("name", INDEXED)
def test_index_map_losses_agree(name, dtype):
    vectors, task = load("supervised"), INDEXED[name]
    logits, target = variable(vectors[f"{name}.pred"], dtype), label_of(task, vectors[f"{name}.label"], dtype)
    loss = task.loss(output_of(logits), target)
    assert_close(loss, vectors[f"{name}.loss_per_image"], dtype)
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert_close(gradient, vectors[f"{name}.grad_per_image"], dtype)


@pytest.mark.parametrize("name", INDEXED)
def test_index_map_losses_pool_pixels(name, dtype):
    vectors, task = load("supervised"), INDEXED[name]
    logits = variable(pooled(vectors[f"{name}.pred"]), dtype)
    loss = task.loss(output_of(logits), label_of(task, pooled(vectors[f"{name}.label"]), dtype))
    assert_close(loss, vectors[f"{name}.loss_batch"][None], dtype)


@pytest.mark.parametrize("task", [DEPTH, NORMALS], ids=lambda t: t.name)
def test_l1_losses_agree(task, dtype):
    vectors, name = load("supervised"), task.name
    pred, target = variable(vectors[f"{name}.pred"], dtype), label_of(task, vectors[f"{name}.label"], dtype)
    loss = regression(task, pred, target)
    assert_close(loss, vectors[f"{name}.loss_per_image"], dtype)
    (gradient,) = torch.autograd.grad(loss.sum(), pred)
    assert_close(gradient, vectors[f"{name}.grad_per_image"], dtype)
    both = regression(
        task, variable(pooled(vectors[f"{name}.pred"]), dtype), label_of(task, pooled(vectors[f"{name}.label"]), dtype)
    )
    assert_close(both, vectors[f"{name}.loss_batch"][None], dtype)


def test_depth_loss_agrees_through_decode(dtype):
    vectors = load("supervised")
    task = Depth(num_bins=2, min_depth=0.1, max_depth=20.0, bin_loss_weight=0.0)
    pred = variable(vectors["depth.pred"], dtype)
    share = (pred - task.min_depth) / (task.max_depth - task.min_depth)
    output = output_of(torch.cat([torch.zeros_like(share), share.logit()], dim=1))
    assert_close(task.decode(output, (12, 14)), vectors["depth.pred"], dtype)
    loss = task.loss(output, label_of(task, vectors["depth.label"], dtype))
    assert_close(loss, vectors["depth.loss_per_image"], dtype)
    (gradient,) = torch.autograd.grad(loss.sum(), pred)
    assert_close(gradient, vectors["depth.grad_per_image"], dtype)


@pytest.mark.parametrize("name", ["semseg", "depth", "normals"])
def test_loss_without_valid_pixels_agrees(name, dtype):
    vectors, task = load("supervised"), {"semseg": SEMSEG, "depth": DEPTH, "normals": NORMALS}[name]
    target = label_of(task, np.full_like(vectors[f"{name}.label"][:1], 255), dtype)
    if task.field_channels is None:
        loss = task.loss(output_of(variable(vectors[f"{name}.pred"][:1], dtype)), target)
    else:
        loss = regression(task, variable(vectors[f"{name}.pred"][:1], dtype), target)
    assert_close(loss, vectors[f"{name}.loss_all_ignored"][None], dtype)


def test_saliency_loss_of_background_agrees(dtype):
    vectors = load("supervised")
    logits = variable(vectors["sal.pred"][:1], dtype)
    loss = Saliency().loss(output_of(logits), torch.zeros(1, *logits.shape[2:], dtype=torch.int64))
    assert_close(loss, vectors["sal.loss_all_background"][None], dtype)


@pytest.mark.parametrize("name", BINNED)
def test_nearest_bins_agree(name, dtype):
    vectors, task = load("bin_classification"), BINNED[name]
    target = label_of(task, vectors[f"{name}.label"], dtype)
    valid = target.isfinite().all(1)
    index = task.nearest_bin(target).view(valid.shape)
    assert index.dtype == torch.int64
    assert torch.equal(index.masked_fill(~valid, IGNORE_INDEX), torch.from_numpy(vectors[f"{name}.bin_label"])[:, 0])


@pytest.mark.parametrize("name", BINNED)
def test_bin_losses_agree(name, dtype):
    vectors, task = load("bin_classification"), BINNED[name]
    assert task.bin_loss_weight == 0.1
    logits, target = variable(vectors[f"{name}.logits"], dtype), label_of(task, vectors[f"{name}.label"], dtype)
    loss = classification(task, logits, target)
    assert_close(loss, vectors[f"{name}.loss_per_image"], dtype)
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert_close(gradient, vectors[f"{name}.grad_per_image"], dtype)


@pytest.mark.parametrize("name", BINNED)
def test_expected_values_agree(name, dtype):
    vectors, task = load("decode"), BINNED[name]
    logits = variable(vectors[f"{name}.logits"], dtype)
    decoded = task.expected_value(output_of(logits))
    assert_close(decoded, vectors[f"{name}.decoded"], dtype)
    cotangent = torch.from_numpy(vectors[f"{name}.cotangent"]).to(dtype)
    (gradient,) = torch.autograd.grad((cotangent * decoded).sum(), logits)
    assert_close(gradient, vectors[f"{name}.grad_logits"], dtype)


@pytest.mark.parametrize("name", BINNED)
def test_decoded_maps_agree_at_image_size(name, dtype):
    """The reference leaves resized normals shorter than one; ours have unit length again."""
    vectors, task = load("decode"), BINNED[name]
    logits = variable(vectors[f"{name}.logits"], dtype)
    ours, theirs = task.decode(output_of(logits), (20, 24)), vectors[f"{name}.decoded_up"]
    if name == "normals":
        length = np.linalg.norm(theirs, axis=1, keepdims=True)
        assert length.min() < 0.999
        assert_close(ours.norm(dim=1), np.ones_like(length[:, 0]), dtype)
        theirs = theirs / length
    assert_close(ours, theirs, dtype)
    assert_close(upsample_to_image(logits, (20, 24)), vectors[f"{name}.logits_up"], dtype)


@pytest.mark.parametrize("ruined", [False, True], ids=["labels as given", "unlabelled maps missing"])
@pytest.mark.parametrize("dataset", available(DATASETS, "total_"))
def test_total_of_stage_1_agrees(dataset, ruined, dtype):
    vectors = load(f"total_{dataset}")
    names, mask = vectors["tasks"].tolist(), torch.from_numpy(vectors["mask"]) > 0
    images, scale = len(mask), len(names) / len(mask)
    assert set(names) == set(DATASETS[dataset])
    inputs, supervised, total = {}, {}, torch.zeros((), dtype=dtype)
    for column, (name, weight) in enumerate(zip(names, vectors["task_weights"].tolist(), strict=True)):
        task, labeled = replace(DATASETS[dataset][name], loss_weight=weight), mask[:, column]
        target = label_of(task, vectors[f"label.{name}"], dtype)
        if ruined:
            target[~labeled] = IGNORE_INDEX if task.field_channels is None else torch.nan
        pred = inputs[f"student_pred.{name}"] = variable(vectors[f"student_pred.{name}"], dtype)
        if task.field_channels is None:
            loss = task.loss(output_of(pred), target)
        else:
            logits = inputs[f"student_logits.{name}"] = variable(vectors[f"student_logits.{name}"], dtype)
            bins = classification(task, logits, target)
            for stage in (1, 2):
                assert_close(scale * labeled_sum(bins, labeled), vectors[f"stage{stage}.cls.{name}"], dtype)
            loss = regression(task, pred, target) + bins
        assert loss.shape == (images,)
        supervised[name] = scale * labeled_sum(loss, labeled)
        total = total + task.loss_weight * supervised[name]
    for name, loss in supervised.items():
        for stage in (1, 2):  # the second adds other terms to the same ones
            assert_close(loss, vectors[f"stage{stage}.sup.{name}"], dtype)
    assert_close(total, vectors["stage1.total"], dtype)
    for (key, _), gradient in zip(inputs.items(), torch.autograd.grad(total, list(inputs.values())), strict=True):
        assert_close(gradient, vectors[f"stage1.grad.{key}"], dtype)
        if key.startswith("student_logits"):  # to which the terms of the second stage are blind there
            assert_close(gradient, vectors[f"stage2.grad.{key}"], dtype)


@pytest.mark.parametrize("dataset", available(DATASETS, "total_"))
def test_supervised_losses_ignore_the_feature(dataset, dtype):
    vectors = load(f"total_{dataset}")
    for name, task in DATASETS[dataset].items():
        assert not vectors[f"stage1.grad.student_feat.{name}"].any()
        key = "student_pred" if task.field_channels is None else "student_logits"
        feature = variable(vectors[f"student_feat.{name}"], dtype)
        output = output_of(variable(vectors[f"{key}.{name}"], dtype))._replace(feature=feature, confidence=feature)
        loss = task.loss(output, label_of(task, vectors[f"label.{name}"], dtype)).sum()
        assert torch.autograd.grad(loss, feature, allow_unused=True) == (None,)
