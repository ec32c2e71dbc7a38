"""The label masks that were published as files: how to know one, and what it holds (protocol.md 2.1 and 2.2)."""

import hashlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from htt_lightning.data.masks.label_mask import Protocol


class PublishedMask(NamedTuple):
    """A published label mask.

    Attributes:
        name: What it is, in words.
        protocol: How it was drawn.
        tasks: Number of images that keep the label of a task.
        sizes: Number of images by how many labels they keep.
        patterns: Number of images by the tasks they keep, where these numbers are known.
    """

    name: str
    protocol: Protocol
    tasks: Mapping[str, int]
    sizes: Mapping[int, int]
    patterns: Mapping[tuple[str, ...], int] = MappingProxyType({})


_NYUD_ONE = PublishedMask(
    "the published NYUD one-label mask", "one-label", {"semseg": 265, "depth": 265, "normals": 265}, {1: 795}
)
_NYUD_RANDOM = PublishedMask(
    "the published NYUD random-label mask",
    "random-label",
    {"semseg": 392, "depth": 408, "normals": 385},
    {1: 405, 2: 390},
    {
        ("semseg",): 129,
        ("depth",): 133,
        ("normals",): 143,
        ("semseg", "depth"): 148,
        ("semseg", "normals"): 115,
        ("depth", "normals"): 127,
    },
)
_CITYSCAPES = PublishedMask(
    "the published Cityscapes one-label mask", "one-label", {"semseg": 1487, "depth": 1488}, {1: 2975}
)
_PASCAL_ONE = PublishedMask(
    "the published PASCAL-Context one-label mask",
    "one-label",
    {"semseg": 1000, "human_parts": 999, "saliency": 1000, "normals": 1000, "edges": 999},
    {1: 4998},
)
_PASCAL_RANDOM = PublishedMask(
    "the published PASCAL-Context random-label mask",
    "random-label",
    {"semseg": 2450, "human_parts": 847, "saliency": 2445, "normals": 2480, "edges": 2557},
    {1: 1538, 2: 1529, 3: 1541, 4: 390},
)

PUBLISHED: Mapping[str, PublishedMask] = MappingProxyType(
    {
        "aa12f1e3daaa525c0f03907d833b13c6": _NYUD_ONE,
        "c83e18adccde926a65ac5de96ffa033f": _NYUD_RANDOM,
        "2a62911cac09f8c9e1bcd1bb499c4eca": _CITYSCAPES,
        # The same masks twice: as image ids by task, and as a table by image id.
        "d6efcccebc42e2f317de908375321346": _PASCAL_ONE,
        "c127e1d99899ca42fb7aee29c70d4e05": _PASCAL_ONE,
        "45746c0a24ae0658f15c2bec338a11c6": _PASCAL_RANDOM,
        "0e9b39814e8d5dee3e15ec4e96672b92": _PASCAL_RANDOM,
    }
)
"""The published masks by the MD5 of their files."""


def find_by_md5(content: bytes) -> PublishedMask | None:
    """The published mask that a file's content is, if it is one."""
    return PUBLISHED.get(hashlib.md5(content, usedforsecurity=False).hexdigest())


def find_by_name(name: str | None) -> PublishedMask | None:
    """The published mask of that name, by which a converted one is known."""
    return next((mask for mask in PUBLISHED.values() if mask.name == name), None)
