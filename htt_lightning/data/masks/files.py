"""Label masks on disk: the library's own format, and the published files."""

import codecs
import io
import json
import logging
import pickle
from collections.abc import Iterable, Sequence
from itertools import compress
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import torch

from htt_lightning.data.masks.label_mask import (
    FORMAT,
    LabelMask,
    is_protocol,
    natural_key,
    natural_sort,
    unknown_protocol_error,
)
from htt_lightning.data.masks.published import Provenance, find_by_md5
from htt_lightning.errors import ConfigError, DataError, HTTError
from htt_lightning.io.file_names import nfc
from htt_lightning.io.weights import safe_torch_load
from htt_lightning.tasks.base import RELEASE_ALIASES

logger = logging.getLogger(__name__)

_MAKERS = {"scalar": np.float64(0).__reduce__()[0], "_reconstruct": np.zeros(1).__reduce__()[0]}
_SAFE_GLOBALS: dict[str, Any] = {
    "numpy.ndarray": np.ndarray,
    "numpy.dtype": np.dtype,
    "_codecs.encode": codecs.encode,  # of bytes, in older pickles
    **{f"numpy.{core}.multiarray.{name}": maker for core in ("core", "_core") for name, maker in _MAKERS.items()},
}
"""Classes and functions in pickles of numpy's numbers, strings and arrays; the module depends on numpy's version."""

Labels = dict[str, list[str]]
"""Names of the labeled tasks, by image id."""


def read_provenance(path: Path, content: bytes) -> Provenance:
    """Read how the mask in a file was drawn: a published file is known by its MD5, the library's own files state it."""
    if published := find_by_md5(content):
        return published
    try:
        stored = json.loads(content)
    except (ValueError, RecursionError):  # a published form, which states nothing, or a corrupt file
        return Provenance()
    fields = {key: stored[key] for key in Provenance._fields if key in stored} if _is_own_format(stored) else {}
    found = Provenance(**fields)
    texts = isinstance(found.protocol, str) and isinstance(found.origin, str | None)
    if not texts or type(found.seed) not in (int, type(None)):
        raise DataError(f"{path}: 'protocol' and 'origin' must be texts and 'seed' an integer or null, got {fields}.")
    return found


def protocol_of(labels: str) -> str:
    """Return the protocol of ``data.labels``, also of a mask file; ``file`` if it is unknown."""
    if is_protocol(labels):
        return labels
    path = Path(labels)
    try:
        return read_provenance(path, path.read_bytes()).protocol
    except (OSError, HTTError):  # reading the mask will raise the error
        return "file"


def check_label_source(labels: str) -> None:
    """Raise a ``ConfigError`` unless labels are a protocol or an existing file."""
    if not is_protocol(labels) and not Path(labels).is_file():
        if Path(labels).suffix:
            raise ConfigError(f"data.labels must be a protocol or a file that exists, got {labels}.")
        raise unknown_protocol_error(labels)


def read_mask(path: str | Path, ids: Sequence[str], tasks: Sequence[str]) -> LabelMask:
    """Read a label mask: a JSON file written by ``LabelMask.save``, or a published one (``.pth`` or ``.npy``).

    Published files have three forms. A tensor is positional: columns are the canonical tasks in order, and row ``i`` is
    the training image with id ``i``. A table by image id has the same columns. Lists name the images of each task. A
    published form with an unknown MD5 is read with a warning.

    Args:
        path: The file. Nothing in it is executed.
        ids: Ids of all training images of the dataset.
        tasks: Names of the dataset's canonical tasks, in canonical order.

    Returns:
        The mask, with columns in the order of ``tasks``.

    Raises:
        DataError: The file is missing or corrupt, has other tasks or images, or leaves an image without a label.
    """
    path, ids, tasks = Path(path), natural_sort(ids), tuple(tasks)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"The label mask {path} cannot be read: {error.strerror}.") from error
    read_published = {".pth": _from_torch, ".pt": _from_torch, ".npy": _from_lists}.get(path.suffix)
    labels = read_published(path, content, ids, tasks) if read_published else _from_json(path, content, tasks)
    known = {nfc(name): name for name in ids} | {name: name for name in ids}
    labels = {known.get(name) or known.get(nfc(name), name): kept for name, kept in labels.items()}
    missing, unexpected = [i for i in ids if i not in labels], sorted(labels.keys() - set(ids), key=natural_key)
    if missing or unexpected:
        counts = (("missing", missing), ("unexpected", unexpected))
        parts = [f"{len(names)} {kind} (such as {names[0]!r})" for kind, names in counts if names]
        raise DataError(f"{path} must be a mask of the {len(ids)} training images, got {', '.join(parts)}.")
    for name, kept in labels.items():
        if not kept or not set(kept) <= set(tasks):
            given = ", ".join(map(str, kept)) or "none"
            raise DataError(f"{path}: image {name!r} must have labels of {', '.join(tasks)}, got {given}.")
    provenance = read_provenance(path, content)
    if read_published and not provenance.origin:
        logger.warning("%s is not a published label mask.", path)
    labeled = [[task in labels[name] for task in tasks] for name in ids]
    return LabelMask(tasks, ids, np.array(labeled, np.bool_).reshape(len(ids), len(tasks)), *provenance)


