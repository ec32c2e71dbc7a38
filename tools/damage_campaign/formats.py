"""Damage to files of one format: wrong content in a readable file."""

import json
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy.io import loadmat, savemat

from tools.damage_campaign.damage import OTHER, VALID, Bomb, Damage, put


def array(name: str, what: str, change: Callable[[np.ndarray], Any]) -> Damage:
    """Change the array of a ``.npy`` file."""

    def apply(path: Path, rng: np.random.Generator) -> None:
        changed = change(np.load(path))
        with path.open("wb") as file:
            np.save(file, changed, allow_pickle=True)

    return Damage(name, what, apply)


def holding(value: float) -> Callable[[np.ndarray], np.ndarray]:
    """Set one element of an array."""

    def change(stored: np.ndarray) -> np.ndarray:
        changed = stored.astype(np.float64)
        changed[(0,) * changed.ndim] = value
        return changed

    return change


def _announced(path: Path, rng: np.random.Generator) -> None:
    """Write a header of an array larger than any memory."""
    with path.open("wb") as file:
        header = {"descr": "<f8", "fortran_order": False, "shape": (10**9, 10**9)}
        np.lib.format.write_array_header_1_0(file, header)
        file.write(bytes(64))


ARRAYS = [
    *(
        array(f"type {kind}", OTHER, lambda stored, kind=kind: stored.astype(kind))
        for kind in ("complex128", "U8", "object")
    ),
    array("type float16", VALID, lambda stored: stored.astype(np.float16)),
    array("type >f8", VALID, lambda stored: stored.astype(">f8")),
    array("Fortran's order", VALID, np.asfortranarray),
    array("a record", OTHER, lambda stored: np.zeros(stored.shape, [("x", "f4"), ("y", "i4")])),
    array("no axis", OTHER, lambda stored: stored.reshape(-1)[0]),
    array("one axis", OTHER, np.ravel),
    array("four axes", OTHER, lambda stored: stored[None, None]),
    array("no row", OTHER, lambda stored: stored[:0]),
    array("a row too few", OTHER, lambda stored: stored[1:]),
    array("another first axis", OTHER, lambda stored: np.moveaxis(stored, -1, 0)),
    *(array(f"{value:g} in it", VALID, holding(value)) for value in (np.nan, -np.inf, 1e300, -7, 2.5)),
    Damage("huge header", OTHER, _announced),
]
"""Damage to ``.npy`` files; values that are not finite are missing depth and normals, and an error elsewhere."""


def picture(name: str, what: str, change: Callable[[Image.Image], Image.Image], **options: Any) -> Damage:
    """Replace an image, by default in the same format."""

    def apply(path: Path, rng: np.random.Generator) -> None:
        with Image.open(path) as image:
            image.load()
            changed, kind = change(image), image.format
        path.unlink()
        changed.save(path, **{"format": kind, **options})

    return Damage(name, what, apply)


def _huge(path: Path, rng: np.random.Generator) -> None:
    """Write a PNG whose header says 60000 x 60000."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 0, 0, 0, 0))
    put(path, b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b""))


def _clear(image: Image.Image) -> Image.Image:
    clear = image.convert("RGBA")
    clear.putalpha(7)
    return clear


_TURNED = Image.Exif()
_TURNED[0x0112] = 6
_FRAMES = {"format": "GIF", "save_all": True, "append_images": [Image.new("P", (8, 6), 3)]}

PICTURES = [
    picture("one pixel", VALID, lambda image: image.resize((1, 1))),
    picture("another size", VALID, lambda image: image.resize((image.width + 3, image.height))),
    picture("transparent", VALID, _clear, format="PNG"),
    picture("16 bits", VALID, lambda image: Image.new("I;16", image.size, 300), format="PNG"),
    picture("floats", VALID, lambda image: image.convert("F"), format="TIFF"),
    picture("CMYK", VALID, lambda image: image.convert("CMYK"), format="JPEG"),
    picture("animated", VALID, lambda image: image.convert("P"), **_FRAMES),
    picture("one bit deep", VALID, lambda image: image.convert("1"), format="PNG"),
    picture("palette", VALID, lambda image: image.convert("P"), format="PNG"),
    picture("turned", VALID, lambda image: image, exif=_TURNED),
    Damage("huge", OTHER, _huge),
]
"""Damage to images; each is a valid image of some kind."""


def matlab(name: str, what: str, change: Callable[[Any], Any]) -> Damage:
    """Change the variable of a MATLAB file."""

    def apply(path: Path, rng: np.random.Generator) -> None:
        stored = loadmat(path, appendmat=False)
        key = next(key for key in stored if not key.startswith("__"))
        savemat(path, {key: change(stored[key])}, appendmat=False)

    return Damage(name, what, apply)


MATLAB = [
    matlab("a text in it", OTHER, lambda stored: "hello"),
    matlab("a number in it", OTHER, lambda stored: 3.5),
    matlab("another struct", OTHER, lambda stored: {"objects": {"x": 1}}),
    matlab("empty cells", OTHER, lambda stored: np.zeros((0, 0), object)),
    matlab("complex", OTHER, lambda stored: np.ones((3, 4)) * 1j),
    matlab("NaN in it", OTHER, lambda stored: np.full((3, 4), np.nan)),
    matlab("1e300 in it", OTHER, lambda stored: np.full((3, 4), 1e300)),
    matlab("three axes", OTHER, lambda stored: np.ones((3, 4, 5))),
    matlab("two objects of one", VALID, lambda stored: stored),
]
"""Damage to ``.mat`` files."""

WRONG: dict[str, Any] = {
    "null": None,
    "a text": "hello",
    "a number": -3.5,
    "a huge number": 10**30,
    "NaN": float("nan"),
    "a list": [[1]],
    "an object": {"x": {}},
    "false": False,
}
"""Values that replace others."""


def places(stored: Any, depth: int, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Iterate over the paths of values in nested dicts and lists, with only the first of each list."""
    items = stored.items() if isinstance(stored, dict) else list(enumerate(stored))[:1] if _is_list(stored) else ()
    for key, value in items:
        yield (*at, key)
        if depth > 1:
            yield from places(value, depth - 1, (*at, key))


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def changed(stored: Any, at: tuple[Any, ...], value: Any) -> Any:
    """Replace one of nested values; the value ``KeyError`` deletes it."""
    new = _lists(stored)
    inner = new
    for key in at[:-1]:
        inner = inner[key]
    if value is KeyError:
        del inner[at[-1]]
    else:
        inner[at[-1]] = value
    return new


