"""The CPU kernels compute what the plain forms do, forward and backward."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import conv2d

from htt_lightning import HTTNet
from htt_lightning.models import cpu_kernels
from htt_lightning.models.cpu_kernels import LazyFusedMap, dilated_conv2d
from htt_lightning.models.tokens import Fusion
from htt_lightning.output import resize_bilinear
from tests.tiny import BACKBONE

CHANNELS = (3, 5, 6, 4)


@pytest.fixture
def switch():
    yield cpu_kernels.set_enabled
    cpu_kernels.set_enabled(None)


def pyramid(sizes):
    torch.manual_seed(0)
    maps = [torch.randn(2, c, *size).double().requires_grad_() for c, size in zip(CHANNELS, sizes, strict=False)]
    return Fusion(CHANNELS[: len(maps)], 7).double(), maps


def test_fusion_equals_concatenation():
    fusion, maps = pyramid([(8, 6), (4, 3)])
    theirs = fusion.conv(torch.cat([maps[0], resize_bilinear(maps[1], (8, 6))], 1))
    torch.testing.assert_close(fusion(maps).materialize(), theirs)


@settings(max_examples=30)
@given(
    st.lists(st.tuples(st.integers(1, 13), st.integers(1, 13)), min_size=1, max_size=4),
    st.sampled_from([1, 3, 5]),
    st.integers(1, 15),
)
def test_composed_convolution_equals_plain_one(sizes, kernel, dilation):
    fusion, maps = pyramid(sizes)
    weight = torch.randn(4, 7, kernel, kernel).double().requires_grad_()
    ours = fusion(maps).conv(weight, dilation)
    dense = fusion(maps).materialize()
    theirs = conv2d(dense, weight, padding=dilation * (kernel // 2), dilation=dilation)
    torch.testing.assert_close(ours, theirs)
    inputs, direction = [*maps, *fusion.parameters(), weight], torch.randn_like(ours)
    gradients = (torch.autograd.grad((out * direction).sum(), inputs) for out in (ours, theirs))
    torch.testing.assert_close(*gradients)
    torch.testing.assert_close(fusion(maps).mean(), dense.mean((2, 3), keepdim=True))


def published(height, width, batch=1):
    sizes = [(height // s, width // s) for s in (4, 8, 16, 32)]
    maps = [torch.zeros(batch, c, *size) for c, size in zip((64, 128, 256, 512), sizes, strict=True)]
    return LazyFusedMap(maps, torch.zeros(512, 960), torch.zeros(512))


BRANCHES = [torch.zeros(256, 512, 1, 1), *(torch.zeros(256, 512, 3, 3) for _ in range(3))]


@pytest.mark.parametrize("batch", [1, 4])
def test_composed_convolution_pays_on_large_maps(batch):
    assert published(288, 384, batch).is_cheaper(BRANCHES, (1, 12, 24, 36))
    assert not published(64, 96, batch).is_cheaper(BRANCHES, (1, 3, 3, 3))
    with torch.autocast("cpu", torch.bfloat16):
        assert not published(288, 384).is_cheaper(BRANCHES, (1, 12, 24, 36))


def test_switch_decides_by_device_or_by_user(switch):
    on_cpu, elsewhere = torch.zeros(1), torch.zeros(1, device="meta")
    assert (cpu_kernels.enabled(on_cpu), cpu_kernels.enabled(elsewhere)) == (True, False)
    for value in (True, False):
        switch(value)
        assert cpu_kernels.enabled(on_cpu) is cpu_kernels.enabled(elsewhere) is value


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_network_is_equal_with_and_without_kernels(gradient_checkpointing, switch, monkeypatch):
    torch.manual_seed(0)
    options = {"token_dim": 8, "dropout": 0, "gradient_checkpointing": gradient_checkpointing}
    net = HTTNet({"semseg": 5, "depth": 4}, **options).double()
    image, found, calls = torch.rand(2, 3, 64, 96).double(), [], []
    monkeypatch.setattr(LazyFusedMap, "is_cheaper", lambda *args: calls.append(args) or True)
    for value in (None, False):
        switch(value)
        net.zero_grad()
        outputs = net(image)
        sum(x.square().mean() for output in outputs.values() for x in output).backward()
        found.append([x.detach() for out in outputs.values() for x in out] + [p.grad for p in net.parameters()])
        assert bool(calls) is (value is None)
        calls.clear()
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize(("size", "dilation"), [((12, 16), 4), ((12, 16), 6), ((9, 7), 8), ((5, 30), 12), ((3, 3), 3)])
def test_dilated_convolution_has_plain_gradients(size, dilation):
    torch.manual_seed(0)
    x, weight = torch.randn(2, 5, *size).double().requires_grad_(), torch.randn(4, 5, 3, 3).double().requires_grad_()
    direction = torch.randn(2, 4, *size).double()
    outputs = dilated_conv2d(x, weight, dilation), conv2d(x, weight, padding=dilation, dilation=dilation)
    found = [(out, torch.autograd.grad((out * direction).sum(), (x, weight))) for out in outputs]
    torch.testing.assert_close(*found)


def test_dilated_convolution_skips_taps_if_many_are_outside():
    weight = torch.ones(3, 2, 3, 3, requires_grad=True)
    names = [type(dilated_conv2d(torch.ones(1, 2, n, n), weight, 4).grad_fn).__name__ for n in (9, 40)]
    assert ["_DilatedConv" in name for name in names] == [True, False]


def test_dilated_convolution_in_bfloat16_has_float32_gradients():
    x, weight = torch.randn(1, 2, 6, 6, requires_grad=True), torch.randn(3, 2, 3, 3, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        half = torch.autograd.grad(dilated_conv2d(x, weight, 4).float().sum(), (x, weight))
    full = torch.autograd.grad(dilated_conv2d(x, weight, 4).sum(), (x, weight))
    assert [gradient.dtype for gradient in half] == [torch.float32] * 2
    torch.testing.assert_close(half, full, rtol=0.05, atol=0.05)


def test_large_maps_are_recomputed_with_equal_results(monkeypatch):
    image, results, kept = torch.rand(2, 3, 64, 64), [], []
    for numel in (0, 2**20):
        monkeypatch.setattr(cpu_kernels, "MIN_CHECKPOINT_NUMEL", numel)
        torch.manual_seed(0)
        net, sizes = HTTNet({"semseg": 3, "depth": 5}, token_dim=32, backbone=BACKBONE), []

        def keep(x, to=sizes):
            to.append(0 if isinstance(x, nn.Parameter) else x.numel())
            return x

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            loss = sum(x.square().sum() for output in net(image).values() for x in output)
        loss.backward()
        results.append((net.state_dict(), {k: x.grad for k, x in net.named_parameters() if x.grad is not None}))
        kept.append(sum(sizes))
    torch.testing.assert_close(*results, rtol=0, atol=0)
    assert kept[0] < 0.9 * kept[1]
