"""Find files whatever the Unicode form of their names (NFC or NFD) and the case of their suffixes."""

import re
from collections.abc import Sequence
from glob import glob
from os.path import lexists
from pathlib import Path, PurePath, PurePosixPath
from unicodedata import normalize

SHOWN = 3
"""Number of names in a message."""


def nfc(text: str) -> str:
    r"""Return a text in NFC, in which an accented letter is one character; macOS writes names in NFD.

    Examples:
        >>> len(nfc("e\u0301")), nfc("e\u0301") == "\u00e9"
        (1, True)
    """
    return normalize("NFC", text)


def shorten(names: Sequence[str]) -> str:
    """List the first names, and count the others.

    Examples:
        >>> shorten(["a", "b", "c", "d", "e"])
        'a, b, c and 2 more'
    """
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def glob_files(pattern: str, root: Path | None = None) -> list[str]:
    """Find files and broken links that match a pattern in any Unicode form and with any case of its suffix.

    Hidden files match no wildcard. Paths are relative to ``root`` if there is one.
    """
    suffix = re.sub("[a-zA-Z]", lambda letter: f"[{letter[0].lower()}{letter[0].upper()}]", _suffix(pattern))
    pattern = pattern.removesuffix(_suffix(pattern)) + suffix
    forms = {pattern, nfc(pattern), normalize("NFD", pattern)}
    found = {path for form in forms for path in glob(form, root_dir=root, recursive=True)}  # noqa: PTH207  # Path.glob finds hidden files too
    return sorted(path for path in found if not Path(root or "", path).is_dir())


def glob_other_suffixes(pattern: str, root: Path | None = None) -> list[str]:
    """Find the files that differ in their suffix alone from those that a pattern matches."""
    if not (suffix := _suffix(pattern)):
        return []
    matching = set(glob_files(pattern, root))
    return [path for path in glob_files(pattern.removesuffix(suffix) + ".*", root) if path not in matching]


def _suffix(pattern: str) -> str:
    """Return the suffix of a pattern; empty if it has wildcards."""
    suffix = PurePosixPath(PurePath(pattern).as_posix()).suffix
    return "" if re.search(r"[*?\[\]]", suffix) else suffix


class FileFinder:
    """Find files by names that may differ in Unicode form or in the case of the suffix; folders are listed once."""

    def __init__(self) -> None:
        self._listings: dict[Path, dict[str, str]] = {}

    def find(self, path: Path) -> Path | None:
        """Return the file or broken link with the name of a path, or with an equivalent name; None if there is none."""
        if lexists(path):
            return path
        folder = path.parent if path.parent.is_dir() else self.find(path.parent)
        if folder is None or path.parent == path or not folder.is_dir():
            return None
        if folder not in self._listings:
            names = sorted((child.name for child in folder.iterdir()), reverse=True)
            self._listings[folder] = {_key(name): name for name in names}
        found = self._listings[folder].get(_key(path.name))
        return folder / found if found else None


def _key(name: str) -> str:
    plain = PurePosixPath(nfc(name))
    return plain.name.removesuffix(plain.suffix) + plain.suffix.lower()
