"""Progress of what takes long, on a terminal alone: files and pipes get what a command says, and nothing that moves."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich import progress
from rich.console import Console

T = TypeVar("T")


def track(items: Iterable[T], what: str, total: int | None = None) -> Iterable[T]:
    """Items as they come, below a bar that vanishes with the last of them.

    Args:
        items: The items.
        what: What is done with them.
        total: Their number, where they do not know it.
    """
    console = Console(stderr=True)
    return progress.track(items, what, total, console=console, transient=True) if console.is_terminal else items


@contextmanager
def waiting(what: str) -> Iterator[None]:
    """Says what is waited for inside the block."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    with console.status(what):
        yield
