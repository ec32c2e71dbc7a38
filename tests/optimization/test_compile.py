import pytest
import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import nn
from torch._dynamo.utils import counters

from htt_lightning import HTTModule, LabelDiscovery
from htt_lightning.models.layers import checkpoint_with_frozen_bn_stats
from htt_lightning.training.loading import load_module
from tests.callbacks.test_label_discovery import OtherModule, few, fitted, state_of, stored
from tests.test_module import assert_same, weights
from tests.tiny import tiny_module

EAGER = {"backend": "eager"}


def small(**options):
    """Return a module whose network is compiled in seconds."""
    torch.manual_seed(0)
    return OtherModule(few().tasks, token_dim=8, lr=1e-3, **options)


def staged(folder, module, *callbacks):
    """Train two stages, and return the number of graphs that were compiled."""
    torch.compiler.reset()
    counters.clear()
    fitted(folder, LabelDiscovery(), module=module, callbacks=[*callbacks], limit_val_batches=1)
    return counters["stats"]["unique_graphs"]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """The same run without compilation."""
    module = small()
    assert staged(tmp_path_factory.mktemp("plain"), module) == 0
    return weights(module)


def test_compiled_network_trains_both_stages_to_the_same_weights(tmp_path, plain):
    module = small(compile=EAGER)
    assert staged(tmp_path, module) > 0
    assert_same(weights(module), plain)
    last = stored(tmp_path, 1)
    assert last["hyper_parameters"]["compile"] == EAGER
    assert not [
        key for key in (*last["state_dict"], *state_of(last)["teachers"][0]["state_dict"]) if "_orig_mod" in key
    ]


class Recomputed(nn.Module):
    """A head whose inner maps are recomputed in the backward pass."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())

    def forward(self, x):
        return 2 * checkpoint_with_frozen_bn_stats(self.layers, self.layers, x)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_compiled_network_may_recompute_its_heads():
    def trained(is_compiled):
        torch.manual_seed(0)
        net = Recomputed()
        if is_compiled:
            net.compile(**EAGER)
        net(torch.rand(2, 3, 8, 8)).square().sum().backward()
        return [x.grad for x in net.parameters()], list(net.buffers())

    torch.testing.assert_close(trained(True), trained(False))


def test_network_in_a_wrapper_is_compiled_in_place(tmp_path, plain):
    module = small()
    net = module.net
    module.net = torch.compile(module.net, backend="eager")
    assert module.net is net
    assert staged(tmp_path, module) > 0
    assert_same(weights(module), plain)
    loaded = OtherModule.load_from_checkpoint(tmp_path / "kept" / "epoch=1.ckpt")
    assert_same(weights(loaded), plain)


def test_averages_of_a_compiled_network_are_those_of_the_other(tmp_path):
    compiled, other = small(compile=EAGER), small()
    staged(tmp_path / "compiled", compiled, WeightAveraging())
    staged(tmp_path / "other", other, WeightAveraging())
    assert_same(weights(compiled), weights(other))


def test_checkpoint_of_a_compiled_network_predicts_uncompiled(tmp_path):
    data = few()
    module = tiny_module(data)
    fitted(tmp_path, data=data, module=module, limit_train_batches=1, limit_val_batches=0)
    path = tmp_path / "kept" / "epoch=0.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["hyper_parameters"]["compile"] = True
    torch.save(checkpoint, path)
    torch.compiler.reset()
    counters.clear()
    loaded = load_module(path, "--ckpt_path")  # as export and prediction do
    assert isinstance(loaded, HTTModule)
    image = torch.rand(1, 3, 32, 48)
    with torch.no_grad():
        ours, theirs = module.eval().decode(image), loaded.eval().decode(image)
    assert all(torch.equal(ours[task], theirs[task]) for task in ours)
    assert counters["stats"]["unique_graphs"] == 0
