"""Global task tokens: one vector per task that finds its features at every scale (method.md 1)."""

from collections.abc import Sequence
from typing import cast

import torch
from einops import rearrange
from torch import Tensor, nn

from htt_lightning.models.fusion import Fusion, LazyFusedMap
from htt_lightning.models.layers import DepthwiseDownsample, conv_bn_relu, init_xavier
from htt_lightning.output import BatchIndices, select


class TaskPromptBlock(nn.Module):
    """Steps 2 to 6 at one scale: gate the features by each token, share between tasks, refine.

    Args:
        channels: Channels of the scale, and width of its tokens.
        tasks: Number of tasks.
        token_stride: Kernel and stride r of the depthwise convolution the gates are computed on.
    """

    def __init__(self, channels: int, tasks: int, token_stride: int = 1) -> None:
        super().__init__()
        self.reduce = DepthwiseDownsample(channels, token_stride)
        self.query = nn.Linear(channels, channels)
        self.key = nn.Linear(channels, channels)
        self.refine = nn.ModuleList(conv_bn_relu(channels, channels, 3, bias=True) for _ in range(tasks))

    def task_affinity(self, tokens: Tensor) -> Tensor:
        """How much each task takes from each other: rows sum to one, no image involved.

        Args:
            tokens: ``t c``.

        Returns:
            ``t t``.
        """
        scores: Tensor = self.query(tokens) @ self.key(tokens).T
        return torch.softmax(scores / tokens.shape[1] ** 0.5, dim=1)

    def forward(self, x: Tensor, tokens: Tensor, indices: BatchIndices) -> tuple[list[Tensor], Tensor]:
        """Task features and updated tokens.

        Mixing the T task features ``x * gate_u`` by the affinity is mixing the T one-channel gates, as ``x`` is common
        to all of them; so the T x C maps of the textbook form never exist.

        Args:
            x: ``b c h w``.
            tokens: ``t c``.
            indices: Per task, the images to predict.

        Returns:
            One ``b c h w`` per task, of its images, and tokens ``t c``.
        """
        affinity = self.task_affinity(tokens)
        gates = self.reduce.token_scores(x, tokens).sigmoid()
        mixed = torch.einsum("t u, b u h w -> b t h w", affinity, self.reduce.upsample(gates, x.shape[-2:]))
        gated = zip(self.refine, torch.split(mixed, 1, 1), indices, strict=True)
        features = [refine(select(x, row) * select(gate, row)) for refine, gate, row in gated]
        return features, affinity @ tokens


class MultiScaleTaskTokens(nn.Module):
    """Trained task tokens over a pyramid of feature maps, fused to one map and one token per task.

    The public release keeps its tokens outside the parameters, so they never train; here they do (method.md 6).

    Args:
        channels: Channels of the maps, finest first.
        tasks: Number of tasks.
        dim: Token width D.
        token_stride: See ``TaskPromptBlock``.
    """

    def __init__(self, channels: Sequence[int], tasks: int, dim: int, token_stride: int = 1) -> None:
        super().__init__()
        last = channels[-1]
        self.tokens = nn.Parameter(torch.randn(tasks, last))
        self.project = _per_task_linears(tasks, [(last, c) for c in channels])
        self.scales = nn.ModuleList(TaskPromptBlock(c, tasks, token_stride) for c in channels)
        self.fuse = nn.ModuleList(Fusion(channels, last) for _ in range(tasks))
        self.restore = _per_task_linears(tasks, [(c, dim) for c in channels])
        self.apply(init_xavier)

    def forward(self, maps: Sequence[Tensor], indices: BatchIndices) -> tuple[list[LazyFusedMap], Tensor]:
        """``[b c_s h_s w_s]`` to one ``b c_last h_0 w_0`` per task, of its images, and tokens ``t d``."""
        scales = zip(maps, self._scale_tokens(), self.scales, strict=True)
        prompted = [scale(x, tokens, indices) for x, tokens, scale in scales]
        fused = [fuse([features[t] for features, _ in prompted]) for t, fuse in enumerate(self.fuse)]
        restored = [_apply_per_task(layers, tokens) for layers, (_, tokens) in zip(self.restore, prompted, strict=True)]
        return fused, torch.stack(restored).sum(0)

    def task_affinity(self) -> Tensor:
        """Cross-task affinity at every scale, ``s t t``."""
        pairs = zip(self.scales, self._scale_tokens(), strict=True)
        return torch.stack([cast(TaskPromptBlock, scale).task_affinity(tokens) for scale, tokens in pairs])

    def _scale_tokens(self) -> list[Tensor]:
        """The tokens at each scale, ``[t c_s]``."""
        return [_apply_per_task(layers, self.tokens) for layers in self.project]


class SingleScaleTaskTokens(nn.Module):
    """Trained task tokens over maps of one stride, as a plain vision transformer gives (method.md 1, last paragraph).

    Args:
        channels: Channels of the maps.
        tasks: Number of tasks.
        dim: Token width D.
        token_stride: See ``TaskPromptBlock``.
    """

    def __init__(self, channels: Sequence[int], tasks: int, dim: int, token_stride: int = 1) -> None:
        super().__init__()
        last = channels[-1]
        self.tokens = nn.Parameter(torch.randn(tasks, last))
        self.fuse = Fusion(channels, last)
        self.scale = TaskPromptBlock(last, tasks, token_stride)
        self.restore = nn.ModuleList(nn.Linear(last, dim) for _ in range(tasks))
        self.apply(init_xavier)

    def forward(self, maps: Sequence[Tensor], indices: BatchIndices) -> tuple[list[Tensor], Tensor]:
        """``[b c h w]`` to one ``b c_last h w`` per task, of its images, and tokens ``t d``."""
        features, tokens = self.scale(self.fuse(maps).materialize(), self.tokens, indices)
        return features, _apply_per_task(self.restore, tokens)

    def task_affinity(self) -> Tensor:
        """Cross-task affinity, ``1 t t``."""
        return rearrange(self.scale.task_affinity(self.tokens), "t u -> 1 t u")


class IndependentTaskTokens(nn.Module):
    """For ablation: a token and a fusion of its own per task, without gates and without sharing between tasks.

    Args:
        channels: Channels of the maps, finest first.
        tasks: Number of tasks.
        dim: Token width D.
    """

    def __init__(self, channels: Sequence[int], tasks: int, dim: int) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.randn(tasks, dim))
        self.fuse = nn.ModuleList(Fusion(channels, channels[-1]) for _ in range(tasks))
        self.apply(init_xavier)

    def forward(self, maps: Sequence[Tensor], indices: BatchIndices) -> tuple[list[LazyFusedMap], Tensor]:
        """``[b c_s h_s w_s]`` to one ``b c_last h_0 w_0`` per task, of its images, and tokens ``t d``."""
        fused = [fuse([select(x, row) for x in maps]) for fuse, row in zip(self.fuse, indices, strict=True)]
        return fused, self.tokens


def _per_task_linears(tasks: int, widths: Sequence[tuple[int, int]]) -> nn.ModuleList:
    """Per scale, one linear layer per task."""
    return nn.ModuleList(nn.ModuleList(nn.Linear(*width) for _ in range(tasks)) for width in widths)


def _apply_per_task(layers: nn.Module, tokens: Tensor) -> Tensor:
    """Each task's own layer on its own token: ``t c -> t d``."""
    return torch.stack([layer(token) for layer, token in zip(cast(nn.ModuleList, layers), tokens, strict=True)])
