"""Error classes, groups of errors, and hints."""

import pickle
from pathlib import Path

import pytest

from htt_lightning.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    DataErrorGroup,
    HTTError,
    combine_errors,
    did_you_mean,
    missing_extra,
    missing_file,
)

LAYOUT = "root/\n    a"


def test_a_group_shows_three_errors_and_has_all():
    errors = [DataError(f"problem {k}") for k in range(5)]
    group = combine_errors([errors[0], combine_errors(errors[1:]), errors[0]])
    assert str(group).splitlines() == ["problem 0", "problem 1", "problem 2", "... and 2 more"]
    assert group.errors == tuple(errors)
    assert len(combine_errors(errors, shown=None).message.splitlines()) == 5
    assert combine_errors(errors[:1]) is errors[0]


def test_a_group_is_caught_as_error_and_by_type():
    with pytest.raises(HTTError):
        raise combine_errors([DataError("a"), ConfigError("b")])
    caught = []
    try:
        raise combine_errors([DataError("a"), ConfigError("b")])
    except* ConfigError as found:
        caught += found.exceptions
    except* DataError as found:
        caught += found.exceptions
    assert [str(error) for error in caught] == ["b", "a"]


def test_the_expected_layout_is_shown_once_if_files_are_missing():
    missing = [DataError(f"{name} is missing", Path(name), LAYOUT) for name in ("a", "b")]
    assert str(missing[0]) == f"a is missing\nExpected layout of the dataset:\n{LAYOUT}"
    assert str(combine_errors(missing, expected_layout=LAYOUT)).count(LAYOUT) == 1
    assert LAYOUT in str(combine_errors([DataError("a", Path("a")), DataError("b")], expected_layout=LAYOUT))
    assert LAYOUT not in str(combine_errors([DataError("a"), DataError("b")], expected_layout=LAYOUT))


def test_errors_survive_pickling():
    error = DataError("a is missing", Path("a"), LAYOUT)
    group = combine_errors([error, CheckpointError("b")])
    for one in (error, group):
        again = pickle.loads(pickle.dumps(one))
        assert (type(again), str(again), again.missing_path) == (type(one), str(one), one.missing_path)
    assert isinstance(again, DataErrorGroup)
    assert [str(one) for one in again.errors] == [str(error), "b"]


def test_did_you_mean_names_the_closest():
    assert did_you_mean("semsegg", ["depth", "semseg"]) == " Did you mean 'semseg'?"
    assert did_you_mean("xyz", ["depth", "semseg"]) == ""


def test_missing_extra_says_how_to_install():
    assert 'pip install "htt-lightning[report]"' in str(missing_extra("The figure needs matplotlib", "report"))


def test_missing_file_names_path_and_next_step():
    error = missing_file(Path("a/1.npy"))
    assert (str(error), error.missing_path) == ("a/1.npy is missing. Copy or unpack it again.", Path("a/1.npy"))
    assert isinstance(error, DataError)
