"""The seed of a run, and those that are derived from it."""

import os

import numpy as np


def run_seed() -> int:
    """The seed of ``seed_everything``, 0 by default."""
    return int(os.environ.get("PL_GLOBAL_SEED", 0))


def derived_seed(*numbers: int) -> int:
    """A seed from that of the run and from numbers such as the epoch's."""
    return int(np.random.SeedSequence([run_seed(), *numbers]).generate_state(1)[0])
