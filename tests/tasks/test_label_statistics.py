"""What tasks say about their own labels, in sums that add up."""

import numpy as np
import pytest

from htt_lightning.errors import HTTError
from htt_lightning.tasks import Depth, HumanParts, Normals, SemSeg
from htt_lightning.tasks.label_statistics import LabelStatistics

SIZE = (24, 32)


def test_tallies_add_up():
    rng = np.random.default_rng(0)
    maps = [rng.uniform(0.1, 20, SIZE).astype(np.float32) for _ in range(3)]
    maps[1][:, 3:] = np.nan
    task = Depth()
    whole = task.tally(np.concatenate(maps, 1)).figures()
    parts = sum((task.tally(one) for one in maps), LabelStatistics()).figures()
    assert parts.pop("labels") == 3
    assert whole.pop("labels") == 1
    assert parts.pop("further")["outside_bins_percent"] == pytest.approx(whole.pop("further")["outside_bins_percent"])
    assert parts == whole


def test_a_map_that_is_missing_altogether_is_counted_as_empty():
    background = np.zeros(SIZE, np.uint8)
    assert HumanParts().tally(background).figures()["empty"] == 1  # as training takes it (protocol.md 3.2, 7)
    assert SemSeg(classes=("a", "b")).tally(background).empty == 0
    tally = Depth().tally(np.full(SIZE, np.nan, np.float32))
    assert tally.figures() | {"empty": 1, "range": None, "missing_percent": 100} == tally.figures()
    assert Depth().doubts(tally) == ["Every pixel is missing."]
    assert Depth().doubts(LabelStatistics()) == []


@pytest.mark.parametrize(
    ("task", "array", "message"),
    [
        (SemSeg(classes=("a", "b")), np.full(SIZE, 2, np.uint8), "holds 2 to 2; classes are 0 to 1"),
        (SemSeg(classes=("a", "b")), np.full(SIZE, -1), "holds -1"),
        (SemSeg(classes=("a", "b")), np.zeros(SIZE), "float64.*integer h w"),
        (SemSeg(classes=("a", "b")), np.zeros((*SIZE, 1), np.uint8), "integer h w"),
        (Depth(), np.ones((*SIZE, 1), np.float32), "float h w"),
        (Depth(), np.ones(SIZE, np.int64), "float h w"),
        (Normals(), np.ones((*SIZE, 2), np.float32), "float h w 3"),
        (Normals(), np.ones(5, np.float32), "float h w 3"),
    ],
)
def test_what_is_no_map_of_a_task_is_refused(task, array, message):
    with pytest.raises(HTTError, match=message):
        task.tally(array)


def test_normals_of_wrong_length_and_direction_raise_doubts():
    away = np.tile(np.float32([0, 0, -1]), (*SIZE, 1))
    assert "z to the camera" in Normals().doubts(Normals().tally(away))[0]
    long = np.tile(np.float32([0, 0, 1]), (*SIZE, 1))
    assert Normals().doubts(Normals().tally(long)) == []
    long[0, :8] *= 1.05
    tally = Normals().tally(long)
    assert tally.figures()["further"]["not_unit_percent"] == pytest.approx(100 * 8 / (24 * 32))
    assert "8 of 768" in Normals().doubts(tally)[0]
