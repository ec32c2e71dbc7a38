"""The option ``data.derive``: which labels of an image follow from others, and how."""

import inspect
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from htt_lightning.data.batch import Arrays
from htt_lightning.data.derivation.camera import PinholeCamera
from htt_lightning.data.derivation.classes import classes_from_classes, edges_from_classes, saliency_from_classes
from htt_lightning.data.derivation.normals import normals_from_depth
from htt_lightning.data.origin import Origin, WeightTable
from htt_lightning.errors import ConfigError, did_you_mean
from htt_lightning.io.arrays import resize
from htt_lightning.tasks import Depth, Edges, Normals, Saliency, SemSeg, Task
from htt_lightning.tasks.semseg import PixelClassification

Derive = Mapping[str, str | Mapping[str, Any]]
"""Source task, or a source (``from``) and options of the rule, by target task."""


class DerivationRule(NamedTuple):
    """Rule that makes the label of one task from that of another.

    Attributes:
        target: Class of the task whose label is made.
        source: Class of the task whose label it is made from.
        function: Function of a label as datasets return it, the source task, the target task, and the camera. Further
            arguments with defaults are options. It returns a label of the target, with missing pixels marked.
        needs_camera: Whether the camera must be known; it is None otherwise.
    """

    target: type[Task]
    source: type[Task]
    function: Callable[..., Any]
    needs_camera: bool = False


RULES = (
    DerivationRule(Normals, Depth, normals_from_depth, needs_camera=True),
    DerivationRule(Edges, SemSeg, edges_from_classes),
    DerivationRule(Saliency, PixelClassification, saliency_from_classes),
    DerivationRule(PixelClassification, PixelClassification, classes_from_classes),
)
"""The rules of this library; the first one that fits both tasks counts."""


class Derivation(NamedTuple):
    """A rule with its tasks and options."""

    target: Task
    source: Task
    rule: DerivationRule
    options: Mapping[str, Any]


@dataclass(frozen=True)
class DerivedLabels:
    """Labels that training images get from labels that the label mask shows.

    An image gets a label of the target if it keeps one of the source and none of the target.

    Args:
        derivations: What is derived; by default nothing.
        field_of_view: Horizontal field of view in degrees of all images; by default that of their dataset.

    Raises:
        ConfigError: The field of view is no angle between 0 and 180 degrees.
    """

    derivations: Sequence[Derivation] = ()
    field_of_view: float | None = None

    def __post_init__(self) -> None:
        if self.field_of_view is not None and not 0 < self.field_of_view < 180:
            raise ConfigError(f"data.field_of_view must be between 0 and 180 degrees, got {self.field_of_view}.")

    @property
    def description(self) -> dict[str, dict[str, Any]]:
        """Rules as plain values by target task: the source, the options and a given field of view."""
        found: dict[str, dict[str, Any]] = {}
        for target, source, rule, options in self.derivations:
            view = self.field_of_view if rule.needs_camera else None
            found[target.name] = {"from": source.name, **options} | ({"field_of_view": view} if view else {})
        return found

    def tasks(self, labeled: Iterable[str]) -> list[str]:
        """Return the tasks whose label an image gets, from the names of those whose label it keeps."""
        return [one.target.name for one in self._of(labeled)]

    def origins(self, labels: Mapping[str, Sequence[str]]) -> dict[str, dict[str, Origin]]:
        """Return the origins of given and derived labels by task, by image id as are the given ones."""
        return {
            name: dict.fromkeys(labeled, Origin.GIVEN) | dict.fromkeys(self.tasks(labeled), Origin.DERIVED)
            for name, labeled in labels.items()
        }

    def summary(self, labels: Iterable[Iterable[str]]) -> str:
        """Count derived labels by task in a line, from the tasks whose label each image keeps; empty without rules."""
        counts = Counter(task for labeled in labels for task in self.tasks(labeled))
        text = ", ".join(f"{task} {counts[task]}" for task in self.description)
        return f"Derived labels: {text}" if text else ""

    def derive(self, given: Arrays, camera: PinholeCamera | None, size: tuple[int, int] | None = None) -> Arrays:
        """Derive labels from the given labels of an image, by task.

        A rule that needs the camera sees a label at its own size, other rules at ``size``, if it is given: edges of one
        pixel would be lost in resizing.
        """
        derived = {}
        for target, source, rule, options in self._of(given):
            label = given[source.name]
            label = label if size is None or rule.needs_camera else resize(label, size, "nearest")
            derived[target.name] = rule.function(label, source, target, self._camera(camera, label), **options)
        return derived

    def check_camera(self, labeled: Iterable[str], camera: PinholeCamera | None, dataset: str) -> None:
        """Raise a ``ConfigError`` if the camera of an image is not known, but needed."""
        for target, source, rule, _ in self._of(labeled) if camera is None and self.field_of_view is None else ():
            if rule.needs_camera:
                option = f"data.derive {target.name} from {source.name}"
                raise ConfigError(
                    f"data.field_of_view must be given for {option}, as {dataset} has no known camera, got null."
                )

    def _camera(self, camera: PinholeCamera | None, label: Any) -> PinholeCamera | None:
        if self.field_of_view is None:
            return camera
        return PinholeCamera.from_field_of_view(self.field_of_view, label.shape[:2])

    def _of(self, labeled: Iterable[str]) -> list[Derivation]:
        names = set(labeled)
        return [one for one in self.derivations if one.source.name in names and one.target.name not in names]


