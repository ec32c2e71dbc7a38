"""Atomic writes."""

import pytest

from htt_lightning.errors import HTTError
from htt_lightning.io.files import atomic_path


def names(folder):
    return [path.name for path in folder.iterdir()]


def interrupt(partial, error):
    partial.write_text("half")
    raise error


def test_atomic_path_appears_when_complete(tmp_path):
    path = tmp_path / "deep" / "down" / "file.txt"
    with atomic_path(path) as partial:
        partial.write_text("half")
        assert not path.exists()
        assert partial.parent == path.parent  # a move between file systems is not atomic
        with partial.open("a") as file:
            file.write(" whole")
    assert path.read_text() == "half whole"
    assert names(path.parent) == ["file.txt"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_atomic_path_keeps_old_file_on_failure(tmp_path, error):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(error, match="stop"), atomic_path(path) as partial:
        interrupt(partial, error("stop"))
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file.txt"]


def test_atomic_path_names_file_in_error(tmp_path):
    (tmp_path / "occupied").write_text("a file where a folder should be")
    path = tmp_path / "occupied" / "file.txt"
    with pytest.raises(HTTError, match=rf"Cannot write {path}: "), atomic_path(path) as partial:
        partial.write_text("never")
    with pytest.raises(HTTError, match=r"file\.txt: No space left"), atomic_path(tmp_path / "file.txt") as partial:
        interrupt(partial, OSError(28, "No space left on device"))
    assert names(tmp_path) == ["occupied"]