def _lists(value: Any) -> Any:
    """Copy nested dicts and lists, but not tensors."""
    if isinstance(value, dict):
        return {key: _lists(inner) for key, inner in value.items()}
    return [_lists(inner) for inner in value] if _is_list(value) else value


def nested(
    stored: Any, write: Callable[[Any, Path], None], depth: int = 2, values: dict[str, Any] = WRONG
) -> list[Damage]:
    """Delete every key, and replace every value by every other kind of value."""
    return [
        Damage(f"{'.'.join(map(str, at))}: {name}", VALID, _writes(stored, at, value, write))
        for at in places(stored, depth)
        for name, value in ({"lost": KeyError} | values).items()
    ]


def _writes(stored: Any, at: tuple[Any, ...], value: Any, write: Callable[[Any, Path], None]) -> Any:
    def apply(path: Path, rng: np.random.Generator) -> None:
        path.unlink()
        write(changed(stored, at, value), path)

    return apply


def write_json(value: Any, path: Path) -> None:
    """Write JSON, with NaN as Python writes it."""
    path.write_text(json.dumps(value))


def checkpoint(name: str, what: str, change: Callable[[dict[str, Any]], Any]) -> Damage:
    """Change the content of a torch file."""

    def apply(path: Path, rng: np.random.Generator) -> None:
        stored = torch.load(path, weights_only=True)
        path.unlink()
        torch.save(change(stored), path)

    return Damage(name, what, apply)


def weights(change: Callable[[dict[str, Any], str], Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Change the first weight of a checkpoint."""

    def apply(stored: dict[str, Any]) -> dict[str, Any]:
        state = stored.get("state_dict") or stored.get("model") or stored
        change(state, next(name for name, value in state.items() if value.ndim == 4 and value.numel() > 3))
        return stored

    return apply


def _fill(value: float) -> Callable[[dict[str, Any], str], None]:
    return lambda state, name: state.update({name: torch.full_like(state[name], value)})


WEIGHTS = [
    checkpoint("a weight lost", OTHER, weights(lambda state, name: state.pop(name))),
    checkpoint("a weight more", OTHER, weights(lambda state, name: state.update({"another": torch.zeros(3)}))),
    checkpoint("a weight's shape", OTHER, weights(lambda state, name: state.update({name: state[name][..., :-1]}))),
    checkpoint("a weight is a text", OTHER, weights(lambda state, name: state.update({name: "hello"}))),
    checkpoint("a weight is complex", OTHER, weights(lambda s, name: s.update({name: s[name].to(torch.complex64)}))),
    checkpoint("a weight is sparse", OTHER, weights(lambda s, name: s.update({name: s[name].to_sparse()}))),
    checkpoint("a weight is NaN", OTHER, weights(_fill(np.nan))),
    checkpoint("a weight is infinite", OTHER, weights(_fill(np.inf))),
    checkpoint("weights in float64", VALID, weights(lambda s, name: s.update({name: s[name].double()}))),
    checkpoint("a trusted pickle", OTHER, lambda stored: {**stored, "more": Bomb()}),
    checkpoint("a list", OTHER, lambda stored: [1, 2, 3]),
    checkpoint("a tensor", OTHER, lambda stored: torch.zeros(3)),
]
"""Damage to checkpoints."""


def text(name: str, what: str, change: Callable[[str], str], encoding: str = "utf-8") -> Damage:
    """Change the text of a file."""
    return Damage(name, what, lambda path, rng: put(path, change(path.read_text("utf-8")).encode(encoding)))


TEXTS = [
    text("UTF-16", OTHER, str, "utf-16"),
    text("a byte order mark", VALID, lambda content: "\ufeff" + content),
    text("Windows' line ends", OTHER, lambda content: content.replace("\n", "\r\n")),
    text("a line twice", OTHER, lambda content: content + content.splitlines()[-1] + "\n"),
    text("a zero byte", OTHER, lambda content: content[:-1] + "\0\n"),
    text("a path out of the root", OTHER, lambda content: content + "../outside\n"),
    text("an absolute path", OTHER, lambda content: content + "/etc/passwd\n"),
    text("letters of another script", OTHER, lambda content: content + "Größe_图\n"),
    text("a line of 10^6 letters", OTHER, lambda content: content + "a" * 10**6 + "\n"),
]
"""Damage to lists of ids and tables."""
