"""Which of a dataset's tasks a run has, and which validation images it scores."""

from collections.abc import Mapping, Sequence

from htt_lightning.errors import HTTError, did_you_mean
from htt_lightning.tasks import Task
from htt_lightning.tasks.given import inheriting


def select_tasks(available: Sequence[Task], wanted: str | Sequence[str | Task] | None) -> list[Task]:
    """The tasks of a run.

    Args:
        available: The dataset's tasks.
        wanted: Names (a string may list several, with commas), or tasks: what they were given takes the place of what
            the dataset's of the same name has, see ``inheriting``.

    Raises:
        HTTError: A name is unknown or comes twice, or nothing is wanted.
    """
    if wanted is None:
        return list(available)
    listed = wanted.split(",") if isinstance(wanted, str) else wanted
    known = {task.name: task for task in available}
    chosen: dict[str, Task] = {}
    for item in listed:
        name = item.name if isinstance(item, Task) else item.strip()
        if name not in known:
            hint = did_you_mean(name, known)
            raise HTTError(f"data.tasks names {name!r}, but the dataset has labels for {', '.join(known)}.{hint}")
        if name in chosen:
            raise HTTError(f"data.tasks names {name!r} twice.")
        chosen[name] = inheriting(item, known[name]) if isinstance(item, Task) else known[name]
    if not chosen:
        raise HTTError(f"data.tasks is empty; the dataset has labels for {', '.join(known)}.")
    return list(chosen.values())


def limit_val_labels(labels: Mapping[str, Sequence[str]], tasks: Sequence[Task]) -> dict[str, tuple[str, ...]]:
    """Names of the tasks of each validation image without those beyond a task's ``val_images``.

    Args:
        labels: Names of the tasks that each image has a label of, by image id.
        tasks: The run's tasks.
    """
    dropped: dict[str, set[str]] = {name: set() for name in labels}
    for task in tasks:
        owners = [name for name, given in labels.items() if task.name in given]
        if task.max_val_images is not None and task.max_val_images < len(owners):
            kept = {owners[index * len(owners) // task.max_val_images] for index in range(task.max_val_images)}
            for name in owners:
                if name not in kept:
                    dropped[name].add(task.name)
    return {name: tuple(task for task in given if task not in dropped[name]) for name, given in labels.items()}
