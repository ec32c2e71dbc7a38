"""Plain descriptions of tasks, as configs and checkpoints hold them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from importlib import import_module
from typing import TYPE_CHECKING, Any

from htt_lightning.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from htt_lightning.tasks.base import Task


def task_to_config(task: "Task") -> dict[str, Any]:
    """Describe a task by plain values.

    Args:
        task: Task to describe.

    Returns:
        ``class_path`` and ``init_args``, as in config files.
    """
    arguments = {field.name: getattr(task, field.name) for field in fields(task)}
    return {
        "class_path": f"{type(task).__module__}.{type(task).__qualname__}",
        "init_args": {name: list(value) if isinstance(value, tuple) else value for name, value in arguments.items()},
    }


def task_from_config(config: Mapping[str, Any], base: type) -> Any:
    """Build the task that ``task_to_config`` describes.

    Args:
        config: ``class_path`` and ``init_args``.
        base: Class of all tasks.

    Raises:
        ConfigError: The class cannot be imported, is not a task or takes other arguments.
    """
    if not (isinstance(config, Mapping) and isinstance(given := config.get("init_args", {}), Mapping)):
        raise ConfigError(f"A task must have class_path and init_args, got {config!r}.")
    path = str(config.get("class_path"))
    module, _, name = path.rpartition(".")
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise ConfigError(f"The task class {path!r} cannot be imported. Install its package.") from error
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ConfigError(f"The class of a task must be a subclass of Task, got {path!r}.")
    build: Callable[..., Any] = found
    try:
        return build(**{key: tuple(value) if isinstance(value, list) else value for key, value in given.items()})
    except ConfigError:
        raise
    except (TypeError, ValueError, AttributeError) as error:
        raise ConfigError(f"The task class {path!r} does not accept {dict(given)}: {error}") from error


def check_same_tasks(tasks: "Sequence[Task]", trained: Sequence[Mapping[str, Any]], source: str) -> None:
    """Check that stored weights were trained on tasks with the same outputs.

    Args:
        tasks: Tasks of the run.
        trained: Descriptions of the tasks of the weights.
        source: Name of the weights in messages.

    Raises:
        CheckpointError: Names, order or output settings differ.
    """
    stored = {task["init_args"]["name"]: task["init_args"] for task in trained}
    names = [task.name for task in tasks]
    if list(stored) != names:
        raise CheckpointError(f"{source} was trained on {', '.join(stored)}, got {', '.join(names)}. Set data.tasks.")
    for task in tasks:
        for key, value in task.output_settings.items():
            if (theirs := stored[task.name].get(key)) != value:
                raise CheckpointError(
                    f"{source} was trained with {key} {theirs} of task {task.name}, got {value}. Set it in data.tasks."
                )
