"""Published label masks, known by the MD5 of their files.

Those of NYUD and Cityscapes come from https://github.com/VICO-UoE/MTPSL, those of PASCAL-Context from
https://github.com/prismformore/DiffusionMTL.
"""

import hashlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple


class Provenance(NamedTuple):
    """Protocol, seed and origin of a mask file; see ``LabelMask``."""

    protocol: str = "file"
    seed: int | None = None
    origin: str | None = None


_MASKS = {
    "aa12f1e3daaa525c0f03907d833b13c6": ("NYUD", "one-label"),
    "c83e18adccde926a65ac5de96ffa033f": ("NYUD", "random-label"),
    "2a62911cac09f8c9e1bcd1bb499c4eca": ("Cityscapes", "one-label"),
    # The same masks twice: as image ids by task, and as a table by image id.
    "d6efcccebc42e2f317de908375321346": ("PASCAL-Context", "one-label"),
    "c127e1d99899ca42fb7aee29c70d4e05": ("PASCAL-Context", "one-label"),
    "45746c0a24ae0658f15c2bec338a11c6": ("PASCAL-Context", "random-label"),
    "0e9b39814e8d5dee3e15ec4e96672b92": ("PASCAL-Context", "random-label"),
}
PUBLISHED: Mapping[str, Provenance] = MappingProxyType(
    {md5: Provenance(kind, origin=f"the published {name} {kind} mask") for md5, (name, kind) in _MASKS.items()}
)
"""Published masks by the MD5 of their files."""


def find_by_md5(content: bytes) -> Provenance | None:
    """Return the published mask with this file content, if there is one."""
    return PUBLISHED.get(hashlib.md5(content, usedforsecurity=False).hexdigest())
