from pathlib import Path

import pytest
import skimage.data
import timm
import torch
from timm.data import ImageNetInfo
from torch import nn

from htt_lightning.errors import ConfigError
from htt_lightning.models import HTTNet, pretrained
from htt_lightning.models.backbone import Backbone
from htt_lightning.models.pretrained import PACKAGES, load_packaged_weights, rename_tensors
from htt_lightning.output import resize_bilinear

NAME = "tf_efficientnet_lite0"


@pytest.fixture(scope="module")
def weights():
    return load_packaged_weights(NAME)


@pytest.mark.parametrize("name", PACKAGES)
def test_packaged_weights_classify_a_cat(name):
    model = timm.create_model(name).eval()
    model.load_state_dict(load_packaged_weights(name))
    image = torch.from_numpy(skimage.data.chelsea()[:, 80:380]).permute(2, 0, 1)[None] / 255
    with torch.no_grad():
        best = model((resize_bilinear(image, (224, 224)) - 0.5) / 0.5)[0].topk(3).indices
    info = ImageNetInfo()
    found = {info.index_to_description(int(index)).split(",")[0] for index in best}
    assert found == {"tabby", "tiger cat", "Egyptian cat"}


def test_backbone_takes_weights_of_the_package(weights):
    backbone = Backbone(f"{NAME}.in1k", pretrained=True)
    own = backbone.model.state_dict()
    assert {key: value for key, value in own.items() if not value.equal(weights[key])} == {}
    assert "state_dict" not in backbone.model.pretrained_cfg


class Installed:
    """Package with another version or file."""

    def __init__(self, root, version="0.1.0"):
        self.root, self.version = root, version

    def locate_file(self, path):
        return Path(self.root, path)


@pytest.mark.parametrize(
    ("version", "content", "message"),
    [
        ("0.2.0", b"", r"version 0\.1\.0, got 0\.2\.0\. Run pip install"),
        ("0.1.0", None, r"no such file\. Run pip install"),
        ("0.1.0", b"damaged", r"SHA-256 that begins with 57934424, got [0-9a-f]{8}\. Run pip install"),
    ],
)
def test_changed_package_is_refused(tmp_path, monkeypatch, version, content, message):
    monkeypatch.setattr(pretrained, "distribution", lambda name: Installed(tmp_path, version))
    if content is not None:
        file = tmp_path / PACKAGES[NAME].file
        file.parent.mkdir(parents=True)
        file.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        Backbone(NAME, pretrained=True)


def test_tensors_of_another_backbone_are_refused():
    stored = {"_conv_stem.weight": torch.zeros(32, 3, 3, 3)}
    with pytest.raises(ValueError, match=f"not those of {NAME}"):
        rename_tensors(NAME, stored)


def test_package_with_other_tensors_is_named(monkeypatch):
    monkeypatch.setattr(pretrained, "safe_torch_load", lambda path: {"_conv_stem.bias": torch.zeros(32)})
    with pytest.raises(ConfigError, match=rf"\.pth must hold the weights of {NAME}, got its 1 tensors[\s\S]*Run pip"):
        Backbone(NAME, pretrained=True)


def test_error_without_package_and_hub_names_both(monkeypatch):
    def missing(name):
        raise pretrained.PackageNotFoundError(name)

    def unreachable(*args, **kwargs):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(pretrained, "distribution", missing)
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", unreachable)
    with pytest.raises(
        ConfigError, match=r"timm's hub: ConnectionError[\s\S]*model\.pretrained[\s\S]*htt-lightning\[pretrained\]"
    ):
        Backbone(NAME, pretrained=True)


HALF, IMAGENET = ((0.5,) * 3, (0.5,) * 3), ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (NAME, HALF),
        ("tf_efficientnet_b0", IMAGENET),
        ("vit_tiny_patch16_224", HALF),
        ("deit_tiny_patch16_224", IMAGENET),
        ("mobilevit_xxs", ((0.0,) * 3, (1.0,) * 3)),
        ("resnet18", IMAGENET),
        ("convnext_atto", IMAGENET),
        ("swin_tiny_patch4_window7_224", IMAGENET),
        ("regnetx_002", IMAGENET),
        ("mobilenetv3_small_050", IMAGENET),
        ("mobilenetv2_050", IMAGENET),
    ],
)
def test_normalization_is_that_of_the_weights(name, expected, monkeypatch):
    monkeypatch.setattr("timm.models._builder.load_pretrained", lambda *args, **kwargs: None)  # none is downloaded
    monkeypatch.setattr("htt_lightning.models.backbone.load_packaged_weights", lambda name: None)
    backbone = Backbone(name, pretrained=True)
    assert (backbone.mean, backbone.std) == expected
    random = Backbone(name)
    assert (random.mean, random.std) == IMAGENET


def test_network_stores_normalization_of_its_weights(tmp_path):
    net = HTTNet({"depth": 3}, token_dim=8, backbone=NAME, pretrained=True)
    assert net.mean.flatten().tolist() == net.std.flatten().tolist() == [0.5] * 3
    net.save_pretrained(tmp_path)
    assert HTTNet.from_pretrained(tmp_path).mean.flatten().tolist() == [0.5] * 3
    own = HTTNet({"depth": 3}, token_dim=8, backbone=NAME, pretrained=True, mean=[0.1, 0.2, 0.3])
    assert own.mean.flatten().tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert own.std.flatten().tolist() == [0.5] * 3


@pytest.mark.parametrize(
    ("key", "values"), [("mean", [0.5, 0.5]), ("mean", [0.5, 0.5, float("nan")]), ("std", [1.0, 0.0, 1.0])]
)
def test_normalization_must_be_three_numbers(key, values):
    with pytest.raises(ConfigError, match=rf"model\.{key} must be three numbers"):
        HTTNet({"depth": 3}, token_dim=8, backbone="test_resnet", **{key: values})


def test_constant_padding_equals_that_of_timm():
    backbone = Backbone("tf_mixnet_s").eval()  # kernels of 3 to 9 pixels
    reference = timm.create_model("tf_mixnet_s", features_only=True, out_indices=(1, 2, 3, 4)).eval()
    reference.load_state_dict(backbone.model.state_dict())
    assert any(isinstance(module, nn.Conv2d) and "Constant" in type(module).__name__ for module in backbone.modules())
    image = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(backbone(image), reference(image), rtol=0, atol=0)
