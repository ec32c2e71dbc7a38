"""Statistics and warnings of label maps."""

import numpy as np
import pytest

from htt_lightning.data.label_statistics import LabelStatistics, label_statistics, label_warnings
from htt_lightning.errors import DataError
from htt_lightning.tasks import Depth, HumanParts, Normals, SemSeg

SIZE = (24, 32)
SEMSEG = SemSeg(classes=("a", "b"))


def test_merged_statistics_are_those_of_all_maps():
    rng = np.random.default_rng(0)
    maps = [rng.uniform(0.1, 20, SIZE).astype(np.float32) for _ in range(3)]
    maps[1][:, 3:] = np.nan
    whole, merged = label_statistics(Depth(), np.concatenate(maps, 1)).to_dict(), LabelStatistics()
    for one in maps:
        merged.add(label_statistics(Depth(), one))
    assert merged.to_dict() == whole | {"labels": 3}


def test_maps_without_valid_pixels_are_counted_as_empty():
    background = np.zeros(SIZE, np.uint8)
    assert label_statistics(HumanParts(), background).empty == 1  # as training uses it
    assert label_statistics(SEMSEG, background).empty == 0
    found = label_statistics(Depth(), np.full(SIZE, np.nan, np.float32))
    assert found.to_dict() | {"empty": 1, "range": None, "missing_percent": 100} == found.to_dict()
    assert label_warnings(Depth(), found) == ["Every pixel is missing."]
    assert label_warnings(Depth(), LabelStatistics()) == []


@pytest.mark.parametrize(
    ("task", "array", "message"),
    [
        (SEMSEG, np.full(SIZE, 2, np.uint8), "classes 0 to 1.*got 2 to 2"),
        (SEMSEG, np.full(SIZE, -1), "got -1"),
        (SEMSEG, np.zeros(SIZE), "integer h w, got float64"),
        (SEMSEG, np.zeros((*SIZE, 1), np.uint8), "integer h w"),
        (Depth(), np.ones((*SIZE, 1), np.float32), "float h w"),
        (Depth(), np.ones(SIZE, np.int64), "float h w"),
        (Normals(), np.ones((*SIZE, 2), np.float32), "float h w 3"),
        (Normals(), np.ones(5, np.float32), "float h w 3"),
    ],
)
def test_invalid_maps_are_rejected(task, array, message):
    with pytest.raises(DataError, match=message):
        label_statistics(task, array)


def test_normals_of_wrong_length_or_axes_are_warned_of():
    away = np.tile(np.float32([0, 0, -1]), (*SIZE, 1))
    assert "z to the camera" in label_warnings(Normals(), label_statistics(Normals(), away))[0]
    long = np.tile(np.float32([0, 0, 1]), (*SIZE, 1))
    assert label_warnings(Normals(), label_statistics(Normals(), long)) == []
    long[0, :8] *= 1.05
    found = label_statistics(Normals(), long)
    assert found.to_dict()["extra"]["not_unit_percent"] == pytest.approx(100 * 8 / (24 * 32))
    assert "not of unit length" in label_warnings(Normals(), found)[0]
