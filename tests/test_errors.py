import pickle
from pathlib import Path

import pytest

from htt_lightning.errors import (
    HTTError,
    collected,
    did_you_mean,
    missing_extra,
    raise_or_collect,
    several,
    sound,
    tolerated,
)

TREE = "root/\n    a"


def test_one_error_for_several_names_three_and_has_all():
    errors = [HTTError(f"fault {k}") for k in range(5)]
    error = several([errors[0], several(errors[1:]), errors[0]])
    assert str(error) == "fault 0\nfault 1\nfault 2\n... and 2 more"
    assert [fault.message for fault in error.faults] == [f"fault {k}" for k in range(5)]
    assert str(several(errors, shown=None)).splitlines() == [f"fault {k}" for k in range(5)]


def test_the_tree_is_shown_once_and_only_where_something_is_missing():
    lost = HTTError("a is missing", missing=Path("a"), trees=[TREE])
    assert str(lost) == f"a is missing\nThe dataset must read:\n{TREE}"
    assert lost.message == "a is missing"
    assert str(several([lost, HTTError("b is missing", missing=Path("b"))], tree=TREE)).count(TREE) == 1
    assert TREE not in str(several([HTTError("b is broken")], tree=TREE))
    assert several([lost]).missing == Path("a")


def test_an_error_is_its_own_fault_and_travels_between_processes():
    error = HTTError("a is missing", missing=Path("a"), trees=[TREE])
    assert error.faults == (error,)
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.missing, again.trees) == (str(error), error.missing, (TREE,))


def test_errors_are_raised_unless_they_are_collected():
    with pytest.raises(HTTError, match="first"):
        raise_or_collect(HTTError("first"))
    with pytest.raises(HTTError, match="second"), tolerated():
        raise HTTError("second")
    with collected() as errors:
        assert sound()
        raise_or_collect(HTTError("first"))
        with tolerated():
            raise HTTError("second")
        with pytest.raises(ZeroDivisionError), tolerated():
            raise ZeroDivisionError
        assert not sound()
    assert sound()
    assert list(map(str, errors)) == ["first", "second"]


def test_a_hint_names_what_is_nearest_if_anything_is():
    assert did_you_mean("dpeth", ["semseg", "depth"]) == " Did you mean 'depth'?"
    assert did_you_mean("cheese", ["semseg", "depth"]) == ""


def test_a_missing_extra_is_one_sentence_with_what_to_run():
    assert str(missing_extra("X needs y", "export")) == (
        'X needs y, which cannot be imported: pip install "htt-lightning[export]".'
    )
