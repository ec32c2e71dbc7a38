"""Interruption of the command ``discover``."""

import contextlib
from collections.abc import Iterator

import pytest

from htt_lightning.data.pseudo_labels import PseudoLabelStore


@contextlib.contextmanager
def interrupted_after(count: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Interrupt a command when it has written so many images, and yield their ids."""
    write, written = PseudoLabelStore.write, []

    def write_some(self, name, maps):
        if len(written) == count:
            raise KeyboardInterrupt
        written.append(name)
        write(self, name, maps)

    with monkeypatch.context() as patch:
        patch.setattr(PseudoLabelStore, "write", write_some)
        with contextlib.suppress(KeyboardInterrupt, SystemExit):  # the type depends on the version of Lightning
            yield written