def _from_torch(path: Path, content: bytes, ids: Sequence[str], tasks: Sequence[str]) -> Labels:
    """Read a tensor by position, or a table by image id."""
    # Ids in tables are numpy's strings, and rows may be its arrays or numbers, which torch's safe loader refuses.
    types = [type(np.dtype(code)) for code in ("U", *np.typecodes["AllInteger"], "?", "e", "f", "d")]
    try:
        with torch.serialization.safe_globals([*((value, key) for key, value in _SAFE_GLOBALS.items()), *types]):
            stored = safe_torch_load(io.BytesIO(content))
        is_table = "labels_weights" not in stored
        weights = np.array(list(stored.values()), np.float32) if is_table else stored["labels_weights"].numpy()
        names = [str(name) for name in stored] if is_table else list(ids)
    except Exception as error:  # corrupt pickles raise errors of many types
        raise DataError(f"{path} must hold a tensor 'labels_weights', or one number per task by image id.") from error
    if weights.shape != (shape := (len(names), len(tasks))):
        raise DataError(f"{path} must have the shape {shape} of images and {', '.join(tasks)}, got {weights.shape}.")
    if not np.isin(weights, (0, 1)).all():
        raise DataError(f"{path} must contain only 0 and 1.")
    if not is_table and list(ids) != [str(i) for i in range(len(ids))]:
        other = next(name for i, name in enumerate(ids) if name != str(i))
        raise DataError(f"{path} numbers its images and does not fit the id {other!r}. Use a mask that names images.")
    return {name: list(compress(tasks, row)) for name, row in zip(names, weights, strict=True)}


class _SafeUnpickler(pickle.Unpickler):
    """Unpickle numpy arrays, strings, lists and dicts, and refuse everything else."""

    def find_class(self, module: str, name: str) -> Any:
        """Return a class or function of numpy arrays."""
        if (found := _SAFE_GLOBALS.get(f"{module}.{name}")) is None:
            raise pickle.UnpicklingError(f"{module}.{name} is not admitted")
        return found


def _from_lists(path: Path, content: bytes, ids: Sequence[str], tasks: Sequence[str]) -> Labels:
    """Read image ids by task, from an array without axes that holds one dict."""
    file = io.BytesIO(content)
    try:
        if np.lib.format.read_magic(file) != (1, 0) or np.lib.format.read_array_header_1_0(file)[2] != np.dtype("O"):
            raise ValueError("not an array of objects")
        stored = _SafeUnpickler(file, encoding="latin1").load().item()
        images = {RELEASE_ALIASES.get(task, task): [str(name) for name in names] for task, names in stored.items()}
    except Exception as error:  # corrupt pickles raise errors of many types
        raise DataError(f"{path} must be a numpy file with a list of image ids for each task ({error}).") from error
    _check_tasks(path, images, tasks)
    labels: Labels = {}
    for task, names in images.items():
        for name in names:
            labels.setdefault(name, []).append(task)
    return labels


def _from_json(path: Path, content: bytes, tasks: Sequence[str]) -> Labels:
    try:
        mask = json.loads(content, object_pairs_hook=_without_repeated_keys)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} must be a label mask in JSON ({error}).") from error
    if not _is_own_format(mask):
        raise DataError(f"{path} must be a label mask of format {FORMAT}.")
    names, labels = mask.get("tasks"), mask.get("labels")
    if not _is_names(names) or not isinstance(labels, dict) or not all(map(_is_names, labels.values())):
        raise DataError(f"{path} must have 'tasks' as a list of names and 'labels' as a list of names by image id.")
    _check_tasks(path, names, tasks)
    return labels


def _is_own_format(mask: Any) -> TypeGuard[dict[str, Any]]:
    return isinstance(mask, dict) and mask.get("format") == FORMAT


def _check_tasks(path: Path, found: Iterable[str], tasks: Sequence[str]) -> None:
    if set(found) != set(tasks):
        raise DataError(f"{path} must have the tasks {', '.join(tasks)} of the dataset, got {', '.join(found)}.")


def _is_names(value: Any) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(name, str) for name in value)


def _without_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse a repeated key, which JSON would overwrite."""
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a key is repeated")
    return dict(pairs)
