"""Read MATLAB files."""

from pathlib import Path
from typing import Any

from scipy.io import loadmat

from htt_lightning.io.files import reading


def read_mat(path: Path, key: str) -> Any:
    """Read a variable of a MATLAB file (versions 5 to 7.2): structs as dicts, arrays without axes of length 1."""
    with reading(path, f"has no variable {key}"), path.open("rb") as file:
        return loadmat(file, simplify_cells=True, variable_names=[key])[key]


def as_struct_list(value: Any) -> list[Any]:
    """Return an array of structs read by ``read_mat`` as a list; scipy unpacks an array of one struct."""
    return [value] if isinstance(value, dict) else list(value)
