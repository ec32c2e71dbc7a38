import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from htt_lightning.errors import HTTError
from htt_lightning.models import HTTNet, MultiTaskNet
from htt_lightning.models.tokens import MultiScaleTaskTokens, TaskPromptBlock
from htt_lightning.output import TaskOutput
from htt_lightning.tasks import Depth, Edges, Normals, SemSeg
from tests.tiny import BACKBONE

TASKS = [SemSeg(classes=("a", "b", "c")), Depth(num_bins=5), Edges(), Normals(num_bins=6)]
TOKENS = {task.name: task.num_tokens for task in TASKS}
KINDS = {
    "htt": lambda: HTTNet(TOKENS, token_dim=8, backbone=BACKBONE),
    "single_scale": lambda: HTTNet(TOKENS, token_dim=8, backbone="test_vit"),
    "reduced": lambda: HTTNet(TOKENS, token_dim=8, backbone=BACKBONE, token_stride=2),
    "separate": lambda: HTTNet(TOKENS, token_dim=8, backbone=BACKBONE, use_global_tokens=False),
    "multitask": lambda: MultiTaskNet(TOKENS, token_dim=8, backbone=BACKBONE),
    "single_task": lambda: MultiTaskNet({"depth": 5}, token_dim=8, backbone=BACKBONE),
    "one_task_htt": lambda: HTTNet({"depth": 5}, token_dim=8, backbone=BACKBONE),
}


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


