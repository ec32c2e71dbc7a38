"""Select the tasks of a run and the validation labels that score them."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, get_args, get_type_hints

from jsonargparse import ArgumentError, ArgumentParser

from htt_lightning.errors import ConfigError, did_you_mean
from htt_lightning.tasks import Task

TaskOverrides = Mapping[str, Mapping[str, Any]]


def select_tasks(
    available: Sequence[Task], requested: str | Sequence[str | Task] | None, overrides: TaskOverrides | None = None
) -> list[Task]:
    """Choose the tasks of a run.

    Args:
        available: Tasks of the dataset.
        requested: Names (a string may hold several, separated by commas), or tasks that replace the dataset's of the
            same name; by default all tasks of the dataset.
        overrides: Settings to override, by task and name.

    Raises:
        ConfigError: A name is unknown or repeated, nothing is requested, or an override is invalid.
    """
    known = {task.name: task for task in available}
    for name in overrides or {}:
        if name not in known:
            raise _unknown_task("data.task_overrides", name, known)
    items = list(known) if requested is None else requested.split(",") if isinstance(requested, str) else requested
    selected: dict[str, Task] = {}
    for item in items:
        name = item.name if isinstance(item, Task) else item.strip()
        if name not in known:
            raise _unknown_task("data.tasks", name, known)
        if name in selected:
            raise ConfigError(f"data.tasks must name each task once, got {name!r} twice.")
        task = item if isinstance(item, Task) else known[name]
        selected[name] = override_task(task, (overrides or {}).get(name, {}))
    if not selected:
        raise ConfigError(f"data.tasks must name one of {', '.join(known)}, got none.")
    return list(selected.values())


def _unknown_task(option: str, name: str, known: Mapping[str, Task]) -> ConfigError:
    return ConfigError(f"{option} must name tasks of {', '.join(known)}, got {name!r}.{did_you_mean(name, known)}")


def override_task(task: Task, settings: Mapping[str, Any]) -> Task:
    """Replace settings of a task.

    Args:
        task: Task of the dataset.
        settings: New values by name. Types are checked as on the command line.

    Raises:
        ConfigError: A setting is unknown, or its value is not allowed.
    """
    known = [field.name for field in fields(task) if field.name != "name"]
    for key in settings:
        if key not in known:
            hint = did_you_mean(key, known)
            raise ConfigError(f"data.task_overrides.{task.name} must set {', '.join(known)}, got {key!r}.{hint}")
        if settings[key] is None and type(None) not in get_args(get_type_hints(type(task))[key]):
            raise ConfigError(f"data.task_overrides.{task.name}.{key} must not be null. Leave it out for its default.")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(type(task), as_group=False)
    try:
        values = parser.parse_object(dict(settings), defaults=False)
    except (ArgumentError, TypeError, ValueError) as error:
        raise ConfigError(f"data.task_overrides.{task.name}: {error}") from error
    changes: dict[str, Any] = {key: tuple(v) if isinstance(v := values[key], list) else v for key in settings}
    return replace(task, **changes)


def limit_val_labels(labels: Mapping[str, Sequence[str]], tasks: Sequence[Task]) -> dict[str, tuple[str, ...]]:
    """Keep at most ``max_val_images`` validation labels of each task, spread evenly over its images.

    Args:
        labels: Names of the labeled tasks, by image id.
        tasks: Tasks of the run.
    """
    dropped: dict[str, set[str]] = {name: set() for name in labels}
    for task in tasks:
        owners = [name for name, labeled in labels.items() if task.name in labeled]
        limit = task.max_val_images
        if limit is not None and limit < len(owners):
            kept = {owners[index * len(owners) // limit] for index in range(limit)}
            for name in owners:
                if name not in kept:
                    dropped[name].add(task.name)
    return {name: tuple(task for task in labeled if task not in dropped[name]) for name, labeled in labels.items()}
