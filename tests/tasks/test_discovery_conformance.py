"""Pseudo-labels and their losses against reference vectors of the published implementation.

The reference treats the decoded prediction and the bin logits of a regression task as independent inputs, so here the
decoded prediction takes the place of the logits. Its saliency labels are truncated probabilities, hence all 0, and so
is the loss on them; ours are the likelier class.
"""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from htt_lightning.discovery.loss import DiscoveryLossWeights, discovery_loss
from htt_lightning.losses import bin_confidence, feature_mse
from htt_lightning.output import TaskOutput
from htt_lightning.tasks import Depth, Edges, HumanParts, Normals, PseudoLabel, Saliency, SemSeg
from tests.tasks.samples import output_of
from tests.tasks.test_conformance import assert_close, variable
from tests.vectors import PRECISION, available, load


@dataclass(frozen=True, kw_only=True)
class DecodedDepth(Depth):
    """Its output's logits are the decoded depth, and its pseudo-label is given."""

    found: PseudoLabel | None = None

    def decode(self, output, size):
        return output.logits

    def pseudo_label(self, output, size):
        return self.found


@dataclass(frozen=True, kw_only=True)
class DecodedNormals(Normals):
    """Its output's logits are the decoded normals, which it brings to unit length; likewise."""

    found: PseudoLabel | None = None

    def decode(self, output, size):
        return F.normalize(output.logits, dim=1)

    def pseudo_label(self, output, size):
        return self.found


@dataclass(frozen=True, kw_only=True)
class TruncatedSaliency(Saliency):
    """Its label is the probability without its decimals."""

    def pseudo_label(self, output, size):
        return super().pseudo_label(output, size)._replace(label=self.decode(output, size).long())


RELEASED = {
    "semseg": SemSeg(classes=("",) * 13),
    "human_parts": HumanParts(),
    "sal": TruncatedSaliency(),
    "edge": Edges(confidence_rule="below_as_released"),
    "depth": DecodedDepth(),
    "normals": DecodedNormals(),
}
pytestmark = pytest.mark.parametrize("dtype", PRECISION, ids=str)


def label_of(array, channels):
    label = torch.from_numpy(array)
    if channels is not None:
        return label
    return (label[:, 0] if label.ndim == 4 else label).long()


@pytest.mark.parametrize("name", RELEASED)
def test_pseudo_labels_and_confidences_agree(name, dtype):
    vectors, task = load("pseudo_labels"), RELEASED[name]
    shown = "teacher_pred" if task.field_channels is None else "teacher_logits"
    plain = {"depth": Depth(), "normals": Normals(bin_directions="published"), "sal": Saliency()}.get(name, task)
    teacher = output_of(torch.from_numpy(vectors[f"{name}.{shown}"]).to(dtype))
    found = plain.pseudo_label(teacher, (12, 14))
    assert_close(found.confidence, vectors[f"{name}.confidence"][:, 0], dtype)
    assert vectors[f"{name}.threshold"] == pytest.approx(task.confidence_threshold) or name in ("depth", "normals")
    if name == "sal":  # ours is a class where the reference's is a probability
        assert torch.equal(found.label, torch.from_numpy(vectors["sal.pseudo_label"] > 0.5).long())
    elif task.field_channels is None:
        assert torch.equal(found.label, label_of(vectors[f"{name}.pseudo_label"], None))
    else:  # the decoded prediction itself
        np.testing.assert_array_equal(vectors[f"{name}.pseudo_label"], vectors[f"{name}.teacher_pred"])
        assert torch.equal(found.label, plain.decode(teacher, (12, 14)))


@pytest.mark.parametrize("case", ["", "synthetic_"])
@pytest.mark.parametrize("name", RELEASED)
def test_pseudo_label_losses_agree(name, case, dtype):
    vectors = load("semi_losses")
    task = replace(RELEASED[name], confidence_threshold=float(vectors[f"{name}.threshold"]))
    given, confidence = ("synthetic_label", "synthetic_confidence") if case else ("pseudo_label", "confidence")
    label = label_of(vectors[f"{name}.{given}"], task.field_channels)
    sure = torch.from_numpy(vectors[f"{name}.{confidence}"])[:, 0].to(dtype)
    found = PseudoLabel(label.to(dtype) if label.is_floating_point() else label, sure)
    student = variable(vectors[f"{name}.student_pred"], dtype)
    loss = task.pseudo_label_loss(output_of(student), found, torch.ones(sure.shape, dtype=torch.bool))
    assert_close(loss, vectors[f"{name}.{case}loss_per_image"], dtype)
    (gradient,) = torch.autograd.grad(loss.sum(), student)
    assert_close(gradient, vectors[f"{name}.{case}grad_per_image"], dtype)


