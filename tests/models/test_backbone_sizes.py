"""One small model of each family of timm, at sizes that its own weights were not trained with."""

import pytest
import timm
import torch
import torch.nn.functional as F

from htt_lightning.errors import ConfigError
from htt_lightning.models import MultiTaskNet
from htt_lightning.models.backbone import Backbone

SWIN = {"embed_dim": 16, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 1, 1]}
VIT = {"depth": 4, "embed_dim": 32, "num_heads": 2}
FORMER = {"depths": [1, 1, 1, 1], "embed_dims": [8, 8, 8, 8]}
HIERA = {"embed_dim": 8, "stages": [1, 1, 1, 1]}
ANY = {
    "resnet10t": {"channels": [8, 8, 8, 8]},
    "test_efficientnet": {},
    "convnext_atto": {"depths": [1, 1, 1, 1], "dims": [8, 8, 8, 8]},
    "regnetx_002": {},
    "pvt_v2_b0": {"depths": [1, 1, 1, 1]},
    "swin_tiny_patch4_window7_224": SWIN,
    "swinv2_tiny_window8_256": SWIN,
    "vit_tiny_patch16_224": VIT,
    "vit_small_patch14_dinov2": VIT,
    "vit_small_patch16_dinov3": VIT,
    "eva02_tiny_patch14_224": VIT,
}
"""Models of any size, and options that make them small."""
MAXVIT = {"depths": [1, 1, 1, 1], "embed_dim": [32, 32, 32, 32], "stem_width": 32}
MULTIPLES = {"mobilevitv2_050": ({}, 64), "maxvit_tiny_tf_224": (MAXVIT, 224)}
"""Models that take multiples of a size."""
FIXED = {
    "efficientformer_l1": (FORMER, 224),
    "efficientformerv2_s0": (FORMER, 224),
    "hiera_tiny_224": (HIERA, 224),
    "beit_base_patch16_224": (VIT, 224),
    "coatnet_pico_rw_224": (MAXVIT, 224),
    "vit_relpos_small_patch16_224": (VIT, 224),
}
"""Models of one size."""


def pad(image, height, width):
    return F.pad(image, (0, width - image.shape[-1], 0, height - image.shape[-2]))


def cropped(maps, strides, height, width):
    return [x[..., : height // s, : width // s] for x, s in zip(maps, strides, strict=True)]


@pytest.mark.parametrize("name", ANY)
@torch.no_grad()
def test_backbone_takes_images_of_any_size(name):
    backbone = Backbone(name, options=ANY[name]).eval()
    assert (backbone.plan.multiple, backbone.plan.fixed) == ((32, 32), False)
    for height, width in ((96, 128), (32, 64)):
        maps = backbone(torch.rand(1, 3, height, width))
        sizes = [(c, height // s, width // s) for c, s in zip(backbone.channels, backbone.strides, strict=True)]
        assert [tuple(x.shape[1:]) for x in maps] == sizes
        assert all(x.std() > 0 for x in maps)


@pytest.mark.parametrize("name", MULTIPLES)
@torch.no_grad()
def test_backbone_of_windows_sees_image_padded_to_multiple(name):
    options, multiple = MULTIPLES[name]
    backbone, image = Backbone(name, options=options).eval(), torch.rand(2, 3, 96, 192)
    assert (backbone.plan.multiple, backbone.plan.fixed) == ((multiple, multiple), False)
    whole = backbone.model(pad(image, -(-96 // multiple) * multiple, -(-192 // multiple) * multiple))
    torch.testing.assert_close(backbone(image), cropped(whole, backbone.strides, 96, 192))


@pytest.mark.parametrize("name", FIXED)
@torch.no_grad()
def test_backbone_of_one_size_pads_or_names_sizes(name):
    options, size = FIXED[name]
    backbone, image = Backbone(name, options=options).eval(), torch.rand(2, 3, 96, 128)
    whole = backbone.model(pad(image, size, size))
    torch.testing.assert_close(backbone(image), cropped(whole, backbone.strides, 96, 128))
    with pytest.raises(ConfigError, match=rf"at most {size}x{size} .*'{name}', got 288x384") as error:
        backbone(torch.rand(1, 3, 288, 384))
    if name == "efficientformer_l1":  # its attention knows 7x7 positions
        assert "img_size" not in str(error.value)
    else:
        assert "img_size: [288, 384]" in str(error.value)
        Backbone(name, options=options | {"img_size": [288, 384]}).eval()(torch.rand(1, 3, 288, 384))


@pytest.mark.parametrize("name", ["efficientformer_l1", "hiera_tiny_224", "maxvit_tiny_tf_224"])
def test_network_learns_through_a_padded_backbone(name):
    options, _ = (MULTIPLES | FIXED)[name]
    net = MultiTaskNet({"depth": 4}, token_dim=8, backbone=name, backbone_options=options)
    logits = net(torch.rand(2, 3, 70, 100))["depth"].logits
    assert logits.shape == (2, 4, 18, 25)
    logits.square().mean().backward()
    assert all(p.grad.isfinite().all() for p in net.parameters() if p.grad is not None)
    assert next(net.backbone.parameters()).grad.abs().max() > 0


@torch.no_grad()
def test_patches_of_14_become_16_with_the_same_tokens(tmp_path):
    """An image enlarged from patches of 14 to 16 pixels gives the tokens of the stored weights."""
    theirs = timm.create_model("vit_small_patch14_dinov2", **VIT)
    torch.save(theirs.state_dict(), tmp_path / "weights.pth")
    backbone = Backbone("vit_small_patch14_dinov2", str(tmp_path / "weights.pth"), VIT)
    patch = torch.rand(1, 3, 14, 14)
    enlarged = F.interpolate(patch, (16, 16), mode="bicubic", antialias=True)
    ours = backbone.model.model
    torch.testing.assert_close(ours.patch_embed.proj(enlarged), theirs.patch_embed.proj(patch), rtol=0, atol=1e-4)
    assert ours.pos_embed.equal(theirs.pos_embed)
    assert backbone.strides == [16] * 4
