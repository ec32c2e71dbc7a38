"""Which image comes when, on which process: a function of (seed, epoch) alone (contracts.md, Randomness)."""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Dataset, DistributedSampler

from htt_lightning.data.batch import Batch, SampleIndex


class SeededDistributedSampler(DistributedSampler[SampleIndex]):
    """A permutation per epoch from (seed, epoch) alone; ranks take turns, so that R ranks see what one process sees.

    Lightning sets the epoch, and leaves the sampler in place because it is a ``DistributedSampler``.

    Args:
        size: Length of the dataset.
        seed: Of the permutations.
        rank: Of this process.
        world: Number of processes.
    """

    def __init__(self, size: int, seed: int = 0, rank: int = 0, world: int = 1) -> None:
        super().__init__(_Length(size), num_replicas=world, rank=rank, shuffle=True, seed=seed, drop_last=True)
        self.size = size

    def __len__(self) -> int:
        return self.size // self.num_replicas

    def __iter__(self) -> Iterator[SampleIndex]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.size)
        share = order[self.rank :: self.num_replicas][: len(self)]
        return iter([SampleIndex(int(index), self.epoch) for index in share])


class PaddedEvalSampler(DistributedSampler[SampleIndex]):
    """Every image once, in order. Ranks get equally many: the last ones repeat images marked as repeats.

    Args:
        size: Length of the dataset.
        rank: Of this process.
        world: Number of processes.
    """

    def __init__(self, size: int, rank: int = 0, world: int = 1) -> None:
        super().__init__(_Length(size), num_replicas=world, rank=rank, shuffle=False)
        self.size = size

    def __iter__(self) -> Iterator[SampleIndex]:
        places = range(self.rank, len(self) * self.num_replicas, self.num_replicas)
        return iter([SampleIndex(place % self.size, repeat=place >= self.size) for place in places])


class _Length(Dataset[Batch]):
    """All that torch's sampler asks of a dataset."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length
