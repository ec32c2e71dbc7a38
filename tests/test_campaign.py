"""A short campaign of damaged input; ``python -m tools.damage_campaign --rounds 20`` runs a long one."""

import logging
import pickle
import sys
import time

import pytest

from htt_lightning.errors import HTTError
from tools.damage_campaign import round as going
from tools.damage_campaign.__main__ import READERS
from tools.damage_campaign.damage import ANY, sample
from tools.damage_campaign.reader import OPEN, SEALED, Reader, Target
from tools.damage_campaign.round import FAULT, REFUSED, SAME, UNSEEN, cases, run

SHARE, SLOW_SHARE = 0.03, 0.01
"""Shares of the damages that the suite tries."""

MARKED = [pytest.param(reader, id=reader.name, marks=[pytest.mark.slow] * reader.slow) for reader in READERS]


@pytest.mark.parametrize("reader", MARKED)
def test_damaged_file_is_harmless_or_named(reader, monkeypatch):
    logging.disable(logging.CRITICAL)
    monkeypatch.setattr(sys, "argv", ["htt"])
    try:
        outcomes = run(reader, cases(reader, SLOW_SHARE if reader.slow else SHARE, seed=0))
    finally:
        logging.disable(logging.NOTSET)
    assert [outcome for outcome in outcomes if outcome.kind == FAULT] == []


BY_NAME = {damage.name: damage for damage in ANY}


def outcome_of(read, damage="one bit", notices=SEALED):
    """Kind and message of one damage of a text file."""
    reader = Reader("x", lambda root: (root / "x.txt").write_bytes(b"x" * 100), read, [Target("x.txt", ANY, notices)])
    ((_, _, kind, said),) = run(reader, [(reader.targets[0], BY_NAME[damage])])
    return kind, said


def content(root):
    return {"x": (root / "x.txt").read_bytes()}


def raising(message, error=HTTError):
    def read(root):
        if content(root) != {"x": b"x" * 100}:
            raise error(message)
        return {}

    return read


def sleeping(root):
    if content(root) != {"x": b"x" * 100}:
        time.sleep(5)
    return {}


def unpickling(root):
    if content(root)["x"] == sample("pickle"):
        pickle.loads(content(root)["x"]).close()
    return {}


def test_campaign_tells_faults_from_refusals(monkeypatch):
    monkeypatch.setattr(going, "LIMIT", 1)
    assert outcome_of(content)[0] == FAULT
    assert outcome_of(content, notices=OPEN)[0] == UNSEEN
    assert outcome_of(content, "a text", OPEN)[0] == FAULT
    assert outcome_of(content, "link out of the root")[0] == SAME
    assert outcome_of(content, "missing")[1].startswith("BARE FileNotFoundError")
    assert outcome_of(raising("x.txt is corrupt"))[0] == REFUSED
    assert outcome_of(raising("it is corrupt"))[1].startswith("NAMES NOTHING")
    assert outcome_of(raising("x.txt", KeyError))[1].startswith("BARE KeyError")
    assert outcome_of(sleeping)[1].startswith("HANGS")
    assert outcome_of(unpickling, "a pickle")[1].startswith("EXECUTED")
