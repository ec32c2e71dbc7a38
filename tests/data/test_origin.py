import pytest
import torch

from htt_lightning.data.batch import label_weights, origin_of
from htt_lightning.data.origin import Origin, build_origin_weights
from htt_lightning.errors import ConfigError
from tests.test_module import silent
from tests.tiny import tiny_data, tiny_module

TASKS = tiny_data().tasks


def test_origin_has_a_stable_code():
    assert [origin.code for origin in Origin] == [0, 1, 2, 3]
    assert [origin.is_stored for origin in Origin] == [False, False, True, True]


def test_weights_of_tasks_leave_the_others():
    table = build_origin_weights({"derived": {"normals": 0.5}, "outside": 0.25}, TASKS)
    assert {name: weight for name, weight in table[Origin.DERIVED].items() if weight != 1} == {"normals": 0.5}
    assert set(table[Origin.OUTSIDE].values()) == {0.25}
    assert set(table[Origin.GIVEN].values()) == set(table[Origin.DISCOVERED].values()) == {1.0}


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ({"given": 1.0}, "data.origin_weights .*'given'.*always 1"),
        ({"derive": 1.0}, "data.origin_weights .*'derive'.*'derived'"),
        ({"derived": {"normal": 1.0}}, "data.origin_weights.derived .*'normal'.*'normals'"),
        ({"derived": -1.0}, "data.origin_weights.derived .*-1"),
        ({"outside": {"depth": float("inf")}}, "data.origin_weights.outside .*inf of depth"),
    ],
)
def test_wrong_weights_are_named(option, words):
    with pytest.raises(ConfigError, match=words):
        tiny_data(origin_weights=option)


def test_batches_carry_the_weights_of_their_labels():
    data = tiny_data(derive={"normals": "depth"}, origin_weights={"derived": {"normals": 0.5}}, batch_size=12)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    derived = batch["origin"]["normals"] == Origin.DERIVED.code
    assert 0 < derived.sum() < 12
    assert torch.equal(label_weights(batch, "normals"), torch.where(derived, 0.5, 1.0))
    assert torch.equal(label_weights(batch, "depth"), torch.ones(12))
    assert origin_of(batch, "normals", int(derived.nonzero()[0])) is Origin.DERIVED


def test_batches_without_weights_or_origins_weigh_one():
    batch = {"labeled": {"depth": torch.tensor([True, False])}}
    assert label_weights(batch, "depth").tolist() == [1, 1]
    assert origin_of(batch, "depth", 0) is None


def test_origin_weights_scale_the_losses_of_labels():
    data = tiny_data()
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    module = silent(tiny_module(data, dropout=0.0)).eval()

    def loss(weight):
        ones = {task.name: torch.ones(4) for task in data.tasks}
        return module.training_step(batch | {"label_weights": ones | {"depth": torch.full((4,), weight)}}, 0)

    batch["labeled"]["depth"] = torch.tensor([False, True, False, True])
    assert loss(1.0) == module.training_step(batch, 0)
    with_half, without = loss(0.5), loss(0.0)
    torch.testing.assert_close(with_half - without, (loss(1.0) - without) / 2)
    batch["labeled"]["depth"][:] = False
    torch.testing.assert_close(module.training_step(batch, 0), without)
