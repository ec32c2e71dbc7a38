"""Cross-task consistency: the label of one task and the prediction of another agree in a joint space."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from htt_lightning.data.batch import Batch, labeled_indices
from htt_lightning.discovery.consistency import (
    ConsistencyLoss,
    Network,
    average_cells,
    cosine_distance,
    label_cells,
    weighted_mean,
)
from htt_lightning.errors import ConfigError
from htt_lightning.losses import fully_valid_cells
from htt_lightning.output import TaskOutput
from htt_lightning.tasks import Task

MIN_LAYERS = 3
"""Smallest number of convolutions of the mapping."""


class PairMapping(nn.Module):
    """Map the encoding of a task to the joint space of a pair of tasks, by convolutions with FiLM.

    [FiLM](https://arxiv.org/abs/1709.07871) scales and shifts the channels of a layer by vectors of the pair.

    Args:
        in_channels: Channels of all tasks, and one for the mask of valid cells.
        width: Channels of the first layer; the next has twice as many, and all further ones four times.
        out_channels: Channels of the joint space.
        num_halvings: Number of times that the size is halved.
        num_pairs: Number of ordered pairs of tasks.
    """

    def __init__(self, in_channels: int, width: int, out_channels: int, num_halvings: int, num_pairs: int) -> None:
        super().__init__()
        depth = max(MIN_LAYERS, num_halvings)
        self.widths = [width * 2 ** min(layer, 2) for layer in range(depth - 1)]
        channels = [in_channels, *self.widths, out_channels]
        self.convs = nn.ModuleList(
            nn.Conv2d(channels[k], channels[k + 1], 3, stride=2 if k < num_halvings else 1, padding=1)
            for k in range(depth)
        )
        self.norms = nn.ModuleList(nn.GroupNorm(1, channel) for channel in self.widths)
        self.film = nn.Embedding(num_pairs, 2 * sum(self.widths))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Begin with one mapping for all pairs."""
        nn.init.zeros_(self.film.weight)

    def forward(self, x: Tensor, pair: Tensor) -> Tensor:
        """Map ``n c h w``, each for its pair, an index ``n``, to the joint space."""
        film = self.film(pair)[..., None, None].split([2 * width for width in self.widths], 1)
        for conv, norm, vectors in zip(self.convs, self.norms, film, strict=False):
            scale, shift = vectors.chunk(2, 1)
            x = F.relu(norm(conv(x)) * (1 + scale) + shift)
        return cast(Tensor, self.convs[-1](x))


class Pairs(NamedTuple):
    """Hold n pairs of a labeled task and another task of the same image.

    Attributes:
        label: Label of the one, among the channels of all tasks, with its mask, ``n c h/s w/s``.
        prediction: Prediction of the other in this form.
        forward: Index of the mapping of the label, ``n``.
        backward: Index of the mapping of the prediction, ``n``.
        image: Index of the image in the batch, ``n``.
        share: Share of the pixels of a cell that have a label, ``n 1 h/s w/s``.
        counted: 1 where the other task has no label, otherwise 0, ``n``.
    """

    label: Tensor
    prediction: Tensor
    forward: Tensor
    backward: Tensor
    image: Tensor
    share: Tensor
    counted: Tensor


class CrossTaskConsistency(ConsistencyLoss):
    """Cross-task consistency ([MTPSL](https://arxiv.org/abs/2111.14893)).

    On each image, every pair of a labeled and an unlabeled task has a loss. The label of the one and the prediction of
    the other are mapped to a joint space of the pair. The loss is their cosine distance there. Two more distances, to
    the backbone's feature, keep the mapping from collapsing to a constant.

    Args:
        tasks: Tasks to learn.
        task_weights: Weight lambda of each task's loss, by name; not used.
        net: Network with a backbone whose coarsest map is the shared feature.
        weight: Weight of the loss.
        alignment_weight: Weight of the distances to the backbone's feature.
        width: Channels of the first layer of the mapping.

    Raises:
        ConfigError: There is one task, a task has no encoding, or the network has no backbone.
    """

    name = "cross_task"
    option_ranges: ClassVar[Mapping[str, tuple[float, float]]] = {
        **ConsistencyLoss.option_ranges,
        "alignment_weight": (0, math.inf),
    }

    def __init__(
        self,
        tasks: Sequence[Task],
        task_weights: Mapping[str, float],
        net: nn.Module,
        *,
        weight: float = 1.0,
        alignment_weight: float = 1.0,
        width: int = 32,
    ) -> None:
        super().__init__(tasks, task_weights, weight=weight)
        backbone: Any = getattr(net, "backbone", None)
        if backbone is None:
            raise ConfigError("model.consistency must be joint_task or fixmatch for a network without a backbone.")
        self.alignment_weight, channels = alignment_weight, self.count_channels()
        halvings = int(math.log2(backbone.strides[-1] // backbone.strides[0]))
        self.mapping = PairMapping(channels + 1, width, backbone.channels[-1], halvings, len(self.tasks) ** 2)
        self._feature: Tensor | None = None

    def watch(self, net: nn.Module) -> None:
        """Keep the coarsest map of the backbone in every training pass, until the loss has used it."""
        # A bound method: a deep copy of module and loss then belongs together.
        cast(nn.Module, net.backbone).register_forward_hook(self._keep)

    def _keep(self, backbone: nn.Module, _: Any, maps: Sequence[Tensor]) -> None:
        if torch.is_grad_enabled():  # a frozen backbone is in evaluation mode
            self._feature = maps[-1]

    def forward(self, batch: Batch, outputs: Mapping[str, TaskOutput], net: Network, epoch: int) -> Tensor:
        """Compute the mean over an image's pairs of a labeled and an unlabeled task, ``b``."""
        feature, self._feature = self._feature, None
        assert feature is not None, "the network has not run in training mode"
        pairs = self._pairs(batch, outputs)
        # Pairs may be absent. The parameters then stay in the graph with zero gradient: other processes wait for them.
        joint = self.mapping(torch.cat([pairs.label, pairs.prediction]), torch.cat([pairs.forward, pairs.backward]))
        label, prediction = joint.tensor_split(2)
        shared = feature[pairs.image][..., : joint.shape[-2], : joint.shape[-1]]
        alignment = cosine_distance(label, shared) + cosine_distance(prediction, shared)
        weight = average_cells(pairs.share, (joint.shape[-2], joint.shape[-1]))[:, 0]
        distance = cosine_distance(label, prediction) + self.alignment_weight * alignment
        losses = torch.stack([pairs.counted * weighted_mean(distance, weight), pairs.counted])
        sums = losses.new_zeros(2, len(batch["image"])).index_add(1, pairs.image, losses)
        return self.weight * sums[0] / sums[1].clamp(min=1)

    def _pairs(self, batch: Batch, outputs: Mapping[str, TaskOutput]) -> Pairs:
        """Collect the pairs of a labeled task and another of all images; those of two labeled tasks do not count."""
        indices, blocks = labeled_indices(batch), []
        rows, columns = outputs[self.tasks[0].name].logits.shape[-2:]
        inside = fully_valid_cells(batch["valid"], (rows, columns))[:, None]
        predictions = [task.encode_prediction(outputs[task.name]) * inside for task in self.tasks]
        for target, task in enumerate(self.tasks):
            image = indices[task.name]
            label, share = label_cells(task, batch[task.name][image], (rows, columns))
            for source, other in enumerate(self.tasks):
                if source != target:
                    block = Pairs(
                        self._stack(target, label, share > 0),
                        self._stack(source, predictions[source][image], inside[image]),
                        torch.full_like(image, target * len(self.tasks) + source),
                        torch.full_like(image, source * len(self.tasks) + target),
                        image,
                        share,
                        (~batch["labeled"][other.name][image]).to(share.dtype),
                    )
                    blocks.append(block)
        return Pairs(*(torch.cat(part) for part in zip(*blocks, strict=True)))

    def _stack(self, index: int, encoded: Tensor, valid: Tensor) -> Tensor:
        """Put the encoding of one task in its place among the channels of all tasks, followed by the valid mask."""
        before = sum(task.num_channels or 0 for task in self.tasks[:index])
        after = self.count_channels() - before - encoded.shape[1]
        return torch.cat([F.pad(encoded, (0, 0, 0, 0, before, after)), valid.to(encoded.dtype)], 1)
