"""Readers of files, and the files to damage."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tools.damage_campaign.damage import CUT, FLIPPED, Damage

Values = Mapping[str, Any]
"""Result of a reader: arrays, tensors or plain values by name."""

SEALED = frozenset({CUT, FLIPPED})
"""A format whose checksums detect every lost or changed byte."""
COUNTED = frozenset({CUT})
"""A format that detects lost bytes, but has no checksum."""
OPEN: frozenset[str] = frozenset()
"""A format with neither: the rest may be a valid file."""


class Target(NamedTuple):
    """A file to damage.

    Attributes:
        path: Path below the reader's folder.
        damages: Damages of the file.
        notices: Damage that the format detects: ``SEALED``, ``COUNTED`` or ``OPEN``. Elsewhere other content without an
            error is no fault.
        optional: True if the file may be missing.
    """

    path: str
    damages: Sequence[Damage]
    notices: frozenset[str] = SEALED
    optional: bool = False


class Reader(NamedTuple):
    """A public function that reads files.

    Attributes:
        name: Name in the table.
        make: Function that writes valid files below a folder.
        read: Function that reads them all.
        targets: The files to damage.
        speaks: Keys or arguments that a message may name instead of the file.
        slow: True if a short campaign tries only a few of the damages.
    """

    name: str
    make: Callable[[Path], Any]
    read: Callable[[Path], Values]
    targets: Sequence[Target]
    speaks: Sequence[str] = ()
    slow: bool = False
