"""The method of HiTTs (https://arxiv.org/abs/2411.18823) written down line by line, for comparison.

``PlainHTTNet`` has the parameters and outputs of ``HTTNet``, but makes every step as in the paper. It mixes the
features of all tasks, resizes before it concatenates and convolves, multiplies features and class tokens into one large
array, and computes the attention matrix. ``plain_loss`` loops over images and tasks.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from htt_lightning import HTTNet
from htt_lightning.output import BatchIndices, TaskOutput
from htt_lightning.tasks import Depth, Normals, SemSeg, Task

TASKS = (
    SemSeg(classes=tuple(f"class {k}" for k in range(13)), confidence_threshold=0.9),
    Depth(loss_weight=0.6, confidence_threshold=0.85),
    Normals(confidence_threshold=0.85),
)
"""Tasks of NYUD-v2 with the published weights and thresholds."""


class PlainHTTNet(HTTNet):
    """Plain form of ``HTTNet`` with global and fine-grained tokens over a pyramid of maps."""

    def forward_features(self, maps: Sequence[Tensor], indices: BatchIndices) -> dict[str, TaskOutput]:
        """Map backbone features ``b c_s h/s w/s`` to outputs at the finest size, for all images."""
        net: Any = self
        glob = net.global_tokens
        features: list[list[Tensor]] = [[] for _ in self.tasks]  # of each task, at every scale
        tokens: list[Tensor] = [torch.zeros(()) for _ in self.tasks]
        for x, project, scale, restore in zip(maps, glob.project, glob.scales, glob.restore, strict=True):
            theta = torch.stack([linear(token) for linear, token in zip(project, glob.tokens, strict=True)])
            reduced = F.conv2d(x, scale.reduce.weight, scale.reduce.bias, groups=x.shape[1])
            gated = [x * (reduced * token[None, :, None, None]).sum(1, keepdim=True).sigmoid() for token in theta]
            query, key = scale.query(theta), scale.key(theta)
            affinity = (query @ key.T / x.shape[1] ** 0.5).softmax(1)
            mixed = torch.einsum("tu,ubchw->tbchw", affinity, torch.stack(gated))
            for t in range(len(self.tasks)):
                features[t].append(scale.refine[t](mixed[t]))
                tokens[t] = tokens[t] + restore[t](affinity[t] @ theta)
        outputs = {}
        for t, task in enumerate(self.tasks):
            sized = [F.interpolate(f, size=maps[0].shape[-2:], mode="bilinear") for f in features[t]]
            outputs[task] = plain_head(net.heads[task], glob.fuse[t].conv(torch.cat(sized, 1)), tokens[t])
        return outputs


def plain_head(head: Any, x: Tensor, token: Tensor) -> TaskOutput:
    """Compute a head: ASPP, attention, fine-grained tokens, scores and logits.

    Args:
        head: An ``HTTHead``.
        x: The task's fused features, ``b c h w``.
        token: Its token phi, ``d``.
    """
    aspp, attention = head.aspp, head.attention
    pooled = F.interpolate(aspp.pool(F.adaptive_avg_pool2d(x, 1)), size=x.shape[-2:], mode="nearest")
    context = torch.cat([*(branch(x) for branch in aspp.branches), pooled], 1)
    feature = head.conv(aspp.dropout(aspp.project(context)))

    batch, dim, height, width = feature.shape
    parts = []
    for reduce, project in zip(attention.reduce, attention.project, strict=True):
        flat = reduce(feature).flatten(2).transpose(1, 2)
        parts.append(project(torch.cat([flat, token.expand(batch, 1, dim)], 1)))
    query, key, value = parts
    attended = (query @ key.transpose(1, 2) / dim**0.5).softmax(2) @ value
    found = attention.feature_out(attended[:, :-1]).transpose(1, 2).reshape(batch, dim, height // 2, width // 2)
    feature = attention.refine(feature + F.interpolate(found, scale_factor=2, mode="bilinear"))
    own = attention.token_out(attended[:, -1])

    count = head.classify.out_channels
    onehot = torch.eye(count, dtype=own.dtype, device=own.device)
    fine = head.fine_tokens.mix((own[:, None] + head.fine_tokens.embed(onehot)).transpose(1, 2)).transpose(1, 2)
    reduced = F.conv2d(feature, head.reduce.weight, head.reduce.bias, groups=dim)
    scores = F.softplus((reduced[:, None] * fine[..., None, None]).sum(2))
    logits = head.refine(head.classify(feature) * scores)
    confidence = (feature * own[..., None, None]).sum(1, keepdim=True).sigmoid()
    return TaskOutput(logits, feature, confidence)


def full_size(x: Tensor, size: Sequence[int]) -> Tensor:
    """Resize a map to the size of its image."""
    return F.interpolate(x, size=tuple(size), mode="bilinear")


def decoded(task: Task, logits: Tensor, size: Sequence[int]) -> Tensor:
    """Compute depth or normals of one image, ``1 c h w``: the expected value over bins, resized."""
    assert isinstance(task, Depth | Normals)
    bin_centers = task.bin_centers(logits)
    probability = logits.softmax(1)
    if isinstance(task, Depth):
        return full_size((probability * bin_centers[:, None, None]).sum(1, keepdim=True), size)
    vectors = (probability[:, :, None] * bin_centers[..., None, None]).sum(1)
    return F.normalize(full_size(F.normalize(vectors, dim=1), size), dim=1)


def given_loss(task: Task, output: TaskOutput, target: Tensor) -> Tensor:
    """Compute the loss of one image on its label, which has no batch axis."""
    size = target.shape[-2:]
    logits = full_size(output.logits, size)
    if isinstance(task, SemSeg):
        return F.cross_entropy(logits, target[None], ignore_index=255)
    assert isinstance(task, Depth | Normals)
    valid, truth = target.isfinite().all(0), target.nan_to_num(0)
    bin_centers = task.bin_centers(logits)
    if isinstance(task, Depth):
        bins = (truth - bin_centers[:, None, None]).abs().argmin(0)
    else:
        bins = (truth[None] * bin_centers[..., None, None]).sum(1).argmax(0)
    error = (decoded(task, output.logits, size)[0] - truth).abs().sum(0)[valid].mean()
    return error + 0.1 * F.cross_entropy(logits, bins[None], reduction="none")[0][valid].mean()


def found_loss(task: Task, output: TaskOutput, teacher: TaskOutput, size: Sequence[int]) -> Tensor:
    """Compute the loss of one image on pseudo-labels."""
    if isinstance(task, SemSeg):
        confidence, label = full_size(teacher.logits, size).softmax(1).max(1)
        pixels = F.cross_entropy(full_size(output.logits, size), label, reduction="none")
        return (pixels * (confidence > task.confidence_threshold)).mean()
    sharp = (5 * full_size(teacher.logits, size)).softmax(1).amax(1)
    error = (decoded(task, output.logits, size) - decoded(task, teacher.logits, size)).abs().mean(1)
    return (error * sharp * (sharp > task.confidence_threshold)).mean()


def plain_loss(
    tasks: Sequence[Task],
    outputs: Mapping[str, TaskOutput],
    batch: Mapping[str, Any],
    taught: Mapping[str, TaskOutput] | None = None,
) -> Tensor:
    """Compute the loss of a step, image by image and task by task, on images without padding.

    Args:
        tasks: Those of ``TASKS``.
        outputs: The network's.
        batch: A training batch.
        taught: The teacher's outputs in stage 2.
    """
    images = len(batch["image"])
    total = torch.zeros((), dtype=batch["image"].dtype)
    for index in range(images):
        for task in tasks:
            mine = TaskOutput(*(x[index : index + 1] for x in outputs[task.name]))
            labeled = bool(batch["labeled"][task.name][index])
            if labeled:
                total = total + task.loss_weight * given_loss(task, mine, batch[task.name][index])
            if taught:
                teacher = TaskOutput(*(x[index : index + 1] for x in taught[task.name]))
                distance = (mine.feature - teacher.feature) ** 2
                total = total + (distance if labeled else teacher.confidence * distance).mean()
                if not labeled:
                    found = found_loss(task, mine, teacher, batch["image"].shape[-2:])
                    total = total + task.loss_weight * task.pseudo_label_weight * found
    return total * len(tasks) / images
