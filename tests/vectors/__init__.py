"""Reference vectors: the full set in double precision where it is, else the part in this folder.

The folder of the full set is ``HTT_ORACLE``, by default ``../shared/oracle`` from the root of the repository.
"""

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

SHIPPED = Path(__file__).parent
FULL = Path(os.environ.get("HTT_ORACLE", SHIPPED.parents[2] / "shared" / "oracle"))
FOLDER = FULL if FULL.is_dir() else SHIPPED
PRECISION = {torch.float64: 1e-6 if FOLDER == FULL else 1e-4, torch.float32: 1e-4}
"""Relative tolerance of losses, gradients and decoded maps by type."""
NETWORK_PRECISION = {torch.float64: 1e-5 if FOLDER == FULL else 1e-3, torch.float32: 1e-3}
"""Tolerance of a network's outputs as a share of the largest magnitude."""


def load(name: str) -> dict[str, np.ndarray]:
    """Load the arrays of a file, named without its suffix."""
    with np.load(FOLDER / f"{name}.npz") as archive:
        return dict(archive)


def available(names: Iterable[str], prefix: str = "") -> list[str]:
    """List the names whose file ``{prefix}{name}.npz`` is in the folder."""
    return [name for name in names if (FOLDER / f"{prefix}{name}.npz").is_file()]
