"""Progress displays, shown on a terminal only."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TypeVar

from rich import progress
from rich.console import Console

T = TypeVar("T")


def track(items: Iterable[T], description: str, total: int | None = None) -> Iterable[T]:
    """Iterate below a progress bar, which disappears with the last item."""
    console = Console(stderr=True)
    if not console.is_terminal:
        return items
    return progress.track(items, description, total, console=console, transient=True)


@contextmanager
def status(description: str) -> Iterator[None]:
    """Show a text and a spinner while the block runs."""
    console = Console(stderr=True)
    with console.status(description) if console.is_terminal else nullcontext():
        yield
