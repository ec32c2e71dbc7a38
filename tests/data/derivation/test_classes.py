import numpy as np
import pytest

from htt_lightning.data.datasets.pascal_context import CLASSES as PASCAL
from htt_lightning.data.datasets.synthetic import SyntheticScenes
from htt_lightning.data.derivation.classes import classes_from_classes, edges_from_classes, saliency_from_classes
from htt_lightning.errors import ConfigError
from htt_lightning.tasks import Edges, HumanParts, Saliency, SemSeg

ROOM = SemSeg(classes=("wall", "floor", "sofa"))


def edges_of(label, source=ROOM, **options):
    return edges_from_classes(np.array(label, np.uint8), source, Edges(), None, **options)


def test_edges_are_at_borders_as_rendered():
    """Every border of classes is one of objects; those between objects of one class are not found."""
    scenes, found, true = SyntheticScenes("train", 8, (64, 96)), [], []
    for index in range(8):
        found.append(edges_of(scenes.label(index, "semseg")) == 1)
        true.append(scenes.label(index, "edges") == 1)
    found, true = np.stack(found), np.stack(true)
    assert not (found & ~true).any()
    assert found.sum() > 0.85 * true.sum()


def test_missing_classes_have_no_edges():
    edges = edges_of([[0, 0, 0, 0, 1], [0, 255, 0, 0, 1], [0, 0, 0, 0, 1]])
    assert edges.tolist() == [[255, 255, 255, 1, 0]] * 3


def test_background_has_unknown_edges():
    source = SemSeg(classes=PASCAL)
    assert edges_of([[0, 0, 0, 2, 2, 2]], source).tolist() == [[255, 255, 1, 0, 0, 0]]
    assert edges_of([[3, 3, 3, 2, 2, 2]], source).tolist() == [[0, 0, 1, 0, 0, 0]]


def test_thin_edges_have_one_pixel():
    label = np.repeat([[0, 1]], 8, 0).repeat(8, 1)
    assert edges_of(label, thin=True)[1:-1].sum(1).tolist() == [1] * 6, "thinning shortens lines"


def test_parts_of_people_are_persons():
    parts = np.array([[0, 1, 6, 255]], np.uint8)
    found = classes_from_classes(parts, HumanParts(), SemSeg(classes=PASCAL), None)
    assert found.tolist() == [[255, PASCAL.index("person"), PASCAL.index("person"), 255]]


def test_classes_are_renamed():
    target = SemSeg(name="ground", classes=("flat", "thing"))
    table = {"floor": "flat", "sofa": "thing"}
    found = classes_from_classes(np.array([[0, 1, 2, 255]], np.uint8), ROOM, target, None, table)
    assert found.tolist() == [[255, 0, 1, 255]]


def test_listed_classes_are_salient():
    found = saliency_from_classes(np.array([[0, 1, 2, 255]], np.uint8), ROOM, Saliency(), None, ["sofa"])
    assert found.tolist() == [[0, 0, 1, 255]]


@pytest.mark.parametrize(
    ("rule", "target", "classes", "words"),
    [
        (saliency_from_classes, Saliency(), (), "saliency.classes"),
        (saliency_from_classes, Saliency(), "sofa", "saliency.classes"),
        (saliency_from_classes, Saliency(), ["sofas"], "saliency.classes .*'sofas'.*'sofa'"),
        (classes_from_classes, HumanParts(), None, "human_parts.classes"),
        (classes_from_classes, HumanParts(), ["sofa"], "human_parts.classes"),
        (classes_from_classes, HumanParts(), {"sofa": "heat"}, "human_parts.classes .*'heat'.*'head'"),
    ],
)
def test_wrong_classes_are_named(rule, target, classes, words):
    with pytest.raises(ConfigError, match=words):
        rule(np.zeros((2, 2), np.uint8), ROOM, target, None, classes)


def test_room_without_persons_cannot_get_them_from_parts():
    with pytest.raises(ConfigError, match=r"semseg\.classes .*'person'"):
        classes_from_classes(np.zeros((2, 2), np.uint8), HumanParts(), ROOM, None)
