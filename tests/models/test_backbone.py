import pytest
import timm
import torch
from safetensors.torch import save_file

from htt_lightning.errors import HTTError
from htt_lightning.models.backbone import Backbone
from tests.tiny import BACKBONE


@pytest.mark.parametrize("name", [BACKBONE, "resnet18", "test_vit"])
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
    monkeypatch.setattr("htt_lightning.models.backbone.PYRAMID", (4, 64))
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


@pytest.mark.parametrize(
    ("name", "message"), [("swin_tiny_patch4_window7_224", "channels last"), ("vit_small_patch14_dinov2", "14 pixels")]
)
def test_transformers_that_do_not_fit_are_refused(name, message):
    with pytest.raises(HTTError, match=message):
        Backbone(name)
