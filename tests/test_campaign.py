"""A short campaign of damaged input; ``python -m tests.campaign --rounds 20`` makes a long one, and prints a table."""

import logging
import pickle
import sys
import time

import pytest

from htt_lightning.errors import HTTError
from tests.campaign import round as going
from tests.campaign.__main__ import READERS
from tests.campaign.damage import ANY, sample
from tests.campaign.reader import OPEN, SEALED, Reader, Target
from tests.campaign.round import FAULT, REFUSED, SAME, UNSEEN, cases, run, table

QUICK, SLOW = 0.1, 0.02
"""Shares of the damages that the suite tries."""


MARKED = [pytest.param(reader, id=reader.name, marks=[pytest.mark.slow] * reader.slow) for reader in READERS]


@pytest.mark.parametrize("reader", MARKED)
def test_damaged_input_is_read_as_if_whole_or_refused_by_name(reader, monkeypatch):
    logging.disable(logging.CRITICAL)
    monkeypatch.setattr(sys, "argv", ["htt"])
    try:
        outcomes = run(reader, cases(reader, SLOW if reader.slow else QUICK, seed=0))
    finally:
        logging.disable(logging.NOTSET)
    assert outcomes
    assert [outcome for outcome in outcomes if outcome.kind == FAULT] == []


BY_NAME = {damage.name: damage for damage in ANY}


def come_of(read, damage="one bit", notices=SEALED):
    """What the campaign says of a reader that does this with a text."""
    reader = Reader("x", lambda root: (root / "x.txt").write_bytes(b"x" * 100), read, [Target("x.txt", ANY, notices)])
    ((_, _, kind, said),) = run(reader, [(reader.targets[0], BY_NAME[damage])])
    return kind, said


def content(root):
    return {"x": (root / "x.txt").read_bytes()}


def refusing(message, error=HTTError):
    def read(root):
        if content(root) != {"x": b"x" * 100}:
            raise error(message)
        return {}

    return read


def sleeping(root):
    if content(root) != {"x": b"x" * 100}:
        time.sleep(5)
    return {}


def trusting(root):
    if content(root)["x"] == sample("pickle"):
        pickle.loads(content(root)["x"]).close()
    return {}


def test_the_campaign_tells_what_is_well_from_what_is_not(monkeypatch):
    monkeypatch.setattr(going, "LIMIT", 1)
    assert come_of(content) == (FAULT, "SILENTLY read as something else")
    assert come_of(content, notices=OPEN)[0] == UNSEEN
    assert come_of(content, "a text", OPEN)[0] == FAULT
    assert come_of(content, "link out of the root")[0] == SAME
    assert come_of(content, "missing")[1].startswith("BARE FileNotFoundError")
    assert come_of(refusing("x.txt is damaged"))[0] == REFUSED
    assert come_of(refusing("it is damaged"))[1].startswith("NAMES NOTHING")
    assert come_of(refusing("x.txt", KeyError))[1].startswith("BARE KeyError")
    assert come_of(sleeping)[1].startswith("HANGS")
    assert come_of(trusting, "a pickle")[1].startswith("EXECUTED")


def test_no_damage_of_a_file_has_the_name_of_another():
    for reader in READERS:
        for target in reader.targets:
            assert len({damage.name for damage in target.damages}) == len(target.damages), target.path


def test_the_table_counts_every_case_once():
    outcomes = [going.Outcome("a", "x", SAME), going.Outcome("a", "y", REFUSED), going.Outcome("b", "x", FAULT)]
    grid = table(outcomes)
    rows = list(zip(*(list(column.cells) for column in grid.columns), strict=True))
    assert rows == [
        ("a", "2", "1", "1", "0", "0"),
        ("b", "1", "0", "0", "0", "1"),
        ("all", "3", "1", "1", "0", "1"),
    ]
