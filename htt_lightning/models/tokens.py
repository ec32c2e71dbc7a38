"""Global task tokens: one vector per task, through which the tasks share what they learn.

There are two forms. In the released one, tokens gate the backbone's features at every scale and mix the gates. In the
default one, they mix the features of the tasks' heads.

Source: HiTTs (https://arxiv.org/abs/2411.18823), Sec. 3; docs/differences.md compares the forms.
"""

import math
from collections.abc import Sequence
from typing import cast

import torch
from einops import rearrange
from torch import Tensor, nn

from htt_lightning.models.cpu_kernels import LazyFusedMap
from htt_lightning.models.layers import DepthwiseDownsample, conv_bn_relu, init_xavier
from htt_lightning.output import BatchIndices, select

NUM_HEADS = 4
"""Number of affinities by which tasks exchange features, one per group of channels."""


class Fusion(nn.Module):
    """Fusion of maps of several scales on the grid of the first: resize, concatenate, convolve 1x1."""

    def __init__(self, channels: Sequence[int], out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(sum(channels), out_channels, 1)

    def forward(self, maps: Sequence[Tensor]) -> LazyFusedMap:
        """Fuse ``[b c_s h_s w_s]`` to a map ``b out_channels h_0 w_0``, which is computed where it is needed."""
        return LazyFusedMap(list(maps), self.conv.weight.flatten(1), cast(Tensor, self.conv.bias))


class TaskPromptBlock(nn.Module):
    """Prompting at one scale: gate the features by each token, share between tasks, refine."""

    def __init__(self, channels: int, num_tasks: int, token_stride: int = 1) -> None:
        super().__init__()
        self.reduce = DepthwiseDownsample(channels, token_stride)
        self.query = nn.Linear(channels, channels)
        self.key = nn.Linear(channels, channels)
        self.refine = nn.ModuleList(conv_bn_relu(channels, channels, 3, bias=True) for _ in range(num_tasks))

    def task_affinity(self, tokens: Tensor) -> Tensor:
        """Compute the cross-task affinity ``t t`` of tokens ``t c``; rows sum to one, no image is involved."""
        scores: Tensor = self.query(tokens) @ self.key(tokens).T
        return torch.softmax(scores / tokens.shape[1] ** 0.5, dim=1)

    def forward(self, x: Tensor, tokens: Tensor, indices: BatchIndices) -> tuple[list[Tensor], Tensor]:
        """Turn ``b c h w`` into one ``b c h w`` per task, of its images, and update tokens ``t c``.

        Mixing the T task features ``x * gate_u`` by the affinity equals mixing the T one-channel gates, as all share
        ``x``. So the T x C maps of the textbook form never exist.
        """
        affinity = self.task_affinity(tokens)
        gates = self.reduce.token_scores(x, tokens).sigmoid()
        mixed = torch.einsum("t u, b u h w -> b t h w", affinity, self.reduce.upsample(gates, x.shape[-2:]))
        gated = zip(self.refine, torch.split(mixed, 1, 1), indices, strict=True)
        features = [refine(select(x, chosen) * select(gate, chosen)) for refine, gate, chosen in gated]
        return features, affinity @ tokens


class MultiScaleTaskTokens(nn.Module):
    """Task tokens over a pyramid of maps, fused to one map and one token per task.

    The tokens train; those of the public release do not (docs/differences.md, Network).
    """

    def __init__(self, channels: Sequence[int], num_tasks: int, dim: int, token_stride: int = 1) -> None:
        super().__init__()
        last = channels[-1]
        self.tokens = nn.Parameter(torch.randn(num_tasks, last))
        self.project = _per_task_linears(num_tasks, [(last, c) for c in channels])
        self.scales = nn.ModuleList(TaskPromptBlock(c, num_tasks, token_stride) for c in channels)
        self.fuse = nn.ModuleList(Fusion(channels, last) for _ in range(num_tasks))
        self.restore = _per_task_linears(num_tasks, [(c, dim) for c in channels])
        self.apply(init_xavier)

    def forward(self, maps: Sequence[Tensor], indices: BatchIndices) -> tuple[list[LazyFusedMap], Tensor]:
        """Turn ``[b c_s h_s w_s]`` into one ``b c_last h_0 w_0`` per task, of its images, and tokens ``t d``."""
        scales = zip(maps, self._scale_tokens(), self.scales, strict=True)
        prompted = [scale(x, tokens, indices) for x, tokens, scale in scales]
        fused = [fuse([features[t] for features, _ in prompted]) for t, fuse in enumerate(self.fuse)]
        restored = [_apply_per_task(layers, tokens) for layers, (_, tokens) in zip(self.restore, prompted, strict=True)]
        return fused, torch.stack(restored).sum(0)

    def task_affinity(self) -> Tensor:
        """Compute the cross-task affinity at every scale, ``s t t``."""
        pairs = zip(self.scales, self._scale_tokens(), strict=True)
        return torch.stack([cast(TaskPromptBlock, scale).task_affinity(tokens) for scale, tokens in pairs])

    def _scale_tokens(self) -> list[Tensor]:
        """Project the tokens to each scale, ``[t c_s]``."""
        return [_apply_per_task(layers, self.tokens) for layers in self.project]


class SingleScaleTaskTokens(nn.Module):
    """Task tokens over maps of one stride, which a plain vision transformer returns."""

    def __init__(self, channels: Sequence[int], num_tasks: int, dim: int, token_stride: int = 1) -> None:
        super().__init__()
        last = channels[-1]
        self.tokens = nn.Parameter(torch.randn(num_tasks, last))
        self.fuse = Fusion(channels, last)
        self.scale = TaskPromptBlock(last, num_tasks, token_stride)
        self.restore = nn.ModuleList(nn.Linear(last, dim) for _ in range(num_tasks))
        self.apply(init_xavier)

    def forward(self, maps: Sequence[Tensor], indices: BatchIndices) -> tuple[list[Tensor], Tensor]:
        """Turn ``[b c h w]`` into one ``b c_last h w`` per task, of its images, and tokens ``t d``."""
        features, tokens = self.scale(self.fuse(maps).materialize(), self.tokens, indices)
        return features, _apply_per_task(self.restore, tokens)

    def task_affinity(self) -> Tensor:
        """Compute the cross-task affinity, ``1 t t``."""
        return rearrange(self.scale.task_affinity(self.tokens), "t u -> 1 t u")


class IndependentTaskTokens(nn.Module):
    """Ablation without global tokens: a token and a fusion per task, no gates, no exchange between tasks."""

    def __init__(self, channels: Sequence[int], num_tasks: int, dim: int) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.randn(num_tasks, dim))
        self.fuse = nn.ModuleList(Fusion(channels, channels[-1]) for _ in range(num_tasks))
        self.apply(init_xavier)

    def forward(self, maps: Sequence[Tensor], indices: BatchIndices) -> tuple[list[LazyFusedMap], Tensor]:
        """Turn ``[b c_s h_s w_s]`` into one ``b c_last h_0 w_0`` per task, of its images, and tokens ``t d``."""
        pairs = zip(self.fuse, indices, strict=True)
        return [fuse([select(x, chosen) for x in maps]) for fuse, chosen in pairs], self.tokens


