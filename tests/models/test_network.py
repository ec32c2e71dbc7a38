import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from htt_lightning.errors import ConfigError
from htt_lightning.models import HTTNet, MultiTaskNet
from htt_lightning.models.tokens import ExchangingTaskTokens, MultiScaleTaskTokens, TaskPromptBlock
from htt_lightning.output import TaskOutput
from htt_lightning.tasks import Depth, Edges, Normals, SemSeg
from tests.run_if import RunIf
from tests.tiny import BACKBONE

TASKS = [SemSeg(classes=("a", "b", "c")), Depth(num_bins=5), Edges(), Normals(num_bins=6)]
TOKENS = {task.name: task.num_tokens for task in TASKS}
TINY = {"token_dim": 8, "backbone": BACKBONE}
RELEASED = TINY | {"tokens": "released"}
KINDS = {
    "htt": lambda: HTTNet(TOKENS, **TINY),
    "transformer": lambda: HTTNet(TOKENS, token_dim=8, backbone="test_vit"),
    "token_stride": lambda: HTTNet(TOKENS, **TINY, token_stride=2),
    "released": lambda: HTTNet(TOKENS, **RELEASED),
    "released_transformer": lambda: HTTNet(TOKENS, token_dim=8, backbone="test_vit", tokens="released"),
    "released_token_stride": lambda: HTTNet(TOKENS, **RELEASED, token_stride=2),
    "independent": lambda: HTTNet(TOKENS, **TINY, use_global_tokens=False),
    "multitask": lambda: MultiTaskNet(TOKENS, **TINY),
    "single_task": lambda: MultiTaskNet({"depth": 5}, **TINY),
    "one_task_htt": lambda: HTTNet({"depth": 5}, **TINY),
}
NETWORKS = pytest.mark.parametrize("cls", [HTTNet, MultiTaskNet])


@pytest.fixture(params=KINDS)
def net(request):
    torch.manual_seed(0)
    net = KINDS[request.param]()
    # Statistics as after some training: fresh ones would hide a dependence on the batch.
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return net


def flat(outputs):
    return [x for output in outputs.values() for x in output]


