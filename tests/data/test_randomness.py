"""The library uses its own random generators, never the global ones of Python, numpy and torch."""

import random

import numpy as np
import pytest
import torch

from htt_lightning.data import sample_mask
from htt_lightning.data.synthetic_scenes import render
from htt_lightning.training.loading import clone_module
from tests.tiny import tiny_data, tiny_module


def states():
    state = np.random.get_state()[1].tolist()  # noqa: NPY002 - the global state is what these tests are about
    return random.getstate(), state, torch.get_rng_state().tolist()


def seeded(seed):
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.manual_seed(seed)


def batches(loader):
    return [{key: value for key, value in batch.items() if not isinstance(value, dict)} for batch in loader]


def epochs(workers, cache=None):
    """Two epochs of augmented batches, and the validation images."""
    data = tiny_data(num_workers=workers, cache=cache, labels="random-label")
    data.prepare_data()
    data.setup("fit")
    loader, seen = data.train_dataloader(), []
    for epoch in range(2):
        loader.sampler.set_epoch(epoch)
        seen += batches(loader)
    return [*seen, *batches(data.val_dataloader())]


def masks(_):
    ids, kinds = [str(k) for k in range(12)], ("one-label", "random-label")
    return [{kind: torch.from_numpy(sample_mask(kind, ids, ("a", "b", "c"), 5).labeled) for kind in kinds}]


def scenes(_):
    return [{key: torch.from_numpy(value) for key, value in render(0, 3, (24, 32)).items()}]


def weights(_):
    """Weights of the next stage, and the copy of a teacher."""
    module = fresh()
    module.reset_parameters(5)
    return [clone_module(module).net.state_dict()]


def fresh():
    if not MODULE:
        MODULE.append(tiny_module(tiny_data()))
    return MODULE[0]


MODULE = []


@pytest.mark.parametrize("draw", [epochs, masks, scenes, weights])
def test_global_random_states_are_not_used(draw):
    drawn = []
    fresh()
    for seed in (1, 2):
        seeded(seed)
        before = states()
        drawn.append(draw(0))
        assert states() == before
    assert_equal(*drawn)


def test_loader_processes_draw_what_one_process_draws():
    seeded(3)
    before = states()
    assert_equal(epochs(2), epochs(0))
    assert states() == before


def assert_equal(one, other):
    assert len(one) == len(other)
    for ours, theirs in zip(one, other, strict=True):
        assert ours.keys() == theirs.keys()
        for key, value in ours.items():
            if isinstance(value, torch.Tensor):
                torch.testing.assert_close(value, theirs[key], rtol=0, atol=0, equal_nan=True)
            else:
                assert value == theirs[key]
