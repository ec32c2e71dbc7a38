"""Samplers whose order depends on (seed, epoch) alone."""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Dataset, DistributedSampler

from htt_lightning.data.batch import Batch, SampleIndex


class SeededDistributedSampler(DistributedSampler[SampleIndex]):
    """A permutation per epoch; ranks take turns, so that R ranks see the batches of one process.

    Lightning sets the epoch, and does not replace the sampler because it is a ``DistributedSampler``.

    Args:
        dataset_size: Number of images.
        seed: Seed of the permutations.
        rank: Rank of this process.
        num_replicas: Number of processes.
    """

    def __init__(self, dataset_size: int, seed: int = 0, rank: int = 0, num_replicas: int = 1) -> None:
        super().__init__(_Length(dataset_size), num_replicas, rank, shuffle=True, seed=seed, drop_last=True)
        self.dataset_size = dataset_size

    def __len__(self) -> int:
        return self.dataset_size // self.num_replicas

    def __iter__(self) -> Iterator[SampleIndex]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(self.dataset_size)
        share = order[self.rank :: self.num_replicas][: len(self)]
        return iter([SampleIndex(int(index), self.epoch) for index in share])


class PaddedEvalSampler(DistributedSampler[SampleIndex]):
    """Every image once, in order; the last ranks repeat images as padding, so that all ranks take the same steps.

    Args:
        dataset_size: Number of images.
        rank: Rank of this process.
        num_replicas: Number of processes.
    """

    def __init__(self, dataset_size: int, rank: int = 0, num_replicas: int = 1) -> None:
        super().__init__(_Length(dataset_size), num_replicas, rank, shuffle=False)
        self.dataset_size = dataset_size

    def __iter__(self) -> Iterator[SampleIndex]:
        size = self.dataset_size
        places = range(self.rank, len(self) * self.num_replicas, self.num_replicas)
        return iter([SampleIndex(place % size, is_padding=place >= size) for place in places])


class _Length(Dataset[Batch]):
    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length
