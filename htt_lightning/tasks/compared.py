"""Whether outputs of a network trained on some tasks mean what others take them to mean."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from htt_lightning.errors import HTTError

if TYPE_CHECKING:
    from htt_lightning.tasks.base import Task


def check_same_tasks(tasks: "Sequence[Task]", trained: Sequence[Mapping[str, Any]], what: str) -> None:
    """Raise an ``HTTError`` unless something was trained on tasks whose outputs mean what ours do.

    Args:
        tasks: Ours.
        trained: Those it was trained on, as dicts.
        what: What it is, for the message.
    """
    stored = {task["init_args"]["name"]: task["init_args"] for task in trained}
    names = [task.name for task in tasks]
    if list(stored) != names:
        raise HTTError(f"{what} was trained on {', '.join(stored)}, not {', '.join(names)}; set data.tasks.")
    for task in tasks:
        for key, value in task.output_settings.items():
            if (theirs := stored[task.name].get(key)) != value:
                raise HTTError(
                    f"{what} was trained with {key} {theirs} of task {task.name}, not {value}; give the "
                    "task in data.tasks the settings it was trained with."
                )
