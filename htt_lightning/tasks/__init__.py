"""The six dense prediction tasks; a new one is a file here, or a class anywhere named by its ``class_path``."""

from htt_lightning.tasks.base import IGNORE, Task
from htt_lightning.tasks.binned_regression import Binned
from htt_lightning.tasks.depth import Depth, InverseDepth
from htt_lightning.tasks.edges import Edges
from htt_lightning.tasks.human_parts import HumanParts
from htt_lightning.tasks.metric_spec import Figure
from htt_lightning.tasks.normals import Normals
from htt_lightning.tasks.pseudo_label import Discovered
from htt_lightning.tasks.saliency import Saliency
from htt_lightning.tasks.semseg import Classification, SemSeg

__all__ = [
    "IGNORE",
    "Binned",
    "Classification",
    "Depth",
    "Discovered",
    "Edges",
    "Figure",
    "HumanParts",
    "InverseDepth",
    "Normals",
    "Saliency",
    "SemSeg",
    "Task",
]
