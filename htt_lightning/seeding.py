"""The seed of a run and seeds derived from it."""

import os

import numpy as np


def run_seed() -> int:
    """Return the seed of ``seed_everything``, 0 by default."""
    return int(os.environ.get("PL_GLOBAL_SEED", 0))


def derived_seed(*numbers: int) -> int:
    """Derive a seed from the seed of the run and further non-negative numbers, such as the epoch."""
    return int(np.random.SeedSequence([run_seed(), *numbers]).generate_state(1)[0])
