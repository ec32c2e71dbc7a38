"""Damage to files of any content, as functions of the file and of random numbers."""

import gzip
import io
import json
import pickle
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from scipy.io import savemat

Change = Callable[[Path, np.random.Generator], None]

CUT, FLIPPED, OTHER, VALID = "cut", "flipped", "other", "valid"
"""Lost bytes; changed bytes; a file of another kind; a valid file with other content."""

MARKER = "executed"
"""File that an executed pickle creates in the working directory."""


class Damage(NamedTuple):
    """One kind of damage.

    Attributes:
        name: Name in the table.
        what: ``CUT``, ``FLIPPED``, ``OTHER`` or ``VALID``.
        change: Function that damages the file.
        drawn: True if the damage is random.
    """

    name: str
    what: str
    change: Change
    drawn: bool = False


class Bomb:
    """An object whose pickle runs code."""

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (MARKER, "w")


def put(path: Path, content: bytes) -> None:
    """Replace a file."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def rewritten(change: Callable[[bytes, np.random.Generator], bytes]) -> Change:
    """Change the bytes of a file."""
    return lambda path, rng: put(path, change(path.read_bytes(), rng))


def instead(content: Callable[[], bytes]) -> Change:
    """Replace the file by another."""
    return lambda path, rng: put(path, content())


def _flip(content: bytes, rng: np.random.Generator, count: int = 1) -> bytes:
    changed = bytearray(content)
    for place in rng.integers(0, len(changed), count):
        changed[place] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def _zeroed(content: bytes, rng: np.random.Generator) -> bytes:
    start = int(rng.integers(len(content)))
    size = min(512, len(content) - start)
    return content[:start] + bytes(size) + content[start + size :]


def _swapped(content: bytes, rng: np.random.Generator) -> bytes:
    """Swap two blocks."""
    size = max(len(content) // 4, 1)
    first = int(rng.integers(max(len(content) // 2 - size, 1)))
    a, b = slice(first, first + size), slice(first + 2 * size, first + 3 * size)
    return content[: a.start] + content[b] + content[a.stop : b.start] + content[a] + content[b.stop :]


def _cut(content: bytes, rng: np.random.Generator) -> bytes:
    return content[: int(rng.integers(1, len(content)))]


def _folder(path: Path, rng: np.random.Generator) -> None:
    path.unlink()
    path.mkdir()


def _link_to(place: Callable[[Path], Path], keep: bool = False) -> Change:
    """Replace a file by a link; with ``keep`` the file moves to the target."""

    def change(path: Path, rng: np.random.Generator) -> None:
        target = place(path)
        if keep:
            target.parent.mkdir(exist_ok=True)
            path.rename(target)
        else:
            path.unlink()
        path.symlink_to(target)

    return change


def _outside(path: Path) -> Path:
    """Return a path outside of the reader's folder."""
    root = next(folder for folder in path.parents if folder.name == "root")
    return root.with_name("outside") / path.name


def sample(kind: str) -> bytes:
    """Return a valid file of some kind, or a pickle that runs code."""
    grey, buffer = np.arange(48, dtype=np.uint8).reshape(6, 8), io.BytesIO()
    if kind in ("png", "jpeg", "gif"):
        Image.fromarray(grey).save(buffer, kind)
    elif kind == "npy":
        np.save(buffer, grey)
    elif kind == "npy pickle":
        np.save(buffer, np.array([Bomb()], object), allow_pickle=True)
    elif kind == "npz":
        np.savez(buffer, grey)
    elif kind == "pickle":
        pickle.dump(Bomb(), buffer)
    elif kind == "torch":
        torch.save({"other": torch.zeros(3)}, buffer)
    elif kind == "torch pickle":
        torch.save({"state_dict": {}, "hyper_parameters": {"tasks": Bomb()}, "labels_weights": Bomb()}, buffer)
    elif kind == "zip":
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("readme.txt", "hello")
    elif kind == "mat":
        savemat(buffer, {"other": grey})
    elif kind == "json":
        buffer.write(json.dumps({"format": 1}).encode())
    return buffer.getvalue()


PICTURES = ("png", "jpeg", "gif")
STRANGERS = ("npy", "npy pickle", "npz", "pickle", "torch", "torch pickle", "zip", "mat", "json")

ANY = [
    Damage("one bit", FLIPPED, rewritten(_flip), drawn=True),
    Damage("32 bits", FLIPPED, rewritten(lambda content, rng: _flip(content, rng, 32)), drawn=True),
    Damage("block of zeros", FLIPPED, rewritten(_zeroed), drawn=True),
    Damage("blocks swapped", FLIPPED, rewritten(_swapped), drawn=True),
    Damage("tail added", FLIPPED, rewritten(lambda content, rng: content + rng.bytes(64)), drawn=True),
    Damage("cut short", CUT, rewritten(_cut), drawn=True),
    Damage("one byte left", CUT, rewritten(lambda content, rng: content[:1])),
    Damage("last byte lost", CUT, rewritten(lambda content, rng: content[:-1])),
    Damage("empty", OTHER, instead(bytes)),
    Damage("random bytes", OTHER, rewritten(lambda content, rng: rng.bytes(len(content))), drawn=True),
    Damage("head lost", OTHER, rewritten(lambda content, rng: content[16:])),
    Damage("missing", OTHER, lambda path, rng: path.unlink()),
    Damage("a folder", OTHER, _folder),
    Damage("dangling link", OTHER, _link_to(lambda path: path.with_name("nowhere"))),
    Damage("link to itself", OTHER, _link_to(lambda path: path)),
    Damage("link out of the root", OTHER, _link_to(_outside, keep=True)),
    Damage("a text", OTHER, instead(lambda: b"hello\n")),
    Damage("a web page", OTHER, instead(lambda: b"<!DOCTYPE html><html><body>404 Not Found</body></html>\n")),
    Damage("a pointer", OTHER, instead(lambda: b"version https://git-lfs.github.com/spec/v1\nsize 12345\n")),
    Damage("gzip", OTHER, rewritten(lambda content, rng: gzip.compress(content))),
    Damage("HDF5", OTHER, instead(lambda: b"MATLAB 7.3 MAT-file".ljust(512) + b"\x89HDF\r\n\x1a\n" + bytes(64))),
    *(Damage(f"a {kind}", OTHER, instead(partial(sample, kind))) for kind in STRANGERS),
    *(Damage(f"a {kind}", VALID, instead(partial(sample, kind))) for kind in PICTURES),
]
"""Damage to any file."""
