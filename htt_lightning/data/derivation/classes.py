"""Labels from class maps, uint8 ``h w``: edges, other classes, and saliency. See ``DerivationRule``."""

from collections.abc import Mapping, Sequence

import cv2
import numpy as np

from htt_lightning.data.borders import segment_boundaries, thin_boundaries
from htt_lightning.data.derivation.camera import PinholeCamera
from htt_lightning.errors import ConfigError, did_you_mean
from htt_lightning.tasks import HumanParts, Task
from htt_lightning.tasks.base import IGNORE_INDEX

BACKGROUND, PERSON = "background", "person"


def edges_from_classes(
    label: np.ndarray, source: Task, target: Task, camera: PinholeCamera | None, thin: bool = False
) -> np.ndarray:
    """Find the borders between classes.

    Edges are the pixels whose right or lower neighbor has another class. With ``thin`` they are lines of one pixel on
    both sides of a border, thinned (PASCAL-Context). Pixels beside a missing one are missing, and so is the class
    ``background`` away from its borders, as it has edges of its own.
    """
    edges = (thin_boundaries if thin else segment_boundaries)(label).astype(np.uint8)
    if BACKGROUND in source.class_names:
        edges[(label == source.class_names.index(BACKGROUND)) & (edges == 0)] = IGNORE_INDEX
    missing = cv2.dilate((label == IGNORE_INDEX).astype(np.uint8), np.ones((3, 3), np.uint8))
    edges[missing > 0] = IGNORE_INDEX
    return edges


def classes_from_classes(
    label: np.ndarray,
    source: Task,
    target: Task,
    camera: PinholeCamera | None,
    classes: Mapping[str, str] | None = None,
) -> np.ndarray:
    """Rename classes.

    ``classes`` has the class of the target by class of the source; pixels of other classes are missing. By default
    parts of people are the class ``person``.
    """
    if classes is None and isinstance(source, HumanParts):
        classes = {part: PERSON for part in source.class_names if part != BACKGROUND}
    option = f"data.derive.{target.name}.classes"
    if not classes or not isinstance(classes, Mapping):
        rule = f"name the class of {target.name} by class of {source.name}"
        raise ConfigError(f"{option} must {rule}, got {classes!r}. Write {{from: {source.name}, classes: {{...}}}}.")
    table = np.full(256, IGNORE_INDEX, np.uint8)
    for name, implied in classes.items():
        table[_index(source, name, option)] = _index(target, implied, option)
    return np.asarray(cv2.LUT(label, table))


def saliency_from_classes(
    label: np.ndarray, source: Task, target: Task, camera: PinholeCamera | None, classes: Sequence[str] = ()
) -> np.ndarray:
    """Take the pixels of ``classes`` as salient, and those of other classes as background."""
    option = f"data.derive.{target.name}.classes"
    if not classes or not isinstance(classes, list | tuple):
        write = f"Write {{from: {source.name}, classes: [...]}}."
        raise ConfigError(f"{option} must list the salient classes of {source.name}, got {classes!r}. {write}")
    table = np.zeros(256, np.uint8)
    table[IGNORE_INDEX] = IGNORE_INDEX
    table[[_index(source, name, option) for name in classes]] = 1
    return np.asarray(cv2.LUT(label, table))


def _index(task: Task, name: str, option: str) -> int:
    known = task.class_names
    if name not in known:
        rule = f"name classes of {task.name}"
        raise ConfigError(f"{option} must {rule}, got {name!r}.{did_you_mean(str(name), known)}")
    return known.index(name)