def build_derivations(
    derive: Derive, tasks: Sequence[Task], rules: Sequence[DerivationRule], weights: WeightTable | None = None
) -> list[Derivation]:
    """Find the rules of an option ``data.derive``.

    Args:
        derive: The option.
        tasks: Tasks of the run.
        rules: Known rules.
        weights: Weights of labels by origin and task. Labels with a weight of 0 are not derived.

    Raises:
        ConfigError: A task is unknown, a label would be derived from itself or from a derived one, no rule makes it, or
            options of the rule are wrong.
    """
    by_name, found = {task.name: task for task in tasks}, []
    for name, value in derive.items():
        option = f"data.derive.{name}"
        options = {"from": value} if isinstance(value, str) else dict(value)
        source_name = str(options.pop("from", None))
        for key, task in (("data.derive", name), (option, source_name)):
            if task not in by_name:
                hint = did_you_mean(task, by_name)
                raise ConfigError(f"{key} must name tasks of {', '.join(by_name)}, got {task!r}.{hint}")
        if source_name in derive:
            rule = "from itself" if source_name == name else "from labels that are derived"
            raise ConfigError(f"{option} must name a task with given labels, not {rule}, got {source_name!r}.")
        found.append(_find_rule(by_name[name], by_name[source_name], rules, options))
    return [one for one in found if weights is None or weights[Origin.DERIVED][one.target.name]]


def _find_rule(target: Task, source: Task, rules: Sequence[DerivationRule], options: Mapping[str, Any]) -> Derivation:
    option = f"data.derive.{target.name}"
    fitting = [rule for rule in rules if isinstance(target, rule.target) and isinstance(source, rule.source)]
    if not fitting:
        sources = " or ".join(rule.source.__name__ for rule in rules if isinstance(target, rule.target))
        rule = f"a task of class {sources}" if sources else "left out, as no rule makes such labels"
        raise ConfigError(f"{option} must be {rule}, got {source.name!r}. Add a rule in derivation_rules.")
    known = [*inspect.signature(fitting[0].function).parameters][4:]
    for key in options:
        if key not in known:
            rule = f"set {', '.join(['from', *known])}"
            raise ConfigError(f"{option} must {rule}, got {key!r}.{did_you_mean(key, known)}")
    derivation = Derivation(target, source, fitting[0], options)
    camera = PinholeCamera.from_field_of_view(60, (3, 3))
    try:  # the rule names options that it cannot use
        fitting[0].function(source.empty_target(3, 3), source, target, camera, **options)
    except ConfigError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{option}: {error}") from error
    return derivation
