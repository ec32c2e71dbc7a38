"""Label masks on disk: our own format, and the published files (protocol.md 2.1)."""

import codecs
import io
import json
import logging
import pickle
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, TypeGuard

import numpy as np
import torch

from htt_lightning.data.masks.label_mask import (
    FORMAT,
    LabelMask,
    is_protocol,
    joined,
    natural_key,
    natural_sort,
    unknown_protocol_error,
)
from htt_lightning.data.masks.published import find_by_md5
from htt_lightning.errors import HTTError
from htt_lightning.io.weights import safe_torch_load
from htt_lightning.tasks.base import RELEASE_ALIASES

logger = logging.getLogger(__name__)

_SCALAR: Any = np.float64(0).__reduce__()[0]
"""The function that pickles of numpy's numbers and strings call; it has moved between numpy's releases."""

_ARRAY: Any = np.zeros(1).__reduce__()[0]
"""The one that pickles of its arrays call."""

Labels = dict[str, list[str]]
"""Names of the tasks that each image keeps its label of, by image id."""


class Provenance(NamedTuple):
    """What a mask file says about itself; see ``LabelMask``."""

    protocol: str = "file"
    seed: int | None = None
    origin: str | None = None


def provenance(path: Path, content: bytes) -> Provenance:
    """How the mask in a file was drawn: a published file is known by its MD5, and one of ours says it.

    Raises:
        HTTError: One of ours says it in another form.
    """
    if known := find_by_md5(content):
        return Provenance(known.protocol, origin=known.name)
    try:
        stored = json.loads(content)
    except (ValueError, RecursionError):  # another form, which says nothing, or a damaged file
        return Provenance()
    said = Provenance(**{key: stored[key] for key in Provenance._fields if key in stored} if _is_ours(stored) else {})
    texts = isinstance(said.protocol, str) and isinstance(said.origin, str | None)
    if not texts or type(said.seed) not in (int, type(None)):
        raise HTTError(f"{path}: 'protocol' and 'origin' must be texts, and 'seed' a whole number or null.")
    return said


def protocol_of(labels: str) -> str:
    """The protocol that labels follow, also those of a file of ours or a published one; ``file`` if it says nothing."""
    if is_protocol(labels):
        return labels
    path = Path(labels)
    try:
        return provenance(path, path.read_bytes()).protocol
    except (OSError, HTTError):  # whoever reads the mask will say what is wrong
        return "file"


def check_label_source(labels: str) -> None:
    """Refuse what can be neither a protocol nor a mask file, before any work is done.

    Raises:
        HTTError: It is no protocol, and there is no such file.
    """
    if is_protocol(labels) or Path(labels).is_file():
        return
    raise (
        HTTError(f"Cannot read the label mask {labels}: no such file.")
        if Path(labels).suffix
        else unknown_protocol_error(labels)
    )


def read_mask(path: str | Path, ids: Sequence[str], tasks: Sequence[str]) -> LabelMask:
    """Read a label mask: a JSON file as ``LabelMask.save`` writes it, or a published one (``.pth`` or ``.npy``).

    Published files come in three forms (protocol.md 2.1). A tensor is positional: columns are the canonical tasks in
    order and row ``i`` is the training image with id ``i``. A table by image id has the same columns. Lists name the
    images of each task. A published form with an unknown MD5 is read with a warning in the log.

    Args:
        path: The file. Nothing in it is ever executed.
        ids: Ids of all training images of the data set.
        tasks: The data set's canonical tasks by name, in canonical order.

    Returns:
        The mask, columns in the order of ``tasks``. Protocol, seed and origin are those that the file names, or those
        of the published mask that it is.

    Raises:
        HTTError: The file is missing or damaged, is over other tasks or images, or leaves an image without a label.
    """
    path, ids, tasks = Path(path), natural_sort(ids), tuple(tasks)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise HTTError(f"Cannot read the label mask {path}: {error.strerror}.") from error
    ours = path.suffix not in _READERS
    labels = _from_json(path, content, tasks) if ours else _READERS[path.suffix](path, content, ids, tasks)
    missing, unexpected = [i for i in ids if i not in labels], sorted(labels.keys() - set(ids), key=natural_key)
    if missing or unexpected:
        counts = (("missing", missing), ("unexpected", unexpected))
        parts = [f"{len(names)} {what} (such as {names[0]!r})" for what, names in counts if names]
        raise HTTError(f"{path} is not a mask of the data set's {len(ids)} training images: {', '.join(parts)}.")
    for name, kept in labels.items():
        if not set(kept) <= set(tasks):
            raise HTTError(f"{path}: image {name!r} lists unknown tasks {joined(sorted(set(kept) - set(tasks)))}.")
        if not kept:
            raise HTTError(f"{path}: image {name!r} has no label; every image needs one.")
    drawn = provenance(path, content)
    if not ours and not drawn.origin:
        logger.warning("%s is no published label mask.", path)
    labeled = [[task in labels[name] for task in tasks] for name in ids]
    return LabelMask(tasks, ids, np.array(labeled, np.bool_).reshape(len(ids), len(tasks)), *drawn)


