"""Plain descriptions of tasks, as configs and checkpoints hold them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pkgutil import resolve_name
from typing import Any, ClassVar, Self, cast

from htt_lightning.errors import CheckpointError, ConfigError


class ConfigMixin:
    """Conversion of a task from and to ``class_path`` and ``init_args``, as in config files."""

    name: str
    training_fields: ClassVar[tuple[str, ...]] = ("loss_weight", "confidence_threshold", "pseudo_label_weight")
    """Fields of training. They may differ between a checkpoint and the run that resumes it."""
    metric_fields: ClassVar[tuple[str, ...]] = ("max_val_images",)
    """Fields of evaluation. They may differ as well."""

    def to_config(self) -> dict[str, Any]:
        """Describe the task by plain values.

        >>> from htt_lightning.tasks import Edges
        >>> Edges().to_config()["class_path"]
        'htt_lightning.tasks.edges.Edges'
        """
        arguments = {field.name: getattr(self, field.name) for field in fields(cast(Any, self))}
        return {
            "class_path": f"{type(self).__module__}.{type(self).__qualname__}",
            "init_args": {key: _convert(value, tuple, list) for key, value in arguments.items()},
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Build the task that ``to_config`` describes.

        Args:
            config: ``class_path`` and ``init_args``.

        Raises:
            ConfigError: The class cannot be imported, is not a task or takes other arguments.
        """
        if not (isinstance(config, Mapping) and isinstance(given := config.get("init_args", {}), Mapping)):
            raise ConfigError(f"A task must have class_path and init_args, got {config!r}.")
        path = str(config.get("class_path"))
        try:
            found = resolve_name(path)
        except (ImportError, AttributeError, ValueError) as error:
            raise ConfigError(f"The task class {path!r} cannot be imported. Install its package.") from error
        if not (isinstance(found, type) and issubclass(found, cls)):
            raise ConfigError(f"The class of a task must be a subclass of {cls.__name__}, got {path!r}.")
        build: Callable[..., Self] = found
        try:
            return build(**{key: _convert(value, list, tuple) for key, value in given.items()})
        except ConfigError:
            raise
        except (TypeError, ValueError, AttributeError) as error:
            raise ConfigError(f"The task class {path!r} does not accept {dict(given)}: {error}") from error

    @property
    def output_settings(self) -> dict[str, Any]:
        """Return the fields on which outputs and labels depend."""
        settings: dict[str, Any] = self.to_config()["init_args"]
        return {key: value for key, value in settings.items() if key not in self.training_fields + self.metric_fields}


def _convert(value: Any, kind: type[Any], other: type[Any]) -> Any:
    """Convert tuples to lists or the other way, also inside each other."""
    return other(_convert(item, kind, other) for item in value) if isinstance(value, kind) else value


def check_same_tasks(tasks: Sequence[ConfigMixin], trained: Sequence[Mapping[str, Any]], source: str) -> None:
    """Raise a ``CheckpointError`` if the weights of ``source`` were trained on tasks with other outputs."""
    stored = {task["init_args"]["name"]: task["init_args"] for task in trained}
    names = [task.name for task in tasks]
    if list(stored) != names:
        raise CheckpointError(f"{source} was trained on {', '.join(stored)}, got {', '.join(names)}. Set data.tasks.")
    for task in tasks:
        for key, value in task.output_settings.items():
            if (theirs := stored[task.name].get(key)) != value:
                differs = f"{source} was trained with {key} {theirs} of task {task.name}, got {value}."
                raise CheckpointError(f"{differs} Set data.task_overrides.")