def test_outputs_are_at_feature_resolution(net):
    outputs = net.eval()(torch.rand(2, 3, 64, 96))
    stride = net.backbone.strides[0]
    for task, output in outputs.items():
        shapes = [(2, channels, 64 // stride, 96 // stride) for channels in (TOKENS[task], 8, 1)]
        assert [x.shape for x in output] == shapes
        assert ((output.confidence > 0) & (output.confidence <= 1)).all()


def test_network_computes_only_selected_images(net):
    net.eval()
    images, indices = torch.rand(3, 3, 32, 64), {task: torch.tensor([2, 0]) for task in net.tasks}
    indices[net.tasks[0]] = torch.tensor([], dtype=torch.long)
    sizes = []
    for layer in [head.classify for head in net.heads.values()]:
        layer.register_forward_hook(lambda layer, inputs, output: sizes.append(len(output)))
    with torch.no_grad():
        whole, some = net(images), net(images, indices)
    assert list(some) == net.tasks[1:]
    assert sizes == [3] * len(net.tasks) + [2] * len(some)
    for task, output in some.items():
        expected = TaskOutput(*(x[indices[task]] for x in whole[task]))
        torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)


def test_prediction_is_independent_of_the_batch(net):
    net.eval()
    images = torch.rand(3, 3, 32, 64)
    with torch.no_grad():
        together = flat(net(images))
        alone = [flat(net(image[None])) for image in images]
        shuffled = flat(net(images[[2, 0, 1]]))
    for k, x in enumerate(together):
        torch.testing.assert_close(x, torch.cat([a[k] for a in alone]), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(x[[2, 0, 1]], shuffled[k], rtol=1e-5, atol=1e-5)


@settings(max_examples=8)
@given(height=st.integers(1, 70), width=st.integers(1, 70))
def test_network_accepts_any_image_size(height, width):
    net = KINDS["htt"]().eval()
    with torch.no_grad():
        outputs = net(torch.rand(1, 3, height, width))
    for task in TASKS:
        assert outputs[task.name].logits.shape[-2:] == (-(-height // 4), -(-width // 4))
        assert task.decode(outputs[task.name], (height, width)).shape[-2:] == (height, width)


def test_padding_is_mean_color_right_and_bottom():
    net = KINDS["htt"]().eval()
    image = torch.rand(1, 3, 32, 40)
    padded = net.mean.expand(1, 3, 64, 64).clone()
    padded[..., :32, :40] = image
    with torch.no_grad():
        small, large = net(image), net(padded[..., :32, :64])
    for ours, theirs in zip(flat(small), flat(large), strict=True):
        torch.testing.assert_close(ours, theirs[..., :8, :10])


@pytest.mark.parametrize("images", [1, 2])
def test_training_reaches_every_parameter(net, images):
    outputs = net.train()(torch.rand(images, 3, 64, 64))
    assert all(x.isfinite().all() for x in flat(outputs))
    sum(output.logits.square().sum() for output in outputs.values()).backward()
    assert [name for name, p in net.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("kind", ["htt", "released", "released_transformer"])
def test_global_tokens_train_and_are_saved(kind):
    net = KINDS[kind]()
    tokens = net.global_tokens.tokens
    before = tokens.detach().clone()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    sum(output.logits.square().mean() for output in net(torch.rand(2, 3, 64, 64)).values()).backward()
    assert (tokens.grad.abs().sum(1) > 0).all()
    optimizer.step()
    assert not torch.equal(before, tokens)
    assert "global_tokens.tokens" in net.state_dict()


def test_mixing_gates_equals_mixing_task_features():
    torch.manual_seed(0)
    prompt = TaskPromptBlock(6, 3).double().eval()
    x, tokens = torch.randn(2, 6, 5, 4).double(), torch.randn(3, 6).double()
    ours, updated = prompt(x, tokens, [None] * 3)
    affinity = prompt.task_affinity(tokens)
    gates = torch.sigmoid(torch.einsum("bchw,tc->btchw", prompt.reduce(x), tokens).sum(2))
    features = x[:, None] * gates[:, :, None]
    for t in range(3):
        mixed = sum(affinity[t, u] * features[:, u] for u in range(3))
        torch.testing.assert_close(ours[t], prompt.refine[t](mixed))
    torch.testing.assert_close(updated, affinity @ tokens)


def test_affinity_rows_sum_to_one_at_every_scale():
    tokens = MultiScaleTaskTokens([4, 6], num_tasks=3, dim=5)
    assert tokens.task_affinity().shape == (2, 3, 3)
    torch.testing.assert_close(tokens.task_affinity().sum(2), torch.ones(2, 3))
    assert KINDS["released_transformer"]().task_affinity().shape == (1, 4, 4)
    assert KINDS["htt"]().task_affinity().shape == (4, 4, 4)


def exchanging(num_tasks=3, dim=8):
    torch.manual_seed(0)
    tokens = ExchangingTaskTokens([4, 6], num_tasks, dim).double()
    for layer in tokens.restore:
        nn.init.normal_(layer.weight)
    return tokens, [torch.randn(2, dim, 3, 5).double() for _ in range(num_tasks)]


def test_exchange_is_attention_over_tasks_at_every_pixel():
    tokens, features = exchanging()
    values = torch.stack([value(x) for value, x in zip(tokens.value, features, strict=True)])
    for task, ours in enumerate(tokens.exchange(features, [None] * 3)):
        groups = []
        for affinity, columns in zip(tokens.task_affinity(), torch.arange(8).chunk(4), strict=True):
            groups.append(sum(affinity[task, u] * values[u][:, columns] for u in range(3)))
        expected = features[task] + tokens.restore[task](torch.cat(groups, 1))
        torch.testing.assert_close(ours, expected)


def test_exchange_lets_labels_of_one_task_train_the_others():
    tokens, features = exchanging()
    features = [x.requires_grad_() for x in features]
    tokens.exchange(features, [None] * 3)[0].square().sum().backward()
    assert all((x.grad.abs().sum((0, 2, 3)) > 0).all() for x in features)


def test_training_starts_from_the_network_without_exchange():
    net = KINDS["htt"]().eval()
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        before = flat(net(image))
        net.global_tokens.exchange = lambda features, indices: list(features)
        torch.testing.assert_close(flat(net(image)), before, rtol=0, atol=0)


OPTIONS = [
    ("use_global_tokens", "global_tokens.value"),
    ("use_token_attention", "attention"),
    ("use_fine_tokens", "mix"),
]


@pytest.mark.parametrize(
    ("form", "option", "gone"),
    [
        *(("exchange", *pair) for pair in OPTIONS),
        ("released", "use_global_tokens", "scales"),
        ("released", *OPTIONS[2]),
    ],
)
def test_tokens_can_be_left_out(form, option, gone):
    given = TINY | {"tokens": form}
    whole, net = (HTTNet({"semseg": 5, "depth": 4}, **given, **options) for options in ({}, {option: False}))
    assert any(gone in name for name, _ in whole.named_parameters())
    assert not any(gone in name for name, _ in net.named_parameters())
    assert (net.task_affinity() is None) == (option == "use_global_tokens")
    outputs = net(torch.rand(2, 3, 64, 64))
    sum(x.square().mean() for x in flat(outputs)).backward()
    assert all(p.grad is not None for p in net.parameters())
    shapes = {task: tuple(output.logits.shape) for task, output in outputs.items()}
    assert shapes == {"semseg": (2, 5, 16, 16), "depth": (2, 4, 16, 16)}


def test_published_network_has_42_million_parameters():
    net = HTTNet({"semseg": 13, "depth": 30, "normals": 40}, tokens="released")
    assert sum(p.numel() for p in net.parameters()) == 42_055_694


def test_layers_start_from_xavier_normal():
    net = HTTNet({"semseg": 13}, token_dim=64, backbone=BACKBONE, tokens="released")
    weight = net.heads["semseg"].conv.weight
    assert weight.std().item() == pytest.approx((2 / (64 * 9 + 64 * 9)) ** 0.5, rel=0.05)
    assert net.heads["semseg"].classify.bias.abs().sum() == 0
    assert HTTNet({"a": 2}, backbone=BACKBONE).global_tokens.tokens.std().item() == pytest.approx(1, abs=0.3)


def test_vision_transformer_returns_four_evenly_spaced_depths():
    net = HTTNet({"depth": 5}, token_dim=8, backbone="vit_tiny_patch16_224")
    assert net.backbone.model.feature_info.out_indices == (2, 5, 8, 11)
    assert net.eval()(torch.rand(1, 3, 48, 80))["depth"].logits.shape == (1, 5, 3, 5)


def test_backbone_can_be_any_module():
    class Mine(nn.Module):
        channels, strides = [4, 8], [4, 8]

        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 4, 4), nn.Conv2d(4, 8, 2, 2)

        def forward(self, image):
            x = self.a(image)
            return [x, self.b(x)]

    assert HTTNet(TOKENS, token_dim=8, backbone=Mine())(torch.rand(2, 3, 32, 32))["depth"].logits.shape == (2, 5, 8, 8)


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 1, 32, 32), (1, 32, 32, 3)])
def test_image_of_another_shape_is_refused(shape):
    with pytest.raises(ConfigError, match="image must be b 3 h w"):
        KINDS["htt"]()(torch.rand(shape))


@NETWORKS
def test_dilations_reach_aspp(cls):
    for options, expected in (({}, {1, 12, 24, 36}), ({"dilations": (2, 4)}, {1, 2, 4})):
        net = cls({"depth": 5}, **TINY, **options)
        convs = [layer for layer in net.heads["depth"].aspp.modules() if isinstance(layer, nn.Conv2d)]
        assert {conv.dilation[0] for conv in convs} == expected
        assert net(torch.rand(2, 3, 32, 32))["depth"].logits.shape == (2, 5, 8, 8)


@NETWORKS
@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("token_dim", value) for value in (0, -3.5, 10**30, None, "8", True)),
        *(("dilations", value) for value in ((0,), [[1]], (float("nan"),), (10**30,), None, "12")),
        *(("dropout", value) for value in (-1, 1.5, float("nan"), None, "half")),
        ("backbone", None),
        ("num_tokens", {}),
    ],
)
def test_network_errors_name_the_option(cls, key, value):
    with pytest.raises(ConfigError, match=key):
        cls(**({"num_tokens": {"depth": 4}} | TINY | {key: value}))


