"""Which settings an object was given, as opposed to those that are its class's defaults."""

from dataclasses import fields, replace
from typing import TYPE_CHECKING, Self, TypeVar

if TYPE_CHECKING:
    from htt_lightning.tasks.base import Task

T = TypeVar("T", bound="Task")


class Given:
    """Remembers the names of the arguments that an object is made with.

    Attributes:
        given: These names.
    """

    given: frozenset[str]

    def __new__(cls, **arguments: object) -> Self:
        """Note the names; what the arguments mean is for ``__init__`` to say."""
        new = super().__new__(cls)
        object.__setattr__(new, "given", frozenset(arguments))  # also where the object is frozen
        return new


def inheriting(task: T, known: "Task") -> T:
    """A task with the settings of another where it was given none of its own.

    A default that its class does not share with the other's is its own, too.

    Args:
        task: The task.
        known: The task to inherit from, such as the dataset's of the same name.
    """
    theirs, ours = ({field.name: field.default for field in fields(one)} for one in (known, task))
    shared = [name for name, default in ours.items() if name in theirs and theirs[name] == default]
    return replace(task, **{name: getattr(known, name) for name in shared if name not in task.given})