def test_released_saliency_pseudo_labels_have_zero_loss(dtype):
    vectors, shown = load("semi_losses"), load("pseudo_labels")["sal.teacher_pred"]
    student, teacher = (output_of(torch.from_numpy(x).to(dtype)) for x in (vectors["sal.student_pred"], shown))
    valid = torch.ones(2, 12, 14, dtype=torch.bool)
    losses = [
        task.pseudo_label_loss(student, task.pseudo_label(teacher, (12, 14)), valid)
        for task in (TruncatedSaliency(), Saliency())
    ]
    assert_close(losses[0], vectors["sal.loss_per_image"], dtype)
    assert (losses[0] == 0).all()
    assert (losses[1] > 0.01).all()


@pytest.mark.parametrize("weighted", [True, False], ids=["weighted", "plain"])
def test_feature_losses_agree(weighted, dtype):
    vectors = load("feature_losses")
    student, teacher = variable(vectors["student"], dtype), torch.from_numpy(vectors["teacher"]).to(dtype)
    score = torch.from_numpy(vectors["score"]).to(dtype) if weighted else None
    loss = feature_mse(student, teacher, torch.ones(2, 24, 28, dtype=torch.bool), score)
    key = "weighted" if weighted else "plain"
    assert_close(loss, vectors[f"{key}.loss_per_image"], dtype)
    (gradient,) = torch.autograd.grad(loss.sum(), student)
    assert_close(gradient, vectors[f"{key}.grad_per_image"], dtype)


@pytest.mark.parametrize("dataset", available(["nyud", "pascal", "cityscapes"], "total_"))
def test_discovery_loss_of_stage_2_agrees(dataset, dtype):
    vectors = load(f"total_{dataset}")
    names, mask = vectors["tasks"].tolist(), torch.from_numpy(vectors["mask"]) > 0
    valid, scale = torch.ones(len(mask), 12, 14, dtype=torch.bool), len(names) / len(mask)

    def tensor(key):
        return torch.from_numpy(vectors[key]).to(dtype)

    inputs, added = {}, torch.zeros((), dtype=dtype)
    columns = zip(names, vectors["task_weights"].tolist(), vectors["thresholds"].tolist(), strict=True)
    for column, (name, weight, threshold) in enumerate(columns):
        task, labeled = replace(RELEASED[name], confidence_threshold=threshold), mask[:, column]
        if task.field_channels is not None:
            confidence = bin_confidence(
                output_of(tensor(f"teacher_logits.{name}")), (12, 14), task.confidence_inv_temperature
            )
            task = replace(task, found=PseudoLabel(tensor(f"teacher_pred.{name}"), confidence))
        pred = inputs[f"student_pred.{name}"] = variable(vectors[f"student_pred.{name}"], dtype)
        feature = inputs[f"student_feat.{name}"] = variable(vectors[f"student_feat.{name}"], dtype)
        student = TaskOutput(pred, feature, torch.ones_like(feature[:, :1]))
        teacher = TaskOutput(
            tensor(f"teacher_pred.{name}"), tensor(f"teacher_feat.{name}"), tensor(f"teacher_feat_score.{name}")
        )
        parts = {
            "semi": (DiscoveryLossWeights(1, 0, 0), 1 / task.pseudo_label_weight),
            "feat_s": (DiscoveryLossWeights(0, 1, 0), 1.0),
            "feat": (DiscoveryLossWeights(0, 0, 1), 1.0),
        }
        for part, (terms, factor) in parts.items():
            loss = scale * factor * discovery_loss(task, student, teacher, labeled, valid, 1.0, terms).loss.sum()
            assert_close(loss, vectors[f"stage2.{part}.{name}"], dtype)
        added = (
            added
            + scale
            * discovery_loss(task, student, teacher, labeled, valid, weight, DiscoveryLossWeights(1, 1, 1)).loss.sum()
        )
    supervised = sum(w * vectors[f"stage2.sup.{t}"] for w, t in zip(vectors["task_weights"], names, strict=True))
    assert_close(added, vectors["stage2.total"] - supervised, dtype)
    gradients = torch.autograd.grad(added, list(inputs.values()), allow_unused=True, materialize_grads=True)
    for key, gradient in zip(inputs, gradients, strict=True):
        first = vectors.get(f"stage1.grad.{key}", 0)
        assert_close(gradient, vectors[f"stage2.grad.{key}"] - first, dtype)