def test_every_task_gets_logits_feature_and_confidence_at_feature_resolution(net):
    outputs = net.eval()(torch.rand(2, 3, 64, 96))
    stride = net.backbone.strides[0]
    for task, output in outputs.items():
        assert output.logits.shape == (2, TOKENS[task], 64 // stride, 96 // stride)
        assert output.feature.shape == (2, 8, 64 // stride, 96 // stride)
        assert output.confidence.shape == (2, 1, 64 // stride, 96 // stride)
        assert ((output.confidence > 0) & (output.confidence <= 1)).all()


def test_a_task_predicts_only_the_images_that_it_is_asked_about(net):
    net.eval()
    images, rows = torch.rand(3, 3, 32, 64), {task: torch.tensor([2, 0]) for task in net.tasks}
    rows[net.tasks[0]] = torch.tensor([], dtype=torch.long)
    seen = []
    for head in net.heads.values():
        head.register_forward_hook(lambda head, inputs, output: seen.append(len(output.logits)))
    with torch.no_grad():
        whole, some = net(images), net(images, rows)
    assert list(some) == net.tasks[1:]
    assert seen == [3] * len(net.tasks) + [2] * len(some)
    for task, output in some.items():
        torch.testing.assert_close(output, TaskOutput(*(x[rows[task]] for x in whole[task])), rtol=1e-5, atol=1e-5)


def test_a_prediction_is_the_same_alone_in_any_batch_and_in_any_order(net):
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
def test_images_of_any_size_are_predicted_at_their_own_size(height, width):
    net = KINDS["htt"]().eval()
    with torch.no_grad():
        outputs = net(torch.rand(1, 3, height, width))
    for task in TASKS:
        assert outputs[task.name].logits.shape[-2:] == (-(-height // 4), -(-width // 4))
        assert task.decode(outputs[task.name], (height, width)).shape[-2:] == (height, width)


def test_padding_is_mean_colour_to_the_right_and_below():
    net = KINDS["htt"]().eval()
    image = torch.rand(1, 3, 32, 40)
    padded = net.mean.expand(1, 3, 64, 64).clone()
    padded[..., :32, :40] = image
    with torch.no_grad():
        small, large = net(image), net(padded[..., :32, :64])
    for ours, theirs in zip(flat(small), flat(large), strict=True):
        torch.testing.assert_close(ours, theirs[..., :8, :10])


def test_a_training_batch_of_one_image_works(net):
    outputs = net.train()(torch.rand(1, 3, 64, 64))
    sum(x.sum() for x in flat(outputs)).backward()
    assert all(x.isfinite().all() for x in flat(outputs))


def test_every_parameter_has_a_gradient_so_that_distributed_training_never_waits(net):
    outputs = net.train()(torch.rand(2, 3, 64, 64))
    sum(output.logits.square().sum() for output in outputs.values()).backward()
    assert [name for name, p in net.named_parameters() if p.grad is None] == []


def test_global_tokens_are_parameters_that_train_and_are_saved():
    for kind in ("htt", "single_scale"):
        net = KINDS[kind]()
        tokens = net.global_tokens.tokens
        before = tokens.detach().clone()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        sum(output.logits.square().mean() for output in net(torch.rand(2, 3, 64, 64)).values()).backward()
        assert (tokens.grad.abs().sum(1) > 0).all()
        optimizer.step()
        assert not torch.equal(before, tokens)
        assert "global_tokens.tokens" in net.state_dict()


def test_an_image_updates_its_own_token_only():
    net = KINDS["htt"]().eval()
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        net.backbone.eval()
        one = net(images)["depth"].logits[0]
        other = net(torch.stack([images[0], 1 - images[1]]))["depth"].logits[0]
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


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
    assert KINDS["single_scale"]().global_tokens.task_affinity().shape == (1, 4, 4)


@pytest.mark.parametrize(("without", "gone"), [("use_global_tokens", "scales"), ("use_fine_tokens", "mix")])
def test_tokens_of_either_kind_can_be_left_out(without, gone):
    whole, net = (
        HTTNet({"semseg": 5, "depth": 4}, token_dim=8, backbone=BACKBONE, **k) for k in ({}, {without: False})
    )
    assert any(gone in name for name, _ in whole.named_parameters())
    assert not any(gone in name for name, _ in net.named_parameters())
    assert (net.task_affinity() is None) == (without == "use_global_tokens")
    outputs = net(torch.rand(2, 3, 64, 64))
    sum(x.square().mean() for output in outputs.values() for x in output).backward()
    assert all(p.grad is not None for p in net.parameters())
    assert {task: tuple(output.logits.shape) for task, output in outputs.items()} == {
        "semseg": (2, 5, 16, 16),
        "depth": (2, 4, 16, 16),
    }


def test_published_size_has_the_published_number_of_parameters():
    net = HTTNet({"semseg": 13, "depth": 30, "normals": 40})
    assert sum(p.numel() for p in net.parameters()) == 42_055_694  # 42.06 M


def test_convolutions_and_linear_layers_start_from_xavier_normal():
    net = HTTNet({"semseg": 13}, token_dim=64, backbone=BACKBONE)
    weight = net.heads["semseg"].conv.weight
    assert weight.std().item() == pytest.approx((2 / (64 * 9 + 64 * 9)) ** 0.5, rel=0.05)
    assert net.heads["semseg"].classify.bias.abs().sum() == 0
    tokens = HTTNet({"a": 2}, backbone=BACKBONE).global_tokens.tokens
    assert tokens.std().item() == pytest.approx(1, abs=0.3)


def test_vision_transformers_give_four_evenly_spaced_depths():
    net = HTTNet({"depth": 5}, token_dim=8, backbone="vit_tiny_patch16_224")
    assert net.backbone.model.feature_info.out_indices == (2, 5, 8, 11)
    assert net.eval()(torch.rand(1, 3, 48, 80))["depth"].logits.shape == (1, 5, 3, 5)


def test_a_backbone_of_ones_own_fits(net):
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
def test_wrong_image_shapes_are_named(shape):
    with pytest.raises(HTTError, match="image must be b 3 h w"):
        KINDS["htt"]()(torch.rand(shape))


def test_a_network_without_tasks_is_refused():
    with pytest.raises(HTTError, match="at least one task"):
        HTTNet({})


@pytest.mark.parametrize("kind", [HTTNet, MultiTaskNet])
def test_dilations_of_the_pyramid_pooling_can_be_chosen(kind):
    published, small = (
        kind({"depth": 5}, token_dim=8, backbone=BACKBONE, **chosen) for chosen in ({}, {"dilations": (2, 4)})
    )
    for net, expected in ((published, {1, 12, 24, 36}), (small, {1, 2, 4})):
        aspp = net.heads["depth"].aspp
        assert {layer.dilation[0] for layer in aspp.modules() if isinstance(layer, nn.Conv2d)} == expected
        assert net(torch.rand(2, 3, 32, 32))["depth"].logits.shape == (2, 5, 8, 8)


@pytest.mark.parametrize("kind", [HTTNet, MultiTaskNet])
@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("token_dim", value) for value in (0, -3.5, 10**30, None, "8", True)),
        *(("dilations", value) for value in ((0,), [[1]], (float("nan"),), (10**30,), None, "12")),
        *(("dropout", value) for value in (-1, 1.5, float("nan"), None, "half")),
        ("backbone", None),
    ],
)
def test_arguments_that_no_network_can_be_built_from_are_named(kind, key, value):
    with pytest.raises(HTTError, match=f"model.{key}"):
        kind({"depth": 4}, **({"backbone": BACKBONE, "token_dim": 8} | {key: value}))


@pytest.mark.parametrize("kind", ["htt", "multitask"])
def test_heads_that_are_computed_twice_give_the_same_gradients_and_statistics(kind):
    image, states, gradients = torch.rand(2, 3, 64, 64), [], []
    for again in (False, True):
        torch.manual_seed(0)
        net = KINDS[kind]()
        net.gradient_checkpointing = again
        for _ in range(2):
            torch.manual_seed(1)  # of dropout
            sum(x.square().sum() for x in flat(net(image))).backward()
        states.append(net.state_dict())
        gradients.append({name: value.grad for name, value in net.named_parameters() if value.grad is not None})
    torch.testing.assert_close(*states)
    torch.testing.assert_close(*gradients)


def test_heads_that_are_computed_twice_keep_less():
    kept = []
    for again in (False, True):
        net, maps = HTTNet(TOKENS, token_dim=8, backbone=BACKBONE, gradient_checkpointing=again), []

        def keep(x, to=maps):
            to.append(0 if isinstance(x, nn.Parameter) else x.numel())
            return x

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            net(torch.rand(2, 3, 64, 64))
        kept.append(sum(maps))
    assert kept[1] < kept[0]
