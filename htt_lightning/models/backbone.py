"""Backbones: any timm model that returns feature maps."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, nn

from htt_lightning.errors import ConfigError, did_you_mean
from htt_lightning.io.weights import check_finite, verify_zip_checksums
from htt_lightning.models.backbone_sizes import STRIDE, SizePlan, feature_maps, plan_sizes
from htt_lightning.models.pretrained import CLASSIFIER, PACKAGES, load_packaged_weights

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and standard deviation of the channels R, G, B in [0, 1]."""
_plans: dict[str, SizePlan] = {}


class Backbone(nn.Module):
    """Four feature maps of a timm model: a pyramid of strides 4 to 32, or four depths of a plain vision transformer.

    Examples:
        >>> backbone = Backbone("test_resnet").eval()
        >>> [tuple(x.shape) for x in backbone(torch.rand(1, 3, 64, 96))]
        [(1, 32, 16, 24), (1, 48, 8, 12), (1, 192, 4, 6), (1, 96, 2, 3)]

    Args:
        name: Name of a timm model with ``features_only`` and either strides 4 to 32 or patches of 4, 8, 14 or 16
            pixels. Patches of 14 become 16: timm resamples their weights.
        pretrained: True for the weights of an installed package (extra ``pretrained``) or else of timm's hub, False for
            random ones, or a path to a weights file.
        options: Further arguments of ``timm.create_model``, such as ``drop_path_rate``.

    Attributes:
        channels: Number of channels of each map.
        strides: Stride of each map.
        mean: Mean of the channels R, G, B with which the weights were trained; ImageNet's for random weights.
        std: Their standard deviation.
    """

    def __init__(
        self, name: str = "resnet18", pretrained: bool | str = False, options: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__()
        self.name, self.plan = name, _plan(name, dict(options or {}))
        self.model = _create_timm_model(name, pretrained, **self.plan.arguments)
        self.channels: list[int] = self.model.feature_info.channels()
        self.strides: list[int] = self.model.feature_info.reduction()
        trained = self.model.pretrained_cfg if pretrained else {}
        self.mean: tuple[float, ...] = tuple(trained.get("mean", IMAGENET_MEAN))
        self.std: tuple[float, ...] = tuple(trained.get("std", IMAGENET_STD))
        for module in self.modules():
            if isinstance(module, Conv2dSame):  # of tf_* models; in place, as its parameters stay the same
                module.__class__ = ConstantSameConv2d

    def forward(self, image: Tensor) -> list[Tensor]:
        """Turn a normalized image ``b 3 h w``, in multiples of 32, into maps ``b c_s h/s w/s``.

        Images are padded right and bottom with zeros to a size that the model takes, and maps are cropped.

        Raises:
            ConfigError: The model has a fixed size, and the image is larger.
        """
        size = height, width = image.shape[-2], image.shape[-1]
        if self.plan.multiple == (STRIDE, STRIDE):
            return feature_maps(self.model, image)
        if self.plan.fixed:
            self._check_size(size)
        down, right = (
            (unit if self.plan.fixed else unit * ((length + unit - 1) // unit)) - length
            for unit, length in zip(self.plan.multiple, size, strict=True)
        )
        maps = feature_maps(self.model, F.pad(image, (0, right, 0, down)))
        return [x[..., : height // s, : width // s] for x, s in zip(maps, self.strides, strict=True)]

    def _check_size(self, size: tuple[int, int]) -> None:
        """Check that an image, padded to multiples of 32, fits a model of fixed size."""
        largest = self.plan.multiple
        if any(length > limit for length, limit in zip(size, largest, strict=True)):
            remedy = (
                f"model.backbone_options to {{img_size: [{size[0]}, {size[1]}]}}, or " if self.plan.resizable else ""
            )
            raise ConfigError(
                f"image must be at most {largest[0]}x{largest[1]} pixels for model.backbone {self.name!r}, got "
                f"{size[0]}x{size[1]}. Set {remedy}data.image_size or data.tile_size to at most that size."
            )


class ConstantSameConv2d(Conv2dSame):
    """Convolution with TensorFlow's "same" padding, for maps whose size is a multiple of its stride.

    The padding of timm's layer depends on the size of the map, which takes the ONNX exporter forever.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Convolve ``b c h w`` to ``b d h/s w/s``."""
        padding: list[int] = []
        for kernel, stride, dilation in zip(self.kernel_size, self.stride, self.dilation, strict=True):
            total = max(dilation * (kernel - 1) + 1 - stride, 0)
            padding = [total // 2, total - total // 2, *padding]
        return F.conv2d(F.pad(x, padding), self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


def _plan(name: str, options: Mapping[str, Any]) -> SizePlan:
    """Return how a timm model takes images of any size; found once for a name and options."""
    key, create = f"{name} {sorted(options.items())}", partial(_create_timm_model, name)
    if key not in _plans:
        with torch.random.fork_rng(devices=[]):
            try:
                with torch.device("meta"):
                    _plans[key] = plan_sizes(name, create, options)
            except ConfigError:  # maybe of an operator that meta lacks, as of RegNet under timm 1.0.26
                _plans[key] = plan_sizes(name, create, options)
    return _plans[key]


def _create_timm_model(name: str, pretrained: bool | str = False, **kwargs: Any) -> Any:
    """Create a timm model that returns feature maps."""
    if not timm.is_model(name.split(".")[0].removeprefix("hf-hub:")) and ":" not in name:
        hint = did_you_mean(name, timm.list_models())
        raise ConfigError(f"model.backbone must be a model of timm.list_models(), got {name!r}.{hint}")
    if isinstance(pretrained, str) and not Path(pretrained).is_file():
        raise ConfigError(f"model.pretrained must be true, false or a weights file, got {pretrained!r}: no such file.")
    try:
        if isinstance(pretrained, str):
            return _load_from_file(name, pretrained, **kwargs)
        if pretrained and (weights := load_packaged_weights(name)):
            overlay = {"state_dict": {key: x for key, x in weights.items() if not key.startswith(CLASSIFIER)}}
            model: Any = timm.create_model(
                name, pretrained=True, pretrained_cfg_overlay=overlay, features_only=True, **kwargs
            )
            del model.pretrained_cfg["state_dict"]  # not kept twice
            return model
        return timm.create_model(name, pretrained=pretrained, features_only=True, **kwargs)
    except ConfigError:
        raise
    except Exception as error:  # timm, hub clients and file readers raise many types
        if not pretrained:
            raise ConfigError(
                f"timm cannot build backbone {name!r} with {kwargs}: {error}\n"
                "Check model.backbone_options, or choose another backbone."
            ) from error
        origin = pretrained if isinstance(pretrained, str) else "timm's hub"
        raise ConfigError(
            f"The weights of backbone {name!r} cannot be loaded from {origin}: {type(error).__name__}: {error}\n"
            "Set model.pretrained to a weights file (.safetensors or .pth of this timm model), or to false; or install "
            f"htt-lightning[pretrained], which needs no internet and has weights of {', '.join(PACKAGES)}."
        ) from error


def _load_from_file(name: str, path: str, **kwargs: Any) -> Any:
    """Create a timm model with the weights of a file; a missing or infinite weight raises an error."""
    verify_zip_checksums(path)
    # timm passes over weights that the file lacks. They stay as random as in an untrained model of the same seed.
    with torch.random.fork_rng(devices=[]):
        untrained = dict(timm.create_model(name, features_only=True, **kwargs).named_parameters())
    overlay = {"file": path}
    model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, features_only=True, **kwargs)
    params = model.named_parameters()
    if missing := [key for key, value in params if value.min() != value.max() and value.equal(untrained[key])]:
        raise ValueError(f"the file lacks {len(missing)} weights, such as {missing[0]}")
    check_finite(model.state_dict())
    return model
