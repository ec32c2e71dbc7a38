"""The networks: image in, one ``TaskOutput`` per task out. Plain modules, usable without Lightning."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from htt_lightning.errors import HTTError
from htt_lightning.io.weights import check_finite
from htt_lightning.models.backbone import Backbone
from htt_lightning.models.fusion import Fusion, LazyFusedMap
from htt_lightning.models.heads import BaselineHead, HTTHead
from htt_lightning.models.layers import checkpoint_with_frozen_bn_stats, init_xavier
from htt_lightning.models.released import load_released
from htt_lightning.models.tokens import IndependentTaskTokens, MultiScaleTaskTokens, SingleScaleTaskTokens
from htt_lightning.output import BatchIndices, TaskOutput, any_selected, select

logger = logging.getLogger(__name__)

STRIDE = 32
"""Images are padded to multiples of this: the coarsest stride, and twice a single-scale one, which attention halves."""


MAX_CHANNELS = 2**16
"""More channels, or more pixels between two taps, than any network has: such a number is a mistake, or damage."""


def check_sizes(token_dim: Any, dropout: Any, dilations: Any, token_stride: Any = 1) -> None:
    """Look at the sizes of a network before anything is built from them, as a damaged checkpoint may have any.

    Raises:
        HTTError: One is no number of its kind; the message names it.
    """
    several = dilations if isinstance(dilations, list | tuple) else [dilations]
    for key, values in {"token_dim": [token_dim], "dilations": several, "token_stride": [token_stride]}.items():
        for value in values:
            if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < MAX_CHANNELS:
                raise HTTError(f"model.{key}: whole numbers from 1 to {MAX_CHANNELS - 1} are possible, not {value!r}.")
    if not isinstance(dropout, int | float) or not 0 <= dropout <= 1:
        raise HTTError(f"model.dropout must be in [0, 1], not {dropout!r}.")


class DensePredictionNetwork(nn.Module, ABC):
    """What all networks share: normalise, pad to the stride, run the backbone, cut the padding off again.

    Args:
        num_tokens: K by task name: classes or bins.
        backbone: A timm model's name, or a module with ``channels`` and ``strides`` that returns a list of maps.
        pretrained: Backbone weights: true (timm's hub), false (none) or a local file.
        backbone_options: Further arguments of ``timm.create_model``.
        gradient_checkpointing: Whether the backward pass recomputes the heads instead of keeping them: less
            memory, longer steps, the same gradients.
        mean: Of the channels R, G, B in [0, 1]; ImageNet's by default, as in the published recipe.
        std: Likewise.
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
        mean: Sequence[float] = (0.485, 0.456, 0.406),
        std: Sequence[float] = (0.229, 0.224, 0.225),
    ) -> None:
        super().__init__()
        if not num_tokens:
            raise HTTError("A network needs at least one task.")
        if not isinstance(backbone, str | nn.Module):
            raise HTTError(f"model.backbone must be the name of a timm model, or a module, not {backbone!r}.")
        self.tasks, self.gradient_checkpointing = list(num_tokens), gradient_checkpointing
        self.backbone: Any = Backbone(backbone, pretrained, backbone_options) if isinstance(backbone, str) else backbone
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1))

    @abstractmethod
    def forward_features(self, maps: Sequence[Tensor], indices: BatchIndices) -> dict[str, TaskOutput]:
        """Backbone maps to outputs.

        Args:
            maps: ``b c_s h/s w/s``, finest first.
            indices: Per task, the images to predict.

        Returns:
            Outputs by task name, of the finest map's size; a task that is asked about no image is left out.
        """

    def _run_head(self, module: nn.Module, *inputs: Tensor | LazyFusedMap) -> TaskOutput:
        """A head's output, computed once more in the backward pass if so wanted.

        Args:
            module: The head.
            *inputs: What it takes.
        """
        again = self.gradient_checkpointing and self.training and torch.is_grad_enabled()
        output: TaskOutput = checkpoint_with_frozen_bn_stats(module, module, *inputs) if again else module(*inputs)
        return output

    def forward(self, image: Tensor, indices: Mapping[str, Tensor] | None = None) -> dict[str, TaskOutput]:
        """Predict every task.

        Args:
            image: RGB in [0, 1], ``b 3 h w`` of any size; it is padded right and bottom with the mean colour.
            indices: By task, the images to predict; None predicts all.

        Returns:
            Outputs by task name, ``ceil(h/s) ceil(w/s)`` for stride s; a task that is asked about no image is left out.

        Raises:
            HTTError: The image is not ``b 3 h w``.
        """
        if image.ndim != 4 or image.shape[1] != 3:
            raise HTTError(f"image must be b 3 h w (RGB in [0, 1]), not {tuple(image.shape)}; add a batch axis?")
        height, width = image.shape[-2:]
        normalised = (image - self.mean) / self.std
        # Rounded up without negative numbers, which ONNX divides otherwise, and to what is seen to be a multiple of the
        # stride: so export knows the sizes of all maps.
        down, right = (STRIDE * ((length + STRIDE - 1) // STRIDE) - length for length in (height, width))
        padded = F.pad(normalised, (0, right, 0, down))
        stride = self.backbone.strides[0]
        grid = [(length + stride - 1) // stride for length in (height, width)]
        outputs = self.forward_features(
            self.backbone(padded), [None if indices is None else indices[task] for task in self.tasks]
        )
        return {task: TaskOutput(*(x[..., : grid[0], : grid[1]] for x in output)) for task, output in outputs.items()}


class HTTNet(
    DensePredictionNetwork,
    PyTorchModelHubMixin,
    # The config is JSON with sorted keys, but the order of tasks is that of the tokens: as pairs it is kept.
    coders={dict: (lambda values: [list(pair) for pair in values.items()], dict)},
):
    """Hierarchical task tokens: global tokens at every scale, fine-grained tokens per class or bin (method.md 1, 2).

    Examples:
        >>> net = HTTNet({"semseg": 13, "depth": 30}, token_dim=32).eval()
        >>> net(torch.rand(2, 3, 64, 96))["depth"].logits.shape
        torch.Size([2, 30, 16, 24])

    ``save_pretrained``, ``from_pretrained`` and ``push_to_hub`` are those of huggingface_hub: ``config.json`` (the
    arguments) and ``model.safetensors``. Give ``from_pretrained`` a commit as ``revision``.

    Args:
        num_tokens: K by task name: classes or bins.
        token_dim: Token width D.
        dropout: Rate in ASPP.
        dilations: In ASPP, in pixels of the finest map; the published ones suit images of 288x384 and more.
        token_stride: Kernel and stride r of the depthwise convolutions behind gates and token scores.
        use_global_tokens: Whether tasks are gated and mixed by tokens at every scale; false for ablation.
        use_fine_tokens: Whether logits are weighted by the scores of a token per class or bin; false for ablation.
        **kwargs: See ``DensePredictionNetwork``.
    """

    def __init__(
        self,
        num_tokens: Mapping[str, int],
        token_dim: int = 256,
        dropout: float = 0.5,
        dilations: Sequence[int] = (12, 24, 36),
        token_stride: int = 1,
        use_global_tokens: bool = True,
        use_fine_tokens: bool = True,
        **kwargs: Any,
    ) -> None:
        check_sizes(token_dim, dropout, dilations, token_stride)
        num_tokens = dict(num_tokens)
        super().__init__(num_tokens, **kwargs)
        channels: list[int] = self.backbone.channels
        count = len(num_tokens)
        self.global_tokens: nn.Module
        if not use_global_tokens:
            self.global_tokens = IndependentTaskTokens(channels, count, token_dim)
        elif len(set(self.backbone.strides)) == 1:
            self.global_tokens = SingleScaleTaskTokens(channels, count, token_dim, token_stride)
        else:
            self.global_tokens = MultiScaleTaskTokens(channels, count, token_dim, token_stride)
        self.heads = nn.ModuleDict(
            {
                task: HTTHead(channels[-1], token_dim, k, dropout, dilations, token_stride, use_fine_tokens)
                for task, k in num_tokens.items()
            }
        )

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> "HTTNet":
        """The network in a folder of ``save_pretrained``, or in a repository of the hub, in evaluation mode.

        Args:
            pretrained_model_name_or_path: The folder, or the name of the repository.
            **kwargs: Those of ``PyTorchModelHubMixin.from_pretrained``, such as ``revision``; ``strict`` is true by
                default here, so that every weight is what the file says.

        Raises:
            HTTError: A file is missing or damaged, or its weights are those of another network.
        """
        try:
            net: HTTNet = super().from_pretrained(pretrained_model_name_or_path, **{"strict": True, **kwargs})
            check_finite(net.state_dict())
            net.eval()  # as the hub's newer releases do
            return net
        except Exception as error:  # files of other kinds, the hub and its cache fail in many ways
            raise HTTError(
                f"{pretrained_model_name_or_path} holds no network of save_pretrained (config.json and "
                f"model.safetensors): {type(error).__name__}: {error}"
            ) from error

    @classmethod
    def _from_pretrained(cls, **arguments: Any) -> "HTTNet":
        if "dilations" not in arguments:  # which weights of any others fit
            raise ValueError("config.json has lost dilations")
        net: HTTNet = super()._from_pretrained(**arguments)
        return net

    @classmethod
    def from_official_checkpoint(
        cls, checkpoint: str | Path, backbone: str | nn.Module = "resnet18", tokens: Tensor | None = None, **kwargs: Any
    ) -> "HTTNet":
        """The network of a checkpoint of the public release.

        Such a file lacks the global tokens: in the release they are random numbers outside the parameters, which never
        train and are not saved (protocol.md 6.3). Without the very numbers of the run, the other weights meet gates
        that they were not trained with, and predictions are not those of the trained network: fine-tune before use.
        Decode normals with ``Normals(directions="published")``.

        Args:
            checkpoint: The file; nothing in it is executed.
            backbone: A timm model's name, or a module.
            tokens: The global tokens ``t c`` of the run, if they are known; by default drawn anew with a warning,
                unless the file does hold them.
            **kwargs: See the class.

        Raises:
            HTTError: The file is no such checkpoint, or one of another backbone, or the tokens have another shape.
        """
        state, num_tokens, token_dim = load_released(checkpoint)
        net = cls(num_tokens, token_dim=token_dim, backbone=backbone, **kwargs)
        key = "global_tokens.tokens"
        if tokens is None and key not in state:
            logger.warning(
                "%s lacks the global tokens, as every file of the release does. They are drawn anew, so predictions "
                "are not those of the trained network: fine-tune it, or give the tokens of the run.",
                checkpoint,
            )
        own = net.state_dict()
        state = (
            {"mean": own["mean"], "std": own["std"], key: own[key]} | state | ({} if tokens is None else {key: tokens})
        )
        if isinstance(backbone, nn.Module):
            state = {name.replace("backbone.model.", "backbone."): value for name, value in state.items()}
        try:
            net.load_state_dict(state)
        except RuntimeError as error:
            raise HTTError(
                f"The weights of {checkpoint} do not fit backbone {backbone!r} and the network around it: {error}"
            ) from error
        return net

    def task_affinity(self) -> Tensor | None:
        """Cross-task affinity ``s t t`` at every scale, rows sum to one (method.md 1.4); None without global tokens."""
        tokens = self.global_tokens
        return tokens.task_affinity() if isinstance(tokens, MultiScaleTaskTokens | SingleScaleTaskTokens) else None

    def forward_features(self, maps: Sequence[Tensor], indices: BatchIndices) -> dict[str, TaskOutput]:
        """Tokens first, then one head per task."""
        features, tokens = self.global_tokens(maps, indices)
        inputs = zip(self.tasks, features, tokens, indices, strict=True)
        return {task: self._run_head(self.heads[task], x, token) for task, x, token, row in inputs if any_selected(row)}


class MultiTaskNet(DensePredictionNetwork):
    """The multi-task baseline: a shared backbone, and per task the fusion and ASPP of ``HTTNet``, but no tokens.

    With one task it is the single-task baseline.

    Args:
        num_tokens: K by task name: classes or bins.
        token_dim: Width of the heads.
        dropout: Rate in ASPP.
        dilations: In ASPP, in pixels of the finest map; the published ones suit images of 288x384 and more.
        **kwargs: See ``DensePredictionNetwork``.
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
        """Fuse and predict, task by task."""
        return {
            task: self._run_head(self.heads[task], self.fuse[task]([select(x, row) for x in maps]))
            for task, row in zip(self.tasks, indices, strict=True)
            if any_selected(row)
        }