def _from_torch(path: Path, content: bytes, ids: Sequence[str], tasks: Sequence[str]) -> Labels:
    """A tensor by position, or a table by image id."""
    # Ids in the tables are numpy's strings and rows may be its arrays or numbers, which torch does not admit by itself.
    makers = {"scalar": _SCALAR, "_reconstruct": _ARRAY}
    made = [(make, f"numpy.{core}.multiarray.{name}") for core in ("core", "_core") for name, make in makers.items()]
    types = [type(np.dtype(code)) for code in ("U", *np.typecodes["AllInteger"], "?", "e", "f", "d")]
    try:
        with torch.serialization.safe_globals([*made, np.ndarray, np.dtype, *types]):
            stored = safe_torch_load(io.BytesIO(content))
        table = "labels_weights" not in stored
        weights = np.array(list(stored.values()), np.float32) if table else stored["labels_weights"].numpy()
        names = [str(name) for name in stored] if table else list(ids)
        if weights.ndim != 2:
            raise ValueError("not a row per image")
    except Exception as error:  # damaged pickles raise nearly anything
        raise HTTError(
            f"{path} is no label mask: expected a torch file with a tensor 'labels_weights', or with a list of one "
            "number per task for each image id."
        ) from error
    what = "its table" if table else "'labels_weights'"
    if weights.shape != (len(names), len(tasks)):
        raise HTTError(
            f"{path}: {what} has shape {weights.shape}, expected {(len(names), len(tasks))}: "
            f"{len(names)} training images and the tasks {joined(tasks)}."
        )
    if not np.isin(weights, (0, 1)).all():
        raise HTTError(f"{path}: {what} must hold only 0 and 1.")
    other = next((name for i, name in enumerate(ids) if name != str(i)), None)
    if other is not None and not table:
        raise HTTError(
            f"{path} numbers its images 0 to {len(ids) - 1}, so it does not say which one is {other!r}; "
            "use a mask file that names its images."
        )
    return {
        name: [task for task, keep in zip(tasks, row, strict=True) if keep]
        for name, row in zip(names, weights, strict=True)
    }


class _SafeUnpickler(pickle.Unpickler):
    """Reads numpy arrays, strings, lists and dicts, and refuses whatever else a pickle may ask for."""

    ADMITTED: ClassVar[Mapping[str, Any]] = {
        "ndarray": np.ndarray, "dtype": np.dtype, "scalar": _SCALAR, "_reconstruct": _ARRAY,
    }  # fmt: skip

    def find_class(self, module: str, name: str) -> Any:
        """A class or function that arrays are made of."""
        if module in ("numpy", "numpy.core.multiarray", "numpy._core.multiarray") and name in self.ADMITTED:
            return self.ADMITTED[name]
        if (module, name) == ("_codecs", "encode"):  # of bytes, in older pickles
            return codecs.encode
        raise pickle.UnpicklingError(f"{module}.{name} is not admitted")


def _from_lists(path: Path, content: bytes, ids: Sequence[str], tasks: Sequence[str]) -> Labels:
    """Image ids by task, in an array without axes that holds one dict."""
    file = io.BytesIO(content)
    try:
        if np.lib.format.read_magic(file) != (1, 0) or np.lib.format.read_array_header_1_0(file)[2] != np.dtype("O"):
            raise ValueError("not an array of objects")
        stored = _SafeUnpickler(file, encoding="latin1").load().item()
        images = {RELEASE_ALIASES.get(task, task): [str(name) for name in names] for task, names in stored.items()}
    except Exception as error:  # damaged pickles raise nearly anything
        raise HTTError(
            f"{path} is no label mask: expected a numpy file with a list of image ids for each task ({error})."
        ) from error
    _same_tasks(path, images, tasks)
    labels: dict[str, list[str]] = {}
    for task, names in images.items():
        for name in names:
            labels.setdefault(name, []).append(task)
    return labels


_READERS: Mapping[str, Callable[[Path, bytes, Sequence[str], Sequence[str]], Labels]] = MappingProxyType(
    {".pth": _from_torch, ".pt": _from_torch, ".npy": _from_lists}
)
"""Readers of the published files by suffix."""


def _from_json(path: Path, content: bytes, tasks: Sequence[str]) -> Labels:
    try:
        mask = json.loads(content, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise HTTError(f"{path} is no label mask: no valid JSON ({error}).") from error
    if not _is_ours(mask):
        raise HTTError(f"{path} is no label mask of format {FORMAT}.")
    named, labels = mask.get("tasks"), mask.get("labels")
    if not _is_names(named) or not isinstance(labels, dict) or not all(map(_is_names, labels.values())):
        raise HTTError(f"{path}: expected 'tasks' as a list of names and 'labels' as a list of names per image id.")
    _same_tasks(path, named, tasks)
    return labels


def _is_ours(mask: Any) -> TypeGuard[dict[str, Any]]:
    return isinstance(mask, dict) and mask.get("format") == FORMAT


def _same_tasks(path: Path, named: Iterable[str], tasks: Sequence[str]) -> None:
    if set(named) != set(tasks):
        raise HTTError(
            f"{path} is over the tasks {joined(named)}, but the data set has {joined(tasks)}: "
            f"they differ in {joined(sorted(set(named) ^ set(tasks)))}."
        )


def _is_names(value: Any) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """JSON object in which a repeated key is an error rather than a silent overwrite."""
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a key is repeated")
    return dict(pairs)
