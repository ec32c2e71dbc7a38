"""Which settings a task was given, and where the others come from."""

import copy
import dataclasses
import pickle

import pytest

from htt_lightning import PASCALContextDataModule
from htt_lightning.data import LabelFiles
from htt_lightning.errors import HTTError
from htt_lightning.tasks import Depth, Edges, HumanParts, InverseDepth, Normals, SemSeg, Task
from htt_lightning.tasks.given import inheriting

OWN = Edges(loss_weight=50, confidence_threshold=0.9, tolerance=0.0075)


def test_a_task_knows_what_it_was_given():
    assert Edges().given == frozenset()
    assert Edges(thin_predictions=True, loss_weight=1.0).given == {"thin_predictions", "loss_weight"}
    assert Edges() == Edges(loss_weight=1.0)


@pytest.mark.parametrize("twin", [copy.copy, copy.deepcopy, lambda task: pickle.loads(pickle.dumps(task))])
def test_a_copy_knows_it_as_well(twin):
    assert twin(Edges(thin_predictions=True)) == Edges(thin_predictions=True)
    assert twin(Edges(thin_predictions=True)).given == {"thin_predictions"}


def test_what_comes_from_a_checkpoint_is_given():
    assert Task.from_config(Edges().to_config()).given == {field.name for field in dataclasses.fields(Edges)}


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        (Edges(), OWN),
        (Edges(thin_predictions=True), dataclasses.replace(OWN, thin_predictions=True)),
        (
            Edges(loss_weight=1.0, tolerance=0.011),
            Edges(confidence_threshold=0.9),
        ),  # given, though the class has them anyway
    ],
)
def test_what_is_not_given_is_inherited(task, expected):
    assert inheriting(task, OWN) == expected


@dataclasses.dataclass(frozen=True, kw_only=True)
class Borders(Edges):
    """A class with a default of its own, and one that it repeats."""

    loss_weight: float = 5.0
    confidence_threshold: float = 0.99
    width: int = 3


def test_defaults_that_another_class_does_not_share_are_its_own():
    assert inheriting(Borders(), OWN) == Borders(loss_weight=5.0, confidence_threshold=0.9, tolerance=0.0075)
    assert inheriting(Edges(), Borders(width=9, tolerance=0.1)) == Edges(tolerance=0.1)
    metres = inheriting(Depth(), InverseDepth(loss_weight=3, confidence_threshold=0.95))
    assert metres == Depth(loss_weight=3, confidence_threshold=0.95)
    assert (metres.num_bins, metres.min_depth) == (30, 0.67)


def test_tasks_of_a_datamodule_keep_the_settings_of_its_dataset():
    tasks = [
        "semseg",
        HumanParts(absent_classes="zero"),
        Normals(bin_directions="published"),
        Edges(thin_predictions=True, loss_weight=1),
    ]
    semseg, parts, normals, edges = PASCALContextDataModule("unread", tasks=tasks).tasks
    assert (semseg.loss_weight, semseg.confidence_threshold) == (1, 0.9)
    assert (parts.loss_weight, parts.confidence_threshold, parts.absent_classes) == (2, 0.85, "zero")
    assert (normals.loss_weight, normals.confidence_threshold, normals.bin_directions) == (10, 0.7, "published")
    assert (edges.loss_weight, edges.confidence_threshold, edges.tolerance, edges.thin_predictions) == (
        1,
        0.99,
        0.0075,
        True,
    )
    (rooms,) = PASCALContextDataModule("unread", tasks=[SemSeg(absent_classes="zero")]).tasks
    assert rooms == dataclasses.replace(semseg, absent_classes="zero")


def test_classes_are_needed_where_nobody_has_any():
    for use in (lambda: SemSeg().num_tokens, lambda: SemSeg().class_names, lambda: LabelFiles(SemSeg(), "{id}.png")):
        with pytest.raises(HTTError, match="task semseg has no classes; list their names in its setting classes"):
            use()
