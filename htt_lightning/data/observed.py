"""What reading learns about files that the arrays it returns no longer show."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import numpy as np


@dataclass
class Observed:
    """What was read inside a block of ``observed``.

    Attributes:
        lengths: Those of vectors before they were normalised, ``h w``; NaN where there is none.
        sizes: Those of arrays ``(h, w)`` before they were resized.
    """

    lengths: list[np.ndarray] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)


@contextmanager
def observed() -> Iterator[Observed]:
    """Watches what is read inside the block."""
    token = _current.set(seen := Observed())
    try:
        yield seen
    finally:
        _current.reset(token)


def observer() -> Observed | None:
    """Who watches, if anyone does."""
    return _current.get()


_current: ContextVar[Observed | None] = ContextVar("observed", default=None)
