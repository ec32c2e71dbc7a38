import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from htt_lightning import HTTNet
from htt_lightning.models.fusion import Fusion, LazyFusedMap
from htt_lightning.models.heads import ASPP
from htt_lightning.output import resize_bilinear

CHANNELS = (3, 5, 6, 4)


def pyramid(sizes, seed=0, batch=2):
    torch.manual_seed(seed)
    maps = [torch.randn(batch, c, *size).double().requires_grad_() for c, size in zip(CHANNELS, sizes, strict=False)]
    return Fusion(CHANNELS[: len(maps)], 7).double(), maps


def test_fusing_before_resizing_equals_concatenating_first():
    fusion, maps = pyramid([(8, 6), (4, 3)])
    theirs = fusion.conv(torch.cat([maps[0], resize_bilinear(maps[1], (8, 6))], 1))
    torch.testing.assert_close(fusion(maps).materialize(), theirs)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 13), st.integers(1, 13)), min_size=1, max_size=4),
    st.sampled_from([1, 3, 5]),
    st.integers(1, 15),
)
def test_a_convolution_of_what_is_never_made_is_that_of_what_is(sizes, kernel, dilation):
    fusion, maps = pyramid(sizes)
    weight = torch.randn(4, 7, kernel, kernel).double().requires_grad_()
    ours = fusion(maps).conv(weight, dilation)
    padding = dilation * (kernel // 2)
    theirs = torch.nn.functional.conv2d(fusion(maps).materialize(), weight, padding=padding, dilation=dilation)
    torch.testing.assert_close(ours, theirs)
    inputs, given = [*maps, *fusion.parameters(), weight], torch.randn_like(ours)
    of_ours, of_theirs = (torch.autograd.grad((out * given).sum(), inputs) for out in (ours, theirs))
    torch.testing.assert_close(of_ours, of_theirs)
    torch.testing.assert_close(fusion(maps).mean(), fusion(maps).materialize().mean((2, 3), keepdim=True))


def published(height, width, batch=1):
    sizes = [(height // s, width // s) for s in (4, 8, 16, 32)]
    channels = (64, 128, 256, 512)
    maps = [torch.zeros(batch, c, *size) for c, size in zip(channels, sizes, strict=True)]
    return LazyFusedMap(maps, torch.zeros(512, 960), torch.zeros(512))


BRANCHES = [torch.zeros(256, 512, 1, 1), *(torch.zeros(256, 512, 3, 3) for _ in range(3))]


@pytest.mark.parametrize("batch", [1, 4])
def test_it_pays_on_large_maps_whatever_the_batch(batch):
    assert published(288, 384, batch).is_cheaper(BRANCHES, (1, 12, 24, 36))
    assert not published(64, 96, batch).is_cheaper(BRANCHES, (1, 3, 3, 3))


def test_it_is_left_alone_in_mixed_precision_and_on_other_devices():
    with torch.autocast("cpu", torch.bfloat16):
        assert not published(288, 384).is_cheaper(BRANCHES, (1, 12, 24, 36))
    maps, weight, bias = published(288, 384)
    elsewhere = LazyFusedMap([m.to("meta") for m in maps], weight, bias)
    assert not elsewhere.is_cheaper(BRANCHES, (1, 12, 24, 36))


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_a_network_gives_the_same_either_way(gradient_checkpointing, monkeypatch):
    torch.manual_seed(0)
    net = HTTNet(
        {"semseg": 5, "depth": 4}, token_dim=8, dropout=0, gradient_checkpointing=gradient_checkpointing
    ).double()
    image, found, asked = torch.rand(2, 3, 64, 96).double(), [], []
    monkeypatch.setattr(LazyFusedMap, "is_cheaper", lambda *args: asked.append(args) or True)
    for composed in (True, False):
        for module in net.modules():
            if isinstance(module, ASPP):
                module.composed = composed
        net.zero_grad()
        outputs = net(image)
        sum(x.square().mean() for output in outputs.values() for x in output).backward()
        found.append([x.detach() for out in outputs.values() for x in out] + [p.grad for p in net.parameters()])
    assert asked
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-10)
