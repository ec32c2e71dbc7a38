"""Warnings about files that the patterns of a dataset do not match."""

import re
from collections.abc import Collection, Iterator, Mapping
from glob import escape
from pathlib import Path, PurePosixPath

from htt_lightning.io.file_names import glob_files, glob_other_suffixes, nfc, shorten
from htt_lightning.io.image_files import HEIF_SUFFIXES, RAW_SUFFIXES, readable_suffixes


def unmatched_images(
    root: Path, option: str, pattern: str, ids: Collection[str], used: Collection[Path]
) -> Iterator[str]:
    """Name the images that a pattern leaves out for their suffix alone, unless an image of that id is read.

    Args:
        root: Folder of the dataset.
        option: Option that holds the pattern, for the message.
        pattern: Pattern of images relative to the root.
        ids: Ids of the images that are read.
        used: Images and labels that are read.
    """
    beside = [path for path in glob_other_suffixes(pattern, root) if is_map_file(path) and root / path not in used]
    if others := [path for path in beside if image_id(nfc(path), nfc(pattern)) not in ids]:
        yield f"{len(others)} files do not match {option} {pattern!r} and are not read: {shorten(others)}."


def unmatched_labels(
    root: Path, task: str, pattern: str, labels: Mapping[str, Path | None], used: Collection[Path], shared: bool
) -> Iterator[str]:
    """Name the label files without an image, and those of images without a label that differ in their suffix alone.

    Args:
        root: Folder of the dataset.
        task: Name of the task.
        pattern: Pattern of label files relative to the root, with ``{id}``.
        labels: Label file by image id; None without one.
        used: Images and labels that are read.
        shared: Whether the labels of another split have the same pattern, so that they are no surplus.
    """
    wild = escape(pattern).replace("{id}", "**/*" if any("/" in name for name in labels) else "*")
    lone = [] if shared else [path for path in glob_files(wild, root) if root / path not in used]
    if lone:
        yield f"{len(lone)} label files of {task} have no image and are not read: {shorten(lone)}."
    beside = [path for path in glob_other_suffixes(wild, root) if is_map_file(path) and root / path not in used]
    if others := [path for path in beside if labels.get(image_id(nfc(path), nfc(wild)), root) is None]:
        yield f"{len(others)} files do not match the labels {pattern!r} of {task} and are not read: {shorten(others)}."


def is_map_file(path: str) -> bool:
    """Return whether a file can be an image or a map, by its suffix."""
    suffix = Path(path).suffix.lower()
    return suffix in readable_suffixes() or suffix in (*HEIF_SUFFIXES, *RAW_SUFFIXES, ".npy", ".npz", ".mat", ".exr")


def image_id(path: str, pattern: str) -> str:
    """Return the part of a path that a pattern's wildcards match, without suffix."""
    pattern, name = stem(pattern), stem(path)
    wild = [match.start() for match in re.finditer(r"[*?\[\]]", pattern)]
    start, end = (wild[0], wild[-1] + 1) if wild else (len(pattern), len(pattern))
    return name.removeprefix(pattern[:start]).removesuffix(pattern[end:]).strip("/")


def stem(path: str) -> str:
    """Return a path in the form of ids: normalized, without suffix."""
    plain = PurePosixPath(path)
    return str(plain).removesuffix(plain.suffix)
