"""Atomic writes, checks of output paths, and errors of reading."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from htt_lightning.errors import ConfigError, DataError, HTTError, missing_file

PARTIAL = ".partial"
"""Suffix of files that are being written. One that stays behind belongs to a killed process."""


def check_output_dir(folder: Path, overwrite: bool) -> None:
    """Check that a command may write into a folder: it is empty or missing, unless ``overwrite``."""
    if folder.is_file():
        raise ConfigError(f"--out must be a folder, got the file {folder}.")
    if not overwrite and folder.is_dir() and any(folder.iterdir()):
        raise ConfigError(f"--out must be an empty folder, got {folder}. Choose another one, or add --overwrite true.")


@contextmanager
def reading(path: Path, problem: str) -> Iterator[None]:
    """Turn errors of a block that reads a file into a ``DataError`` that names it; ``problem`` follows "corrupt or"."""
    try:
        yield
    except HTTError:
        raise
    except FileNotFoundError:
        raise missing_file(path) from None
    except Exception as error:  # corrupt files raise errors of many types
        raise DataError(f"{path} is corrupt or {problem} ({error}). Copy or unpack it again.") from error


@contextmanager
def atomic_path(path: Path, durable: bool = False) -> Iterator[Path]:
    """Write a file atomically: a temporary path replaces ``path`` when the block succeeds.

    A killed process leaves the old file or the new one, never half of one. After a loss of power, a renamed file can be
    empty unless ``durable`` flushes it to the disk first, which is slow.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
            if durable:
                with partial.open("r+b") as file:
                    os.fsync(file.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise HTTError(f"Cannot write {path}: {error.strerror or error}.") from error


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, in UTF-8."""
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8")


def is_outside(path: Path, root: Path) -> bool:
    """Return True if a path, with its links resolved, is outside a folder."""
    try:
        return not path.resolve().is_relative_to(root.resolve())
    except (OSError, ValueError, RuntimeError):  # circular links, or characters that no path may have
        return True


def remove_partial_files(folder: Path) -> None:
    """Delete the files that killed processes left half written in a folder tree."""
    for path in folder.rglob(f".*{PARTIAL}"):
        path.unlink(missing_ok=True)
