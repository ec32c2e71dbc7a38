"""Network, losses and discovery equal their plain form, compile, and are finite in half precision."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks import plain
from htt_lightning import HTTModule
from htt_lightning.discovery import DiscoveryLossWeights, TeacherEnsemble, discovery_loss
from htt_lightning.output import TaskOutput
from tests.run_if import RunIf
from tests.tiny import BACKBONE, tiny_data

SIZE = (64, 96)
PUBLISHED = DiscoveryLossWeights(feature_labeled=1, feature_unlabeled=1)


def module_of(tasks, dtype, seed):
    """Without dropout, whose draws follow the order of memory, and without kinks, which make much of rounding."""
    torch.manual_seed(seed)
    module = HTTModule(tasks, backbone=BACKBONE, token_dim=16, dropout=0.0, tokens="released").to(dtype)
    return smooth(module)


def smooth(net):
    for part in list(net.modules()):
        for name, child in part.named_children():
            if isinstance(child, nn.ReLU):
                setattr(part, name, nn.GELU())
            elif isinstance(child, nn.MaxPool2d):
                setattr(part, name, nn.AvgPool2d(child.kernel_size, child.stride, child.padding))
    return net


def plain_net(net):
    tokens = {task.name: task.num_tokens for task in plain.TASKS}
    copy = plain.PlainHTTNet(tokens, backbone=BACKBONE, token_dim=16, dropout=0.0, tokens="released").to(
        next(net.parameters()).dtype
    )
    copy.load_state_dict(net.state_dict())
    return smooth(copy)


def make_batch(dtype):
    """Four images with one, two, three and no labels, parts of which are missing."""
    generator = torch.Generator().manual_seed(10)

    def random(*shape):
        return torch.rand(shape, generator=generator, dtype=dtype)

    labels = {
        "semseg": torch.randint(0, 13, (4, *SIZE), generator=generator),
        "depth": random(4, 1, *SIZE) * 9 + 0.7,
        "normals": F.normalize(random(4, 3, *SIZE) - 0.5, dim=1),
    }
    hole = random(4, *SIZE) < 0.2
    labels["semseg"][hole] = 255
    for name in ("depth", "normals"):
        labels[name] = labels[name].masked_fill(hole[:, None], torch.nan)
    marks = {"semseg": [1, 1, 1, 0], "depth": [0, 1, 1, 0], "normals": [0, 0, 1, 0]}
    labeled = {name: torch.tensor(given, dtype=torch.bool) for name, given in marks.items()}
    # Some bright, some dark: of images that are alike on average, pooling leaves rounding for BatchNorm to enlarge.
    image = random(4, 3, *SIZE) * random(4, 3, 1, 1) + random(4, 3, 1, 1)
    return {"image": image, **labels, "labeled": labeled, "valid": torch.ones(4, *SIZE, dtype=torch.bool)}


def assert_close(ours, theirs, tolerance, largest=None):
    largest = theirs.detach().abs().max() if largest is None else largest
    assert ((ours - theirs).detach().abs().max() / largest.clamp(min=1e-30)) < tolerance


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-8)])
@pytest.mark.parametrize("stage", [1, 2])
def test_outputs_losses_and_gradients_equal_the_plain_form(stage, dtype, tolerance, monkeypatch):
    monkeypatch.setattr(HTTModule, "log", lambda *_, **__: None)
    module, teacher, batch = module_of(plain.TASKS, dtype, 0), module_of(plain.TASKS, dtype, 1).net, make_batch(dtype)
    mirror, mirror_teacher = plain_net(module.net), plain_net(teacher).eval()
    outputs, plain_outputs = module.net.eval()(batch["image"]), mirror.eval()(batch["image"])
    for name, output in outputs.items():
        for ours, theirs in zip(output, plain_outputs[name], strict=True):
            assert_close(ours, theirs, tolerance)
    module.train()
    if stage == 2:
        device = torch.device("cpu")
        module.discovery = TeacherEnsemble([teacher], plain.TASKS, module.loss_weights, PUBLISHED, device)
    loss = module.training_step(batch, 0)
    with torch.no_grad():
        taught = mirror_teacher(batch["image"]) if stage == 2 else None
    plain_loss = plain.plain_loss(plain.TASKS, mirror.train()(batch["image"]), batch, taught)
    assert_close(loss, plain_loss, tolerance)
    loss.backward()
    plain_loss.backward()
    gradients = {name: value.grad for name, value in mirror.named_parameters()}
    largest = torch.stack([gradient.abs().max() for gradient in gradients.values()]).max()
    for name, value in module.net.named_parameters():
        assert_close(value.grad, gradients[name], tolerance, largest)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch 2.11 and 2.12, of itself
def test_network_losses_and_discovery_compile_without_breaks():
    tasks = tiny_data().tasks
    module, images = module_of(tasks, torch.float32, 0), torch.rand(2, 3, *SIZE)
    pixels = {1: (2, 1, *SIZE), 3: (2, 3, *SIZE)}
    batch = {
        t.name: torch.rand(pixels[t.field_channels]) + 0.7 if t.field_channels else torch.ones(2, *SIZE).long()
        for t in tasks
    }

    def losses(outputs):
        return [task.loss(outputs[task.name], batch[task.name]) for task in tasks]

    def discovered(outputs, labeled, valid):
        return [
            discovery_loss(task, outputs[task.name], outputs[task.name], labeled, valid, 1.0, PUBLISHED).loss
            for task in tasks
        ]

    def compiled(function):
        return torch.compile(function, backend="eager", fullgraph=True)

    with torch.no_grad():
        expected = module.net(images)
    outputs = compiled(module.net)(images)
    for task in tasks:
        torch.testing.assert_close(TaskOutput(*(x.detach() for x in outputs[task.name])), expected[task.name])
    torch.testing.assert_close(compiled(losses)(expected), losses(expected))
    marks = torch.tensor([True, False]), torch.ones(2, *SIZE, dtype=torch.bool)
    torch.testing.assert_close(compiled(discovered)(expected, *marks), discovered(expected, *marks))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("brightness", [0.0, 1.0])
def test_losses_and_gradients_are_finite_in_half_precision(dtype, brightness):
    check_half_precision(dtype, brightness, torch.device("cpu"))


@RunIf(min_gpus=1)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_losses_and_gradients_are_finite_in_amp_on_gpu(dtype):
    check_half_precision(dtype, 1.0, torch.device("cuda"))


def check_half_precision(dtype, brightness, device):
    data = tiny_data(labels="full")
    data.setup("fit")
    batch = data.transfer_batch_to_device(next(iter(data.train_dataloader())), device, 0)
    batch["image"] = batch["image"] * brightness
    torch.manual_seed(0)
    module, teacher = (HTTModule(data.tasks, backbone=BACKBONE, token_dim=16).to(device) for _ in range(2))
    discovery = TeacherEnsemble([teacher.net], data.tasks, module.loss_weights, PUBLISHED, device)
    with torch.autocast(device.type, dtype):
        outputs = module(batch["image"])
        losses = [task.loss(outputs[task.name], batch[task.name]) for task in data.tasks]
        found = discovery.loss(batch, outputs)
    assert all(loss.dtype == torch.float32 for loss in losses)
    total = torch.stack([loss.sum() for loss in losses]).sum() + found.sum()
    # BatchNorm enlarges gradients of black images beyond what 16 bits hold: a gradient scaler goes down until they fit.
    (total / 64).backward()
    assert total.isfinite()
    assert all(value.grad.isfinite().all() for value in module.parameters() if value.grad is not None)
