"""Reading MATLAB files."""

from pathlib import Path
from typing import Any

from scipy.io import loadmat

from htt_lightning.errors import HTTError

HEADER = 128
"""Bytes before the first element."""


def read_mat(path: Path, key: str) -> Any:
    """A variable of a MATLAB file, structs as dicts and arrays without axes of length 1.

    Raises:
        HTTError: The file is missing or damaged, or has no such variable.
    """
    look_at_mat(path)
    try:
        return loadmat(path, appendmat=False, simplify_cells=True, variable_names=[key])[key]
    except Exception as error:  # damaged files fail in many ways
        raise HTTError(f"{path} is damaged or has no {key} ({error!r}); copy or unpack it again") from error


def look_at_mat(path: Path) -> None:
    """Follow the lengths of a MATLAB file's elements to its end, which costs next to nothing.

    Raises:
        HTTError: The file is missing or truncated, or no MATLAB file of version 5 to 7.2.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise HTTError(f"{path} is missing; copy or unpack it again", missing_path=path) from None
    except OSError as error:
        raise HTTError(f"{path} cannot be read ({error.strerror}); copy or unpack it again") from error
    little, end = content[124:HEADER] == b"\0\1IM", HEADER
    while end + 8 <= len(content):
        end += 8 + int.from_bytes(content[end + 4 : end + 8], "little" if little else "big")
    if not (little or content[124:HEADER] == b"\1\0MI") or len(content) != end or end == HEADER:
        raise HTTError(f"{path} is truncated or no MATLAB file of version 5 to 7.2; copy or unpack it again")


def as_struct_list(value: Any) -> list[Any]:
    """An array of structs as ``read_mat`` returns it; one alone comes without its array."""
    return [value] if isinstance(value, dict) else list(value)
