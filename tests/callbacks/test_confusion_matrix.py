"""Scores per class of a test, and the picture of the confusion matrix."""

import math

import numpy as np
import pytest
import torch

from htt_lightning.callbacks.confusion_matrix import class_table, draw_confusion, scores_by_class
from htt_lightning.callbacks.matrix import CELL, GAP
from htt_lightning.tasks import SemSeg
from htt_lightning.tasks.colormap import MISSING_GRAY, heatmap

TASK = SemSeg(classes=("floor", "wall", "bed", "a|b"))
CONFUSION = torch.tensor([[6, 2, 0, 0], [1, 3, 0, 0], [0, 0, 0, 0], [4, 0, 0, 0]])


def test_scores_by_class_are_those_of_the_matrix():
    scores = scores_by_class(TASK, CONFUSION)
    assert scores["floor"] == pytest.approx({"iou": 100 * 6 / 13, "pixel_acc": 75, "share": 50})
    assert scores["wall"] == pytest.approx({"iou": 50, "pixel_acc": 75, "share": 25})
    assert all(math.isnan(scores["bed"][key]) for key in ("iou", "pixel_acc"))
    assert scores["bed"]["share"] == 0
    assert scores["a|b"] == {"iou": 0, "pixel_acc": 0, "share": 25}
    assert scores_by_class(SemSeg(classes=TASK.classes, absent_classes="zero"), CONFUSION)["bed"]["iou"] == 0


def test_class_table_has_a_row_per_class():
    lines = class_table(TASK, scores_by_class(TASK, CONFUSION)).splitlines()
    assert lines[0] == "| semseg | iou % ↑ | pixel_acc % ↑ | share % |"
    assert lines[2] == "| floor | 46.15 | 75.00 | 50.00 |"
    assert lines[4:] == ["| bed | - | - | 0.00 |", "| a/b | 0.00 | 0.00 | 25.00 |"]


def test_picture_colors_shares_of_the_true_class():
    picture = draw_confusion("semseg", TASK.classes, CONFUSION)
    bottom = picture.shape[0] - GAP
    left = int(np.flatnonzero((picture[bottom - 2] != 255).any(-1))[0])  # below the names of rows
    corners = picture[bottom - 4 * CELL : bottom : CELL, left : left + 4 * CELL : CELL]
    shares = CONFUSION.double() / CONFUSION.sum(1, keepdim=True)
    expected = heatmap(shares[None])[0].permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(corners, expected)
    assert (corners[2] == MISSING_GRAY).all()


def test_picture_of_many_classes_stays_small():
    picture = draw_confusion("semseg", [str(k) for k in range(150)], torch.eye(150, dtype=torch.int64))
    assert 150 * 13 < picture.shape[0] < 150 * 16 + 100


def test_picture_without_labels_is_gray():
    picture = draw_confusion("semseg", TASK.classes, torch.zeros(4, 4, dtype=torch.int64))
    matrix = picture[-GAP - 4 * CELL : -GAP]
    assert (matrix == MISSING_GRAY).all(-1).sum(1).min() == 4 * CELL


def test_picture_grows_with_the_names():
    few = draw_confusion("semseg", ("a", "b"), torch.eye(2, dtype=torch.int64))
    long = draw_confusion("semseg", ("a", "b" * 30), torch.eye(2, dtype=torch.int64))
    assert long.shape[0] > few.shape[0] + 100
    assert few.dtype == long.dtype == np.uint8
