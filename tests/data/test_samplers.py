from hypothesis import given
from hypothesis import strategies as st

from htt_lightning.data.samplers import PaddedEvalSampler, SeededDistributedSampler

sizes, worlds, epochs = st.integers(1, 40), st.integers(1, 4), st.integers(0, 5)


def epoch_of(size, epoch, rank=0, world=1, seed=0):
    sampler = SeededDistributedSampler(range(size), world, rank, seed=seed, drop_last=True)
    sampler.set_epoch(epoch)
    draws = list(sampler)
    assert len(draws) == len(sampler)
    return draws


@given(sizes, epochs)
def test_an_epoch_contains_every_image_once(size, epoch):
    draws = epoch_of(size, epoch)
    assert sorted(draw.dataset_index for draw in draws) == list(range(size))
    assert {draw.epoch for draw in draws} == {epoch}


def test_order_depends_on_epoch_and_seed():
    assert epoch_of(20, 1) == epoch_of(20, 1)
    orders = [[d.dataset_index for d in epoch_of(20, epoch, seed=seed)] for epoch, seed in [(0, 0), (1, 0), (0, 1)]]
    assert orders[0] != orders[1] != orders[2] != orders[0]


@given(sizes, worlds, epochs, st.integers(1, 5))
def test_ranks_see_the_batches_of_one_process(size, world, epoch, batch):
    ranks = [epoch_of(size, epoch, rank, world) for rank in range(world)]
    steps = len(ranks[0]) // batch
    one = epoch_of(size, epoch)
    for step in range(steps):
        together = {draw for rank in ranks for draw in rank[step * batch : (step + 1) * batch]}
        assert together == set(one[step * batch * world : (step + 1) * batch * world])
    assert steps == len(one) // (batch * world)


@given(sizes, worlds)
def test_evaluation_counts_every_image_once(size, world):
    shares = [list(PaddedEvalSampler(range(size), world, rank)) for rank in range(world)]
    assert len({len(share) for share in shares}) == 1
    counted = [draw.dataset_index for share in shares for draw in share if not draw.is_padding]
    assert sorted(counted) == list(range(size))
