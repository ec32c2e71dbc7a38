"""From a task's features to its prediction, through fine-grained task tokens (method.md 2)."""

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from htt_lightning.models.fusion import LazyFusedMap
from htt_lightning.models.layers import DepthwiseDownsample, checkpoint_if_large, conv_bn_relu, init_xavier
from htt_lightning.output import TaskOutput, resize_bilinear


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: context at several distances and of the whole image (step 1).

    The projection of concatenated branches is the sum of a projection of each. So they are never concatenated, and that
    of the pooled image, which is the same everywhere, is computed once per image instead of once per pixel.

    Attributes:
        composed: Whether fused features are never made where ``LazyFusedMap.conv`` is cheaper.

    Args:
        inputs: Channels of the features.
        dim: Channels of every branch and of the result.
        dropout: Rate behind the projection.
        dilations: Of the 3x3 branches, in pixels of the features.
    """

    def __init__(self, inputs: int, dim: int, dropout: float = 0.5, dilations: Sequence[int] = (12, 24, 36)) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            [conv_bn_relu(inputs, dim, 1), *(conv_bn_relu(inputs, dim, 3, dilation) for dilation in dilations)]
        )
        self.pool = conv_bn_relu(inputs, dim, 1)
        self.project = conv_bn_relu(dim * (len(dilations) + 2), dim, 1)
        self.dropout = nn.Dropout(dropout)
        self.composed = True

    def forward(self, x: Tensor | LazyFusedMap) -> Tensor:
        """``b c h w -> b d h w``."""
        weight = cast(nn.Conv2d, self.project[0]).weight
        *own, last = weight.chunk(len(self.branches) + 1, dim=1)
        convs = [cast(nn.Conv2d, branch[0]) for branch in cast(Sequence[nn.Sequential], self.branches)]
        weights, dilations = [conv.weight for conv in convs], [conv.dilation[0] for conv in convs]
        if isinstance(x, LazyFusedMap) and self.composed and x.is_cheaper(weights, dilations):
            mean, seen = x.mean(), (x.conv(w, dilation) for w, dilation in zip(weights, dilations, strict=True))
        else:
            dense = x.materialize() if isinstance(x, LazyFusedMap) else x
            mean, seen = dense.mean((2, 3), keepdim=True), (conv(dense) for conv in convs)
        out = F.conv2d(self.pool(mean), last)
        for branch, part, features in zip(self.branches, own, seen, strict=True):
            norm_relu = cast(nn.Sequential, branch)[1:]
            # In place of the newest map: nothing else needs it.
            out = checkpoint_if_large(lambda x, w, act=norm_relu: F.conv2d(act(x), w), norm_relu, features, part).add_(
                out
            )
        return checkpoint_if_large(lambda x: self.dropout(self.project[1:](x)), self.project, out)


class TaskTokenAttention(nn.Module):
    """A task's features and its token attend to each other (step 2).

    Args:
        dim: Width D of both.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.reduce = nn.ModuleList(nn.Conv2d(dim, dim, 2, stride=2, groups=dim, bias=False) for _ in range(3))
        self.project = nn.ModuleList(nn.Linear(dim, dim) for _ in range(3))
        self.feature_out = nn.Linear(dim, dim)
        self.token_out = nn.Linear(dim, dim)
        self.refine = conv_bn_relu(dim, dim, 3, bias=True)

    def forward(self, x: Tensor, token: Tensor) -> tuple[Tensor, Tensor]:
        """Update both; the token becomes the image's own, never an average over the batch (method.md 6).

        Args:
            x: Features G, ``b d h w`` with even h and w.
            token: ``d``.

        Returns:
            Features G' ``b d h w`` and tokens ``b d``.
        """
        extra = repeat(token, "d -> b 1 d", b=x.shape[0])
        query, key, value = (
            project(torch.cat([rearrange(reduce(x), "b d h w -> b (h w) d"), extra], dim=1))
            for reduce, project in zip(self.reduce, self.project, strict=True)
        )
        if torch.compiler.is_compiling():  # ONNX knows attention with an axis of heads alone, here of one
            attended = F.scaled_dot_product_attention(query[:, None], key[:, None], value[:, None])[:, 0]
        else:
            attended = F.scaled_dot_product_attention(query, key, value)
        context = rearrange(self.feature_out(attended[:, :-1]), "b (h w) d -> b d h w", h=x.shape[2] // 2)
        return self.refine(x + resize_bilinear(context, x.shape[-2:])), self.token_out(attended[:, -1])


class FineGrainedTokens(nn.Module):
    """One token per class or bin from an image's task token (step 3).

    Args:
        dim: Token width D.
        count: K, number of classes or bins.
        hidden: Width of the mixing along the K axis.
    """

    def __init__(self, dim: int, count: int, hidden: int = 128) -> None:
        super().__init__()
        self.embed = nn.Linear(count, dim)
        self.mix = nn.Sequential(
            nn.Linear(count, hidden), nn.LayerNorm(hidden), nn.GELU(),
            nn.Linear(hidden, hidden), nn.LayerNorm(hidden), nn.GELU(),
            nn.Linear(hidden, count),
        )  # fmt: skip

    def forward(self, token: Tensor) -> Tensor:
        """``b d -> b d k``; a linear layer on a one-hot vector is a column of its weight."""
        bias = self.embed.bias[:, None]
        tokens: Tensor = self.mix(token[:, :, None] + self.embed.weight + bias)
        return tokens


class HTTHead(nn.Module):
    """Everything between one task's fused features and its output.

    Args:
        inputs: Channels of the fused features.
        dim: Token width D.
        count: K, number of classes or bins.
        dropout: Rate in ASPP.
        dilations: In ASPP.
        token_stride: Kernel and stride r of the depthwise convolution that token scores are computed on.
        use_fine_tokens: Whether there are fine-grained tokens; without them, logits are not weighted by scores.
    """

    def __init__(
        self,
        inputs: int,
        dim: int,
        count: int,
        dropout: float = 0.5,
        dilations: Sequence[int] = (12, 24, 36),
        token_stride: int = 1,
        use_fine_tokens: bool = True,
    ) -> None:
        super().__init__()
        self.aspp = ASPP(inputs, dim, dropout, dilations)
        self.conv = nn.Conv2d(dim, dim, 3, padding=1, bias=False)
        self.attention = TaskTokenAttention(dim)
        self.fine_tokens = FineGrainedTokens(dim, count) if use_fine_tokens else None
        self.reduce = DepthwiseDownsample(dim, token_stride) if use_fine_tokens else None
        self.classify = nn.Conv2d(dim, count, 1)
        self.refine = nn.Conv2d(count, count, 3, padding=1)
        self.apply(init_xavier)

    def forward(self, x: Tensor | LazyFusedMap, token: Tensor) -> TaskOutput:
        """Features ``b c h w`` and the task's token ``d`` to the task's output."""
        feature, own = self.attention(self.conv(self.aspp(x)), token)
        logits = self.classify(feature)
        if self.fine_tokens is not None and self.reduce is not None:
            scores = F.softplus(self.reduce.token_scores(feature, self.fine_tokens(own).mT))
            logits = logits * self.reduce.upsample(scores, feature.shape[-2:])
        logits = self.refine(logits)
        confidence = torch.einsum("b d h w, b d -> b h w", feature, own).sigmoid()
        return TaskOutput(logits, feature, rearrange(confidence, "b h w -> b 1 h w"))


class BaselineHead(nn.Module):
    """The baseline's head: ASPP, one 3x3 convolution, 1x1 logits; no tokens.

    Args:
        inputs: Channels of the fused features.
        dim: Width of the head.
        count: K, number of classes or bins.
        dropout: Rate in ASPP.
        dilations: In ASPP.
    """

    def __init__(
        self, inputs: int, dim: int, count: int, dropout: float = 0.5, dilations: Sequence[int] = (12, 24, 36)
    ) -> None:
        super().__init__()
        self.aspp = ASPP(inputs, dim, dropout, dilations)
        self.conv = conv_bn_relu(dim, dim, 3)
        self.classify = nn.Conv2d(dim, count, 1)
        self.apply(init_xavier)

    def forward(self, x: LazyFusedMap) -> TaskOutput:
        """Features ``b c h w`` to the task's output, with a confidence of one."""
        feature = self.conv(self.aspp(x))
        return TaskOutput(self.classify(feature), feature, torch.ones_like(feature[:, :1]))
