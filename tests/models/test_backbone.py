import pytest
import timm
import torch
from safetensors.torch import save_file

from htt_lightning.errors import HTTError
from htt_lightning.models import HTTNet
from htt_lightning.models.backbone import Backbone
from tests.tiny import BACKBONE


@pytest.mark.parametrize("name", [BACKBONE, "resnet18", "test_vit", "swin_s3_tiny_224"])
def test_maps_have_the_channels_and_strides_they_claim(name):
    backbone = Backbone(name).eval()
    with torch.no_grad():
        maps = backbone(torch.rand(1, 3, 64, 96))
    assert [m.shape[1] for m in maps] == backbone.channels
    assert [(64 // m.shape[2], 96 // m.shape[3]) for m in maps] == [(s, s) for s in backbone.strides]
    assert len(maps) == 4


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_come_from_a_local_file(tmp_path, suffix):
    theirs = timm.create_model(BACKBONE).state_dict()
    path = tmp_path / f"weights{suffix}"
    save_file(theirs, path) if suffix == ".safetensors" else torch.save(theirs, path)
    ours = Backbone(BACKBONE, pretrained=str(path)).state_dict()
    assert any(torch.equal(ours[f"model.{key}"], value) for key, value in theirs.items() if f"model.{key}" in ours)
    assert torch.equal(ours["model.conv1.0.weight"], theirs["conv1.0.weight"])


def test_options_reach_timm():
    assert Backbone("test_vit", options={"drop_path_rate": 0.5}).model.model.blocks[-1].drop_path1.drop_prob == 0.5


def test_an_unknown_backbone_gets_a_suggestion():
    with pytest.raises(HTTError, match=r"Unknown backbone 'resnet81'.*resnet18"):
        Backbone("resnet81")


def test_a_backbone_without_the_strides_is_refused(monkeypatch):
    monkeypatch.setattr("htt_lightning.models.backbone.PYRAMID_STRIDES", (4, 64))
    with pytest.raises(HTTError, match=r"strides \[2, 4, 8, 16, 32\]"):
        Backbone("resnet18")


def test_unknown_options_are_named():
    with pytest.raises(HTTError, match="cannot build backbone"):
        Backbone(BACKBONE, options={"no_such_option": 1})


def test_a_missing_weights_file_is_named(tmp_path):
    with pytest.raises(HTTError, match=r"model\.pretrained.*missing\.pth"):
        Backbone(BACKBONE, pretrained=str(tmp_path / "missing.pth"))


def test_a_damaged_weights_file_is_named(tmp_path):
    path = tmp_path / "broken.pth"
    path.write_bytes(b"not weights")
    with pytest.raises(HTTError, match=r"broken\.pth[\s\S]*model\.pretrained"):
        Backbone(BACKBONE, pretrained=str(path))


def test_an_unreachable_download_says_what_to_do(monkeypatch):
    def unreachable(*args, **kwargs):
        raise ConnectionError("no route to host")

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", unreachable)
    with pytest.raises(HTTError, match=r"timm's hub[\s\S]*model\.pretrained to a local weights file"):
        Backbone("resnet18", pretrained=True)


def test_patches_that_do_not_fit_are_refused():
    with pytest.raises(HTTError, match="14 pixels"):
        Backbone("vit_small_patch14_dinov2")


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
def test_networks_train_on_any_common_backbone_at_any_size(name, options, size):
    net = HTTNet({"semseg": 3, "depth": 4}, token_dim=8, backbone=name, backbone_options=options)
    outputs = net(torch.rand(2, 3, *size))
    stride = net.backbone.strides[0]
    for task, k in (("semseg", 3), ("depth", 4)):
        assert outputs[task].logits.shape == (2, k, -(-size[0] // stride), -(-size[1] // stride))
    sum(output.logits.square().mean() for output in outputs.values()).backward()
    grads = {key: p.grad for key, p in net.backbone.named_parameters()}
    used = [grad for grad in grads.values() if grad is not None]
    assert len(used) > len(grads) - 4  # norms behind the last map may be left over
    assert all(grad.isfinite().all() for grad in used)
    assert any(grad.any() for grad in used)