class ExchangingTaskTokens(IndependentTaskTokens):
    """Task tokens by whose affinity the heads of all tasks exchange features.

    Each task adds to its features a mean of all tasks' values, weighted by the affinity of their tokens. So the labels
    of one task train the features of all. The output projection begins at zero: training starts from the network
    without exchange.
    """

    def __init__(self, channels: Sequence[int], num_tasks: int, dim: int) -> None:
        super().__init__(channels, num_tasks, dim)
        self.num_heads = math.gcd(dim, NUM_HEADS)
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.ModuleList(nn.Conv2d(dim, dim, 1, bias=False) for _ in range(num_tasks)).apply(init_xavier)
        self.restore = nn.ModuleList(nn.Conv2d(dim, dim, 1, bias=False) for _ in range(num_tasks))
        for layer in self.restore:
            nn.init.zeros_(cast(nn.Conv2d, layer).weight)

    def forward(self, maps: Sequence[Tensor], indices: BatchIndices) -> tuple[list[LazyFusedMap], Tensor]:
        """Turn ``[b c_s h_s w_s]`` into one ``b c_last h_0 w_0`` per task, of all images, and tokens ``t d``."""
        return super().forward(maps, [None] * len(self.fuse))

    def task_affinity(self) -> Tensor:
        """Compute the affinity of the tasks' tokens for every group of channels, ``g t t``; rows sum to one."""
        query, key = (rearrange(f(self.tokens), "t (g c) -> g t c", g=self.num_heads) for f in (self.query, self.key))
        return torch.softmax(query @ key.mT / key.shape[-1] ** 0.5, dim=-1)

    def exchange(self, features: Sequence[Tensor], indices: BatchIndices) -> list[Tensor]:
        """Exchange features: per task ``b d h w`` of all images to ``b d h w`` of its images."""
        values = torch.stack([value(x) for value, x in zip(self.value, features, strict=True)])
        values = rearrange(values, "t b (g c) h w -> t b g c h w", g=self.num_heads)
        mixed = torch.einsum("g t u, u b g c h w -> t b g c h w", self.task_affinity().to(values.dtype), values)
        tasks = zip(self.restore, features, rearrange(mixed, "t b g c h w -> t b (g c) h w"), indices, strict=True)
        return [select(x, chosen) + restore(select(message, chosen)) for restore, x, message, chosen in tasks]


def _per_task_linears(num_tasks: int, widths: Sequence[tuple[int, int]]) -> nn.ModuleList:
    """Build one linear layer per task and scale."""
    return nn.ModuleList(nn.ModuleList(nn.Linear(*width) for _ in range(num_tasks)) for width in widths)


def _apply_per_task(layers: nn.Module, tokens: Tensor) -> Tensor:
    """Apply each task's layer to its token: ``t c -> t d``."""
    return torch.stack([layer(token) for layer, token in zip(cast(nn.ModuleList, layers), tokens, strict=True)])
