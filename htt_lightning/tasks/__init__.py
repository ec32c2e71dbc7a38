"""Dense prediction tasks, one file each; configs name classes elsewhere by ``class_path``."""

from htt_lightning.tasks.base import IGNORE_INDEX, Task
from htt_lightning.tasks.binned_regression import BinnedRegression
from htt_lightning.tasks.depth import Depth, InverseDepth
from htt_lightning.tasks.edges import Edges
from htt_lightning.tasks.human_parts import HumanParts
from htt_lightning.tasks.metric_spec import MetricSpec
from htt_lightning.tasks.normals import Normals
from htt_lightning.tasks.pseudo_label import PseudoLabel
from htt_lightning.tasks.saliency import Saliency
from htt_lightning.tasks.semseg import PixelClassification, SemSeg

__all__ = [
    "IGNORE_INDEX",
    "BinnedRegression",
    "Depth",
    "Edges",
    "HumanParts",
    "InverseDepth",
    "MetricSpec",
    "Normals",
    "PixelClassification",
    "PseudoLabel",
    "Saliency",
    "SemSeg",
    "Task",
]