def test_unknown_form_of_tokens_is_refused():
    with pytest.raises(ConfigError, match=r"model\.tokens must be one of exchange, released, got 'gated'"):
        HTTNet(TOKENS, **TINY, tokens="gated")


@pytest.mark.parametrize("kind", ["htt", "released", "multitask"])
def test_gradient_checkpointing_keeps_less_with_equal_results(kind):
    image, states, gradients, kept = torch.rand(2, 3, 64, 64), [], [], []
    for recompute in (False, True):
        torch.manual_seed(0)
        net, sizes = KINDS[kind](), []
        net.gradient_checkpointing = recompute

        def keep(x, to=sizes):
            to.append(0 if isinstance(x, nn.Parameter) else x.numel())
            return x

        for _ in range(2):
            torch.manual_seed(1)  # for dropout
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
                loss = sum(x.square().sum() for x in flat(net(image)))
            loss.backward()
        states.append(net.state_dict())
        gradients.append({name: value.grad for name, value in net.named_parameters() if value.grad is not None})
        kept.append(sum(sizes))
    torch.testing.assert_close(*states)
    torch.testing.assert_close(*gradients)
    assert kept[1] < kept[0]


@RunIf(min_gpus=1)
@pytest.mark.parametrize("dtype", [None, torch.float16, torch.bfloat16])
def test_network_on_gpu_equals_cpu(net, dtype):
    image, net = torch.rand(2, 3, 64, 96), net.eval()
    with torch.no_grad():
        expected = flat(net(image))
    net.cuda()
    with torch.autocast("cuda", dtype or torch.float16, enabled=dtype is not None):
        outputs = net(image.cuda())
    tolerance = 0.1 if dtype else 1e-3
    for ours, theirs in zip(flat(outputs), expected, strict=True):
        assert (ours.float().cpu() - theirs).abs().max() <= tolerance * theirs.abs().max()
    sum(x.float().square().mean() for x in flat(outputs)).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())
