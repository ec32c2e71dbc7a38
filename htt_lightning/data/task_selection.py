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
    """Choose the tasks of a run by names or by tasks that replace those of the dataset; None requests all."""
    known, overrides = {task.name: task for task in available}, overrides or {}
    items = list(known) if requested is None else requested.split(",") if isinstance(requested, str) else requested
    names = [item.name if isinstance(item, Task) else item.strip() for item in items]
    for option, given in (("data.task_overrides", overrides), ("data.tasks", names)):
        for name in given:
            if name not in known:
                hint = did_you_mean(name, known)
                raise ConfigError(f"{option} must name tasks of {', '.join(known)}, got {name!r}.{hint}")
    if not names or len(set(names)) < len(names):
        raise ConfigError(f"data.tasks must name tasks of {', '.join(known)} once each, got {names}.")
    tasks = [item if isinstance(item, Task) else known[name] for name, item in zip(names, items, strict=True)]
    return [override_task(task, overrides.get(task.name, {})) for task in tasks]


def override_task(task: Task, settings: Mapping[str, Any]) -> Task:
    """Replace settings of a task; their types are checked as on the command line."""
    known = [field.name for field in fields(task) if field.name != "name"]
    option = f"data.task_overrides.{task.name}"
    for key in settings:
        if key not in known:
            raise ConfigError(f"{option} must set {', '.join(known)}, got {key!r}.{did_you_mean(key, known)}")
        if settings[key] is None and type(None) not in get_args(get_type_hints(type(task))[key]):
            raise ConfigError(f"{option}.{key} must not be null. Leave it out for its default.")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(type(task), as_group=False)
    try:
        values = parser.parse_object(dict(settings), defaults=False)
    except (ArgumentError, TypeError, ValueError) as error:
        raise ConfigError(f"{option}: {error}") from error
    changes: dict[str, Any] = {key: tuple(v) if isinstance(v := values[key], list) else v for key in settings}
    return replace(task, **changes)


def limit_val_labels(labels: Mapping[str, Sequence[str]], tasks: Sequence[Task]) -> dict[str, tuple[str, ...]]:
    """Keep at most ``max_val_images`` labels of each task, spread evenly over its images; both maps are by image id."""
    kept: dict[str, set[str]] = {}
    for task in tasks:
        owners = [name for name, labeled in labels.items() if task.name in labeled]
        count = min(task.max_val_images or len(owners), len(owners))
        kept[task.name] = {owners[index * len(owners) // count] for index in range(count)}
    return {name: tuple(task for task in labeled if name in kept[task]) for name, labeled in labels.items()}
