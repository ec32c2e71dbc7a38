"""Samplers whose order depends on (seed, epoch) alone; Lightning replaces no ``DistributedSampler``."""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import DistributedSampler

from htt_lightning.data.batch import SampleIndex


class SeededDistributedSampler(DistributedSampler[SampleIndex]):
    """A permutation per epoch; ranks take turns, so that R ranks see the batches of one process."""

    def __iter__(self) -> Iterator[SampleIndex]:
        order = np.random.default_rng([self.seed, self.epoch]).permutation(len(self.dataset))  # type: ignore[arg-type]
        share = order[self.rank : self.total_size : self.num_replicas]
        return iter([SampleIndex(int(index), self.epoch) for index in share])


class PaddedEvalSampler(DistributedSampler[SampleIndex]):
    """Every image once, in order; the last ranks repeat images as padding, so that all ranks take the same steps."""

    def __iter__(self) -> Iterator[SampleIndex]:
        size = len(self.dataset)  # type: ignore[arg-type]  # torch declares no length
        places = range(self.rank, self.total_size, self.num_replicas)
        return iter([SampleIndex(place % size, is_padding=place >= size) for place in places])
