"""Published label masks, known by the MD5 of their files.

Those of NYUD and Cityscapes come from https://github.com/VICO-UoE/MTPSL, those of PASCAL-Context from
https://github.com/prismformore/DiffusionMTL.
"""

import hashlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from htt_lightning.data.masks.label_mask import Protocol


class PublishedMask(NamedTuple):
    """Name and protocol of a published label mask."""

    name: str
    protocol: Protocol


_PASCAL_ONE = PublishedMask("the published PASCAL-Context one-label mask", "one-label")
_PASCAL_RANDOM = PublishedMask("the published PASCAL-Context random-label mask", "random-label")

PUBLISHED: Mapping[str, PublishedMask] = MappingProxyType(
    {
        "aa12f1e3daaa525c0f03907d833b13c6": PublishedMask("the published NYUD one-label mask", "one-label"),
        "c83e18adccde926a65ac5de96ffa033f": PublishedMask("the published NYUD random-label mask", "random-label"),
        "2a62911cac09f8c9e1bcd1bb499c4eca": PublishedMask("the published Cityscapes one-label mask", "one-label"),
        # The same masks twice: as image ids by task, and as a table by image id.
        "d6efcccebc42e2f317de908375321346": _PASCAL_ONE,
        "c127e1d99899ca42fb7aee29c70d4e05": _PASCAL_ONE,
        "45746c0a24ae0658f15c2bec338a11c6": _PASCAL_RANDOM,
        "0e9b39814e8d5dee3e15ec4e96672b92": _PASCAL_RANDOM,
    }
)
"""Published masks by the MD5 of their files."""


def find_by_md5(content: bytes) -> PublishedMask | None:
    """Return the published mask with this file content, if there is one."""
    return PUBLISHED.get(hashlib.md5(content, usedforsecurity=False).hexdigest())
