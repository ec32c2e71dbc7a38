import pytest
import timm
import torch
from safetensors.torch import save_file

from htt_lightning.errors import ConfigError
from htt_lightning.models import HTTNet
from htt_lightning.models import backbone as backbones
from htt_lightning.models.backbone import Backbone
from tests.tiny import BACKBONE

TINY_VIT = {"depth": 4, "embed_dim": 32, "num_heads": 2}


@pytest.mark.parametrize("name", [BACKBONE, "resnet18", "test_vit", "swin_s3_tiny_224"])
def test_backbone_maps_have_its_channels_and_strides(name):
    backbone = Backbone(name).eval()
    with torch.no_grad():
        maps = backbone(torch.rand(1, 3, 64, 96))
    assert [m.shape[1] for m in maps] == backbone.channels
    assert [(64 // m.shape[2], 96 // m.shape[3]) for m in maps] == [(s, s) for s in backbone.strides]
    assert len(maps) == 4


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_backbone_loads_weights_file(tmp_path, suffix):
    theirs = timm.create_model(BACKBONE).state_dict()
    path = tmp_path / f"weights{suffix}"
    save_file(theirs, path) if suffix == ".safetensors" else torch.save(theirs, path)
    ours = Backbone(BACKBONE, pretrained=str(path)).state_dict()
    assert {key: value for key, value in ours.items() if not value.equal(theirs[key.removeprefix("model.")])} == {}


@pytest.mark.parametrize(("change", "message"), [("missing", r"lacks 1 weights, such as conv1\.0"), ("nan", "finite")])
def test_backbone_weights_must_be_whole(tmp_path, change, message):
    weights, key = timm.create_model(BACKBONE).state_dict(), "conv1.0.weight"
    if change == "missing":
        del weights[key]
    else:
        weights[key][0] = torch.nan
    torch.save(weights, tmp_path / "weights.pth")
    with pytest.raises(ConfigError, match=message):
        Backbone(BACKBONE, pretrained=str(tmp_path / "weights.pth"))


def test_backbone_options_reach_timm():
    assert Backbone("test_vit", options={"drop_path_rate": 0.5}).model.model.blocks[-1].drop_path1.drop_prob == 0.5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "resnet81"}, r"model\.backbone .*'resnet81'.*resnet18"),
        (
            {"name": "vit_base_patch32_224", "options": TINY_VIT},
            r"model\.backbone .*32.*patch_size",
        ),
        ({"name": "levit_128s"}, r"model\.backbone .*strides .*\[16, 32, 64\]"),
        (
            {"name": "beit_base_patch16_224", "options": TINY_VIT | {"img_size": 100}},
            r"'beit_base_.*img_size .* of 32",
        ),
        ({"name": BACKBONE, "options": {"no_such_option": 1}}, r"model\.backbone_options"),
        ({"name": BACKBONE, "pretrained": "missing.pth"}, r"model\.pretrained .*missing\.pth"),
        ({"name": BACKBONE, "pretrained": "broken.pth"}, r"broken\.pth[\s\S]*model\.pretrained"),
    ],
)
def test_backbone_errors_name_the_option(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.pth").write_bytes(b"not weights")
    with pytest.raises(ConfigError, match=message):
        Backbone(**arguments)


def test_backbone_is_tried_on_cpu_where_meta_fails(monkeypatch):
    create = backbones._create_timm_model

    def fail_on_meta(*args, **kwargs):
        if torch.get_default_device().type == "meta":
            raise ConfigError("no such operator on meta")
        return create(*args, **kwargs)

    monkeypatch.setattr(backbones, "_create_timm_model", fail_on_meta)
    monkeypatch.setattr(backbones, "_plans", {})
    assert Backbone(BACKBONE).plan.multiple == (32, 32)


def test_backbone_without_pyramid_strides_is_refused(monkeypatch):
    monkeypatch.setattr("htt_lightning.models.backbone_sizes.PYRAMID_STRIDES", (4, 64))
    monkeypatch.setattr(backbones, "_plans", {})
    with pytest.raises(ConfigError, match=r"strides \(4, 64\).*\[2, 4, 8, 16, 32\]"):
        Backbone("resnet18")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet50", {"channels": [16, 32, 64, 64]}),
        ("convnext_atto", {}),
        ("swin_tiny_patch4_window7_224", {"embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 1, 1]}),
        ("test_vit", {}),
        ("vit_tiny_patch16_224", {}),
    ],
)
@pytest.mark.parametrize("size", [(33, 61), (64, 96)])
def test_network_trains_on_common_backbones(name, options, size):
    net = HTTNet({"semseg": 3, "depth": 4}, token_dim=8, backbone=name, backbone_options=options)
    outputs = net(torch.rand(2, 3, *size))
    stride = net.backbone.strides[0]
    for task, k in (("semseg", 3), ("depth", 4)):
        assert outputs[task].logits.shape == (2, k, -(-size[0] // stride), -(-size[1] // stride))
    sum(output.logits.square().mean() for output in outputs.values()).backward()
    grads = {key: p.grad for key, p in net.backbone.named_parameters()}
    used = [grad for grad in grads.values() if grad is not None]
    assert len(used) > len(grads) - 4  # norms behind the last map may stay unused
    assert all(grad.isfinite().all() for grad in used)
    assert any(grad.any() for grad in used)
