import pytest
import torch

from htt_lightning import HTTModule, LabelDiscovery
from htt_lightning.discovery.ema import update_ema
from htt_lightning.discovery.loss import DiscoveryLossWeights
from htt_lightning.training.loading import clone_module
from tests.callbacks.test_label_discovery import few, fitted, state_of, stored
from tests.discovery.test_loss import Strided
from tests.test_module import assert_same, weights
from tests.tiny import tiny_module


def test_the_average_follows_the_network():
    data = few()
    one, two = tiny_module(data), tiny_module(data)
    average = clone_module(one).net
    update_ema(average, two.net, 0.75)
    for key, value in average.state_dict().items():
        expected = 0.75 * one.net.state_dict()[key] + 0.25 * two.net.state_dict()[key]
        if value.is_floating_point():
            torch.testing.assert_close(value, expected)


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    """Two networks of one epoch each on the given labels, which then teach a third."""

    class Run:
        folder = tmp_path_factory.mktemp("together")

    Run.module, Run.trainer = fitted(Run.folder, LabelDiscovery(stages=3, num_teachers=2, target_type="soft_tta"))
    return Run


def test_networks_trained_apart_teach_together(together, tmp_path):
    assert together.trainer.current_epoch == 3
    first, second, last = (stored(together.folder, epoch) for epoch in range(3))
    networks = [
        {key.removeprefix("net."): value for key, value in x["state_dict"].items() if key.startswith("net.")}
        for x in (first, second)
    ]
    assert [len(state_of(x)["teachers"]) for x in (first, second, last)] == [0, 1, 2]
    for network, teacher in zip(networks, state_of(last)["teachers"], strict=True):
        assert_same(network, teacher["state_dict"])
    assert any(not torch.equal(networks[0][key], value) for key, value in networks[1].items())
    plain, _ = fitted(
        tmp_path, LabelDiscovery(stages=2, loss_weights=DiscoveryLossWeights(0, 0, 0))
    )  # the second stage learns nothing else
    assert_same(weights(plain), networks[1])


@pytest.mark.parametrize("epoch", [0, 1])
def test_a_run_with_several_teachers_resumes_bitwise(epoch, together, tmp_path):
    path = together.folder / "kept" / f"epoch={epoch}.ckpt"
    discovery = LabelDiscovery(stages=3, num_teachers=2, target_type="soft_tta")
    resumed, _ = fitted(tmp_path, discovery, seed=99, ckpt_path=path)
    assert_same(weights(together.module), weights(resumed))


def test_several_checkpoints_teach_as_the_stages_did(together, tmp_path):
    paths = [str(together.folder / "checkpoints" / f"stage_{k}.ckpt") for k in (1, 2)]
    fitted(tmp_path, LabelDiscovery(teacher=paths, target_type="soft_tta"))
    ours, theirs = (state_of(stored(*run))["teachers"] for run in ((tmp_path, 0), (together.folder, 2)))
    for one, other in zip(ours, theirs, strict=True):
        assert_same(one["state_dict"], other["state_dict"])


class OtherModule(HTTModule):
    """Around a network that is not this package's."""

    def build_network(self):
        return Strided(self.tasks, 4, self.hparams["token_dim"])


def test_another_network_goes_through_the_stages_and_teaches_from_a_file(tmp_path):
    data = few()
    first = OtherModule(data.tasks, token_dim=8, lr=1e-3)
    _, trainer = fitted(tmp_path / "staged", LabelDiscovery(), module=first)
    assert trainer.current_epoch == 2
    path = tmp_path / "staged" / "checkpoints" / "stage_1.ckpt"
    learned = OtherModule.load_from_checkpoint(path, weights_only=True)
    discovery = LabelDiscovery(teacher=str(path), student_init="teacher", loss_weights=DiscoveryLossWeights(1, 1, 1))
    fitted(tmp_path / "taught", discovery, module=OtherModule(data.tasks, token_dim=8, lr=1e-3))
    assert_same(weights(learned), state_of(stored(tmp_path / "taught", 0))["teachers"][0]["state_dict"])
