"""Fixtures that every test may use."""

import os
from collections.abc import Callable
from pathlib import Path

import hypothesis
import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
ORACLE = Path(os.environ.get("HTT_ORACLE", ROOT.parent / "shared" / "oracle"))
# A loaded machine is slow, not wrong.
hypothesis.settings.register_profile("default", deadline=None)
hypothesis.settings.load_profile("default")

Vectors = dict[str, np.ndarray]


@pytest.fixture(scope="session")
def oracle() -> Callable[[str], Vectors]:
    """Load a file of reference vectors; the test is skipped where they are absent."""

    def load(name: str) -> Vectors:
        path = ORACLE / f"{name}.npz"
        if not path.is_file():
            pytest.skip(f"no reference vectors at {path}; set HTT_ORACLE")
        with np.load(path) as archive:
            return dict(archive)

    return load
