"""Networks from an image to one ``TaskOutput`` per task. Plain modules, usable without Lightning."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast, get_args

import torch
import torch.nn.functional as F
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from htt_lightning.errors import CheckpointError, ConfigError
from htt_lightning.io.weights import check_finite
from htt_lightning.models.backbone import IMAGENET_MEAN, IMAGENET_STD, Backbone
from htt_lightning.models.backbone_sizes import STRIDE
from htt_lightning.models.cpu_kernels import LazyFusedMap
from htt_lightning.models.heads import BaselineHead, HTTHead, TokenForm
from htt_lightning.models.layers import checkpoint_with_frozen_bn_stats, init_xavier
from htt_lightning.models.released import load_released
from htt_lightning.models.tokens import (
    ExchangingTaskTokens,
    Fusion,
    IndependentTaskTokens,
    MultiScaleTaskTokens,
    SingleScaleTaskTokens,
)
from htt_lightning.output import BatchIndices, TaskOutput, any_selected, select

logger = logging.getLogger(__name__)

MAX_CHANNELS = 2**16 - 1
"""Largest number of channels, and largest dilation; a larger value is a mistake or a corrupt file."""


def check_sizes(token_dim: Any, dropout: Any, dilations: Any, token_stride: Any = 1) -> None:
    """Check the sizes of a network before it is built."""
    several = dilations if isinstance(dilations, list | tuple) else [dilations]
    for key, values in {"token_dim": [token_dim], "dilations": several, "token_stride": [token_stride]}.items():
        for value in values:
            if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= MAX_CHANNELS:
                raise ConfigError(f"model.{key} must be an integer in [1, {MAX_CHANNELS}], got {value!r}.")
    if not isinstance(dropout, int | float) or not 0 <= dropout <= 1:
        raise ConfigError(f"model.dropout must be a number in [0, 1], got {dropout!r}.")


class DensePredictionNetwork(nn.Module, ABC):
    """Base of the networks: normalizes, pads to the stride, runs the backbone and crops the padding.

    Args:
        num_tokens: Number K of classes or bins by task name.
        backbone: Name of a timm model, or a module with ``channels`` and ``strides`` that returns a list of maps.
        pretrained: Backbone weights: true (an installed package, else timm's hub), false (random) or a weights file.
        backbone_options: Further arguments of ``timm.create_model``.
        gradient_checkpointing: Whether the backward pass recomputes the heads: less memory, longer steps.
        mean: Mean of the channels R, G, B in [0, 1]; None takes that of the weights, ImageNet's for random ones.
        std: Standard deviation of the channels R, G, B, above 0; None takes that of the weights.

    Raises:
        ConfigError: An argument is out of its range, or the backbone cannot be built.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        num_tokens: Mapping[str, int],
        backbone: str | nn.Module = "resnet18",
        pretrained: bool | str = False,
        backbone_options: Mapping[str, Any] | None = None,
        gradient_checkpointing: bool = False,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        if not num_tokens:
            raise ConfigError("num_tokens must name at least one task, got none.")
        if not isinstance(backbone, str | nn.Module):
            raise ConfigError(f"model.backbone must be the name of a timm model or a module, got {backbone!r}.")
        self.tasks, self.gradient_checkpointing = list(num_tokens), gradient_checkpointing
        self.backbone: Any = Backbone(backbone, pretrained, backbone_options) if isinstance(backbone, str) else backbone
        self.register_buffer("mean", torch.zeros(1, 3, 1, 1))
        self.register_buffer("std", torch.ones(1, 3, 1, 1))
        own = self.backbone if isinstance(self.backbone, Backbone) else None
        self.set_normalization(mean or (own.mean if own else IMAGENET_MEAN), std or (own.std if own else IMAGENET_STD))

    def set_normalization(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Set the normalization of images.

        Args:
            mean: Mean of the channels R, G, B in [0, 1].
            std: Standard deviation of the channels, above 0.

        Raises:
            ConfigError: They are not three numbers each, or a deviation is not above 0.
        """
        for key, values in {"mean": mean, "std": std}.items():
            numbers = torch.as_tensor(values, dtype=torch.float32)
            if numbers.shape != (3,) or not numbers.isfinite().all() or (key == "std" and not (numbers > 0).all()):
                rule = "three numbers above 0" if key == "std" else "three numbers"
                raise ConfigError(f"model.{key} must be {rule}, for R, G, B in [0, 1], got {list(values)}.")
            self.get_buffer(key).copy_(numbers.view(1, 3, 1, 1))

    @abstractmethod
    def forward_features(self, maps: Sequence[Tensor], indices: BatchIndices) -> dict[str, TaskOutput]:
        """Turn backbone maps into outputs.

        Args:
            maps: ``b c_s h/s w/s``, finest first.
            indices: Per task, the images to predict.

        Returns:
            Outputs by task name, on the grid of the finest map; without the tasks that have no image to predict.
        """

    def _run_head(self, run: Callable[..., Any], head: nn.Module, *inputs: Tensor | LazyFusedMap) -> Any:
        """Run a head or its method, recomputed in the backward pass under gradient checkpointing."""
        recompute = self.gradient_checkpointing and self.training and torch.is_grad_enabled()
        return checkpoint_with_frozen_bn_stats(run, head, *inputs) if recompute else run(*inputs)

    def forward(self, image: Tensor, indices: Mapping[str, Tensor] | None = None) -> dict[str, TaskOutput]:
        """Predict every task.

        Args:
            image: RGB in [0, 1], ``b 3 h w`` of any size; padded right and bottom with the mean color.
            indices: By task, the images to predict; None predicts all.

        Returns:
            Outputs by task name, ``ceil(h/s) ceil(w/s)``; without the tasks that have no image to predict.

        Raises:
            ConfigError: The image has another shape.
        """
        if image.ndim != 4 or image.shape[1] != 3:
            raise ConfigError(f"image must be b 3 h w (RGB in [0, 1]), got {tuple(image.shape)}. Add a batch axis?")
        height, width = image.shape[-2:]
        normalized = (image - self.mean) / self.std
        # Rounded up without negative numbers, which ONNX divides differently, and as a visible multiple of the stride,
        # from which export derives the sizes of all maps.
        down, right = (STRIDE * ((length + STRIDE - 1) // STRIDE) - length for length in (height, width))
        padded = F.pad(normalized, (0, right, 0, down))
        stride = self.backbone.strides[0]
        grid = [(length + stride - 1) // stride for length in (height, width)]
        chosen = [None if indices is None else indices[task] for task in self.tasks]
        outputs = self.forward_features(self.backbone(padded), chosen)
        return {task: TaskOutput(*(x[..., : grid[0], : grid[1]] for x in output)) for task, output in outputs.items()}


class HTTNet(
    DensePredictionNetwork,
    PyTorchModelHubMixin,
    # JSON configs have sorted keys, but the order of tasks is that of the tokens: pairs keep it.
    coders={dict: (lambda values: [list(pair) for pair in values.items()], dict)},
):
    """Network with hierarchical task tokens: global tokens at every scale, fine-grained tokens per class or bin.

    Source: [HiTTs](https://arxiv.org/abs/2411.18823), Sec. 3.

    Examples:
        >>> net = HTTNet({"semseg": 13, "depth": 30}, token_dim=32).eval()
        >>> net(torch.rand(2, 3, 64, 96))["depth"].logits.shape
        torch.Size([2, 30, 16, 24])

    ``save_pretrained``, ``from_pretrained`` and ``push_to_hub`` come from huggingface_hub. They use ``config.json``
    (the arguments) and ``model.safetensors``. Pass a commit to ``from_pretrained`` as ``revision``.

    Args:
        num_tokens: Number K of classes or bins by task name.
        token_dim: Token width D.
        dropout: Dropout rate in ASPP, in [0, 1].
        dilations: Dilations in ASPP in pixels of the finest map; the published ones suit images from 288x384 on.
        token_stride: Kernel size and stride r of the depthwise convolutions before gates and token scores.
        tokens: Form of the tokens. In ``exchange`` they mix the features of the tasks' heads. In ``released``, the form
            of the paper and its public release, they gate those of the backbone (docs/differences.md, Network).
        use_global_tokens: Whether the tasks share features or gates by their tokens; false for ablation.
        use_token_attention: Whether a task's features and its token attend to each other; false for ablation.
        use_fine_tokens: Whether scores of a token per class or bin weight the logits; false for ablation.
        **kwargs: Arguments of ``DensePredictionNetwork``.

    Raises:
        ConfigError: An argument is out of its range.
    """

    def __init__(
        self,
        num_tokens: Mapping[str, int],
        token_dim: int = 256,
        dropout: float = 0.5,
        dilations: Sequence[int] = (12, 24, 36),
        token_stride: int = 1,
        tokens: TokenForm = "exchange",
        use_global_tokens: bool = True,
        use_token_attention: bool = True,
        use_fine_tokens: bool = True,
        **kwargs: Any,
    ) -> None:
        check_sizes(token_dim, dropout, dilations, token_stride)
        if tokens not in get_args(TokenForm):
            raise ConfigError(f"model.tokens must be one of {', '.join(get_args(TokenForm))}, got {tokens!r}.")
        num_tokens = dict(num_tokens)
        super().__init__(num_tokens, **kwargs)
        channels: list[int] = self.backbone.channels
        self.global_tokens: nn.Module
        if use_global_tokens and tokens == "released":
            build = SingleScaleTaskTokens if len(set(self.backbone.strides)) == 1 else MultiScaleTaskTokens
            self.global_tokens = build(channels, len(num_tokens), token_dim, token_stride)
        else:
            form = ExchangingTaskTokens if use_global_tokens else IndependentTaskTokens
            self.global_tokens = form(channels, len(num_tokens), token_dim)
        settings = dropout, dilations, token_stride, use_fine_tokens, use_token_attention, tokens
        self.heads = nn.ModuleDict(
            {task: HTTHead(channels[-1], token_dim, k, *settings) for task, k in num_tokens.items()}
        )

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> "HTTNet":
        """Load a network from a folder of ``save_pretrained`` or a repository of the hub, in evaluation mode.

        Args:
            pretrained_model_name_or_path: Folder, or name of the repository.
            **kwargs: Arguments of ``PyTorchModelHubMixin.from_pretrained``; ``strict`` is true by default.

        Raises:
            CheckpointError: A file is missing or corrupt, or its weights do not fit.
        """
        try:
            net: HTTNet = super().from_pretrained(
                pretrained_model_name_or_path, **{"strict": True, "pretrained": False, **kwargs}
            )
            check_finite(net.state_dict())
        except Exception as error:  # file readers, the hub and its cache raise many types
            raise CheckpointError(
                f"{pretrained_model_name_or_path} must hold config.json and model.safetensors of save_pretrained: "
                f"{type(error).__name__}: {error}"
            ) from error
        return net.eval()

    @classmethod
    def from_official_checkpoint(
        cls, checkpoint: str | Path, backbone: str | nn.Module = "resnet18", tokens: Tensor | None = None, **kwargs: Any
    ) -> "HTTNet":
        """Load a checkpoint of the public release.

        Such a file lacks the global tokens: the release neither trains nor saves them (docs/differences.md, Network).
        With other tokens, predictions differ from those of the trained network: fine-tune before use.
        Decode normals with ``Normals(bin_directions="published")``.

        Args:
            checkpoint: Path to the file; nothing in it is executed.
            backbone: Name of a timm model, or a module.
            tokens: Global tokens ``t c`` of the run. None takes those of the file, or draws random ones with a warning.
            **kwargs: Arguments of ``HTTNet``.

        Raises:
            CheckpointError: The file is no such checkpoint, or its weights or the tokens do not fit.
        """
        state, num_tokens, token_dim = load_released(checkpoint)
        net = cls(num_tokens, token_dim=token_dim, backbone=backbone, **{"tokens": "released", **kwargs})
        own, key = net.state_dict(), "global_tokens.tokens"
        if tokens is None and key not in state:
            logger.warning(
                "%s lacks the global tokens, like every file of the release. They are drawn at random, so predictions "
                "differ from those of the trained network. Fine-tune it, or pass tokens.",
                checkpoint,
            )
        state = {name: own[name] for name in ("mean", "std", key)} | state | ({} if tokens is None else {key: tokens})
        if isinstance(backbone, nn.Module):
            state = {name.replace("backbone.model.", "backbone."): value for name, value in state.items()}
        try:
            net.load_state_dict(state)
        except RuntimeError as error:
            raise CheckpointError(
                f"The weights of {checkpoint} must fit backbone {backbone!r} and its network: {error}"
            ) from error
        return net

    def task_affinity(self) -> Tensor | None:
        """Return the affinity of the tasks, rows sum to one; None without global tokens.

        It is ``g t t`` for every group of channels, or ``s t t`` for every scale in the released form.
        """
        affinity: Tensor | None = getattr(self.global_tokens, "task_affinity", lambda: None)()
        return affinity

    def forward_features(self, maps: Sequence[Tensor], indices: BatchIndices) -> dict[str, TaskOutput]:
        """Turn backbone maps into outputs: global tokens first, then one head per task."""
        wanted = [task for task, chosen in zip(self.tasks, indices, strict=True) if any_selected(chosen)]
        fused, tokens = (dict(zip(self.tasks, x, strict=True)) for x in self.global_tokens(maps, indices))
        features: dict[str, Tensor] = {}
        exchanging = self.global_tokens if isinstance(self.global_tokens, ExchangingTaskTokens) else None
        for task in self.tasks if exchanging else wanted:
            features[task] = self._run_head(cast(HTTHead, self.heads[task]).embed, self.heads[task], fused[task])
        if exchanging:
            features = dict(zip(features, exchanging.exchange([*features.values()], indices), strict=True))
        return {task: self._run_head(head := self.heads[task], head, features[task], tokens[task]) for task in wanted}


class MultiTaskNet(DensePredictionNetwork):
    """Multi-task baseline: a shared backbone, and per task the fusion and ASPP of ``HTTNet``, but no tokens.

    With one task it is the single-task baseline.

    Examples:
        >>> net = MultiTaskNet({"depth": 30}, token_dim=32).eval()
        >>> net(torch.rand(2, 3, 64, 96))["depth"].logits.shape
        torch.Size([2, 30, 16, 24])

    Args:
        num_tokens: Number K of classes or bins by task name.
        token_dim: Width of the heads.
        dropout: Dropout rate in ASPP, in [0, 1].
        dilations: Dilations in ASPP in pixels of the finest map; the published ones suit images from 288x384 on.
        **kwargs: Arguments of ``DensePredictionNetwork``.
    """

    def __init__(
        self,
        num_tokens: Mapping[str, int],
        token_dim: int = 256,
        dropout: float = 0.5,
        dilations: Sequence[int] = (12, 24, 36),
        **kwargs: Any,
    ) -> None:
        check_sizes(token_dim, dropout, dilations)
        super().__init__(num_tokens, **kwargs)
        channels: list[int] = self.backbone.channels
        self.fuse = nn.ModuleDict({task: Fusion(channels, channels[-1]) for task in num_tokens}).apply(init_xavier)
        self.heads = nn.ModuleDict(
            {task: BaselineHead(channels[-1], token_dim, k, dropout, dilations) for task, k in num_tokens.items()}
        )

    def forward_features(self, maps: Sequence[Tensor], indices: BatchIndices) -> dict[str, TaskOutput]:
        """Turn backbone maps into outputs, task by task."""
        return {
            task: self._run_head(head := self.heads[task], head, self.fuse[task]([select(x, chosen) for x in maps]))
            for task, chosen in zip(self.tasks, indices, strict=True)
            if any_selected(chosen)
        }
