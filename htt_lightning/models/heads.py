"""Task heads: ASPP, token attention, fine-grained task tokens and logits.

Source: HiTTs (https://arxiv.org/abs/2411.18823), Sec. 3.
"""

import math
from collections.abc import Sequence
from typing import Literal, cast

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from htt_lightning.models import cpu_kernels
from htt_lightning.models.cpu_kernels import LazyFusedMap
from htt_lightning.models.layers import DepthwiseDownsample, conv_bn_relu, init_xavier
from htt_lightning.output import TaskOutput, resize_bilinear

TokenForm = Literal["exchange", "released"]
"""Forms of the task tokens: the default one, and that of the method's public release."""
RESIDUAL_INIT = 0.1
"""Initial weight of the norm that ends a residual branch: training starts near the network without the branch."""


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: context at several distances and of the whole image.

    The projection of concatenated branches is the sum of one projection per branch. That of the pooled image, which is
    the same everywhere, is computed once per image.
    """

    def __init__(
        self, in_channels: int, dim: int, dropout: float = 0.5, dilations: Sequence[int] = (12, 24, 36)
    ) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            [conv_bn_relu(in_channels, dim, 1), *(conv_bn_relu(in_channels, dim, 3, d) for d in dilations)]
        )
        self.pool = conv_bn_relu(in_channels, dim, 1)
        self.project = conv_bn_relu(dim * (len(dilations) + 2), dim, 1)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor | LazyFusedMap) -> Tensor:
        """Gather context: ``b c h w -> b d h w``."""
        branches = cast(Sequence[nn.Sequential], self.branches)
        if cpu_kernels.enabled(x):
            return cpu_kernels.pyramid_pooling(x, branches, self.pool, self.project, self.dropout)
        x = cpu_kernels.materialize(x)
        *weights, weight = cast(nn.Conv2d, self.project[0]).weight.chunk(len(branches) + 1, dim=1)
        out = F.conv2d(self.pool(x.mean((2, 3), keepdim=True)), weight)
        for branch, weight in zip(branches, weights, strict=True):
            out = out + F.conv2d(branch(x), weight)
        return cast(Tensor, self.dropout(self.project[1:](out)))


class TaskTokenAttention(nn.Module):
    """Attention between a task's features and its token, both of width ``dim``."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.reduce = nn.ModuleList(nn.Conv2d(dim, dim, 2, stride=2, groups=dim, bias=False) for _ in range(3))
        self.project = nn.ModuleList(nn.Linear(dim, dim) for _ in range(3))
        self.feature_out = nn.Linear(dim, dim)
        self.token_out = nn.Linear(dim, dim)
        self.refine = conv_bn_relu(dim, dim, 3, bias=True)

    def forward(self, x: Tensor, token: Tensor) -> tuple[Tensor, Tensor]:
        """Update features ``b d h w`` with even h and w, and the token: ``d -> b d``.

        Each image gets its own token; the release averages it over the batch (docs/differences.md, Network).
        """
        extra = repeat(token, "d -> b 1 d", b=x.shape[0])
        query, key, value = (
            project(torch.cat([rearrange(reduce(x), "b d h w -> b (h w) d"), extra], dim=1))
            for reduce, project in zip(self.reduce, self.project, strict=True)
        )
        if torch.compiler.is_compiling():  # ONNX supports attention only with an axis of heads
            attended = F.scaled_dot_product_attention(query[:, None], key[:, None], value[:, None])[:, 0]
        else:
            attended = F.scaled_dot_product_attention(query, key, value)
        context = rearrange(self.feature_out(attended[:, :-1]), "b (h w) d -> b d h w", h=x.shape[2] // 2)
        return self.refine(x + resize_bilinear(context, x.shape[-2:])), self.token_out(attended[:, -1])


class FineGrainedTokens(nn.Module):
    """Fine-grained tokens, one per class or bin, from an image's task token; mixed along the axis of classes."""

    def __init__(self, dim: int, num_tokens: int, hidden: int = 128) -> None:
        super().__init__()
        self.embed = nn.Linear(num_tokens, dim)
        self.mix = nn.Sequential(
            nn.Linear(num_tokens, hidden), nn.LayerNorm(hidden), nn.GELU(),
            nn.Linear(hidden, hidden), nn.LayerNorm(hidden), nn.GELU(),
            nn.Linear(hidden, num_tokens),
        )  # fmt: skip

    def forward(self, token: Tensor) -> Tensor:
        """Expand a token ``b d`` to ``b d k``; a linear layer of a one-hot vector is a column of its weight."""
        bias = self.embed.bias[:, None]
        tokens: Tensor = self.mix(token[:, :, None] + self.embed.weight + bias)
        return tokens


class HTTHead(nn.Module):
    """Head of ``HTTNet``: from one task's fused features to its output.

    The released form multiplies logits by scores that are random at the start, and lets a random convolution mix the
    classes. In the default form, attention is a residual branch, the scores begin at one, and no convolution follows.
    So training starts from ``BaselineHead`` (docs/differences.md, Network).
    """

    def __init__(
        self,
        in_channels: int,
        dim: int,
        num_tokens: int,
        dropout: float = 0.5,
        dilations: Sequence[int] = (12, 24, 36),
        token_stride: int = 1,
        use_fine_tokens: bool = True,
        use_token_attention: bool = True,
        tokens: TokenForm = "exchange",
    ) -> None:
        super().__init__()
        self.released = tokens == "released"
        self.aspp = ASPP(in_channels, dim, dropout, dilations)
        self.conv = nn.Conv2d(dim, dim, 3, padding=1, bias=False) if self.released else conv_bn_relu(dim, dim, 3)
        self.attention = TaskTokenAttention(dim) if use_token_attention else None
        self.fine_tokens = FineGrainedTokens(dim, num_tokens) if use_fine_tokens else None
        self.reduce = DepthwiseDownsample(dim, token_stride) if use_fine_tokens else None
        self.classify = nn.Conv2d(dim, num_tokens, 1)
        self.refine = nn.Conv2d(num_tokens, num_tokens, 3, padding=1) if self.released else nn.Identity()
        self.apply(init_xavier)
        if self.attention is not None and not self.released:
            nn.init.constant_(cast(nn.BatchNorm2d, self.attention.refine[1]).weight, RESIDUAL_INIT)
        if self.fine_tokens is not None and not self.released:  # scores of zero weight all logits by one
            nn.init.zeros_(cast(nn.Linear, self.fine_tokens.mix[-1]).weight)

    def embed(self, x: Tensor | LazyFusedMap) -> Tensor:
        """Compute the features of a task, ``b d h w``, from its fused map ``b c h w``."""
        feature: Tensor = self.conv(self.aspp(x))
        return feature

    def forward(self, feature: Tensor, token: Tensor) -> TaskOutput:
        """Predict one task from its features ``b d h w`` and its token ``d``."""
        image_token = token.expand(feature.shape[0], -1)
        if self.attention is not None:
            attended, image_token = self.attention(feature, token)
            feature = attended if self.released else feature + attended
        logits = self.classify(feature)
        if self.fine_tokens is not None and self.reduce is not None:
            scores = self.reduce.token_scores(feature, self.fine_tokens(image_token).mT)
            scale = 1 if self.released else feature.shape[1] ** -0.5
            weights = F.softplus(scores * scale) / (1 if self.released else math.log(2))
            logits = logits * self.reduce.upsample(weights, feature.shape[-2:])
        logits = self.refine(logits)
        confidence = torch.einsum("b d h w, b d -> b h w", feature, image_token).sigmoid()
        return TaskOutput(logits, feature, rearrange(confidence, "b h w -> b 1 h w"))


class BaselineHead(nn.Module):
    """Head of the multi-task baseline: ASPP, one 3x3 convolution, 1x1 logits; no tokens."""

    def __init__(
        self, in_channels: int, dim: int, num_tokens: int, dropout: float = 0.5, dilations: Sequence[int] = (12, 24, 36)
    ) -> None:
        super().__init__()
        self.aspp = ASPP(in_channels, dim, dropout, dilations)
        self.conv = conv_bn_relu(dim, dim, 3)
        self.classify = nn.Conv2d(dim, num_tokens, 1)
        self.apply(init_xavier)

    def forward(self, x: Tensor | LazyFusedMap) -> TaskOutput:
        """Predict one task from its features ``b c h w``, with a confidence of one."""
        feature = self.conv(self.aspp(x))
        return TaskOutput(self.classify(feature), feature, torch.ones_like(feature[:, :1]))
