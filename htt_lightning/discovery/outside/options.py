"""Options of a teacher from outside."""

from dataclasses import dataclass
from typing import Literal, get_args

from htt_lightning.discovery.outside.alignment import AlignmentMethod
from htt_lightning.errors import ConfigError
from htt_lightning.tasks import Depth, Normals, Task

Space = Literal["depth", "inverse"]


@dataclass(frozen=True)
class TeacherOptions:
    """Model of another program that labels a task: one of the Hugging Face hub, or maps in a folder.

    Args:
        hub: Name of a ``transformers`` model for depth estimation or semantic segmentation on the hub, or a folder with
            a saved one and its image processor.
        revision: Commit, tag or branch of the model on the hub; by default its main branch. The manifest has the
            commit.
        maps: Folder of maps that are called like their image's id, or a path with ``{id}`` in its place: PNG, TIFF,
            ``.npy`` or ``.npz``.
        confidence: Folder or path of maps of the confidence, in the same form: floats in [0, 1], or integers of which
            the largest is 1. By default the confidence of maps is 1.
        space: Whether values of depth are linear in ``depth`` (default) or in one over it (``inverse``).
        alignment: Fit of depth to given labels: ``scale_shift`` (default), ``scale``, or ``none`` for metric depth.
        axes: Axes of normals: ``opengl`` (y up, z to the camera), ``opencv`` (y down, z away from it), or a list of
            what x (right), y (up) and z (to the camera) are in the teacher's normals, such as ``[x, -y, -z]``.
        classes: Name of the task's class by name or index of the teacher's; others are missing. By default classes of
            the same name, and in maps of the same index.
        missing_values: Values of maps that are missing, as in ``data.label_files``.
        scale: Factor for values of maps, as in ``data.label_files``.
        offset: Summand of the scaled values of maps, as in ``data.label_files``.
    """

    hub: str | None = None
    revision: str | None = None
    maps: str | None = None
    confidence: str | None = None
    space: str | None = None
    alignment: str | None = None
    axes: str | tuple[str, str, str] | None = None
    classes: dict[str | int, str] | None = None
    missing_values: tuple[float, ...] | None = None
    scale: float | tuple[float, ...] = 1.0
    offset: float | tuple[float, ...] = 0.0

    def check(self, task: Task, option: str) -> None:
        """Raise a ``ConfigError`` if an option is missing, or does not fit the task or another one."""
        if (self.hub is None) == (self.maps is None):
            got = "both" if self.hub else "neither"
            raise ConfigError(f"{option} must have hub, the name of a model, or maps, a folder, got {got}.")
        if not task.supports_pseudo_labels:
            raise ConfigError(f"{option} must be a teacher of a task with pseudo-labels, got {task.name}.")
        is_depth, is_index = isinstance(task, Depth), task.field_channels is None
        if self.hub and not (is_depth or is_index):
            raise ConfigError(
                f"{option} must have maps, as hub has models of depth and classes alone, got {self.hub!r}."
            )
        kinds = {
            "a model of the hub": (self.hub is not None, ["revision"]),
            "maps": (self.maps is not None, ["confidence", "missing_values", "scale", "offset"]),
            "depth": (is_depth, ["space", "alignment"]),
            "normals": (isinstance(task, Normals), ["axes"]),
            "classes": (is_index, ["classes"]),
        }
        for kind, (holds, keys) in kinds.items():
            for key in keys:
                if not holds and (value := getattr(self, key)) != getattr(TeacherOptions, key):
                    raise ConfigError(f"{option}.{key} can only be set for {kind}, got {value!r}.")
        for key, choices in {"space": get_args(Space), "alignment": get_args(AlignmentMethod)}.items():
            if (value := getattr(self, key)) not in (None, *choices):
                raise ConfigError(f"{option}.{key} must be one of {', '.join(choices)}, got {value!r}.")
