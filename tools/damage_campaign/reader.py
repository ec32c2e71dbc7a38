"""What is put to the test: something that reads files, and the files."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tools.damage_campaign.damage import CUT, FLIPPED, Damage

Values = Mapping[str, Any]
"""What a reader has read: arrays, tensors or plain values by name."""

SEALED = frozenset({CUT, FLIPPED})
"""A format whose checksums tell of every lost or changed byte."""
COUNTED = frozenset({CUT})
"""A format that knows its length, but has no checksum."""
OPEN: frozenset[str] = frozenset()
"""A format with neither: what is left may be a sound file."""


class Target(NamedTuple):
    """A file to be damaged.

    Attributes:
        path: Below the reader's folder.
        damages: What happens to it.
        notices: What its format can notice: ``SEALED``, ``COUNTED`` or ``OPEN``. Other content without an error counts
            as a silent fault only there.
        optional: Whether the file may as well not be there.
    """

    path: str
    damages: Sequence[Damage]
    notices: frozenset[str] = SEALED
    optional: bool = False


class Reader(NamedTuple):
    """Something public that reads files.

    Attributes:
        name: For the table.
        make: Writes sound files below a folder.
        read: Reads them all.
        targets: The files to damage.
        speaks: What messages may name instead of the file: keys or arguments.
        slow: Whether a short campaign tries only a few of the damages.
    """

    name: str
    make: Callable[[Path], Any]
    read: Callable[[Path], Values]
    targets: Sequence[Target]
    speaks: Sequence[str] = ()
    slow: bool = False
