"""Which image comes when, on which process: a function of (seed, epoch) alone (contracts.md, Randomness)."""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Dataset, DistributedSampler

from htt_lightning.data.batch import Batch, SampleIndex


class SeededDistributedSampler(DistributedSampler[SampleIndex]):
    """A permutation per epoch from (seed, epoch) alone; ranks take turns, so that R ranks see what one process sees.

    Lightning sets the epoch, and leaves the sampler in place because it is a ``DistributedSampler``.

    Args:
        dataset_size: Length of the dataset.
        seed: Of the permutations.
        rank: Of this process.
        num_replicas: Number of processes.
    """

    def __init__(self, dataset_size: int, seed: int = 0, rank: int = 0, num_replicas: int = 1) -> None:
        super().__init__(
            _Length(dataset_size), num_replicas=num_replicas, rank=rank, shuffle=True, seed=seed, drop_last=True
        )
        self.dataset_size = dataset_size

    def __len__(self) -> int:
        return self.dataset_size // self.num_replicas

    def __iter__(self) -> Iterator[SampleIndex]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.dataset_size)
        share = order[self.rank :: self.num_replicas][: len(self)]
        return iter([SampleIndex(int(index), self.epoch) for index in share])


class PaddedEvalSampler(DistributedSampler[SampleIndex]):
    """Every image once, in order. Ranks get equally many: the last ones repeat images marked as repeats.

    Args:
        dataset_size: Length of the dataset.
        rank: Of this process.
        num_replicas: Number of processes.
    """

    def __init__(self, dataset_size: int, rank: int = 0, num_replicas: int = 1) -> None:
        super().__init__(_Length(dataset_size), num_replicas=num_replicas, rank=rank, shuffle=False)
        self.dataset_size = dataset_size

    def __iter__(self) -> Iterator[SampleIndex]:
        places = range(self.rank, len(self) * self.num_replicas, self.num_replicas)
        return iter([SampleIndex(place % self.dataset_size, is_padding=place >= self.dataset_size) for place in places])


class _Length(Dataset[Batch]):
    """All that torch's sampler asks of a dataset."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length
