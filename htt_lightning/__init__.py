"""Multi-task dense prediction from partial labels with hierarchical task tokens (arXiv 2411.18823)."""

from importlib.metadata import version

from htt_lightning.callbacks import LabelDiscovery, NonFiniteLossGuard
from htt_lightning.data import (
    CityscapesDataModule,
    FolderDataModule,
    ImageFolder,
    MixedDataModule,
    NYUD40DataModule,
    NYUDDataModule,
    PartialLabelDataModule,
    PASCALContextDataModule,
    SyntheticDataModule,
)
from htt_lightning.discovery import DiscoveryLossWeights, TeacherEnsemble, discovery_loss
from htt_lightning.errors import HTTError
from htt_lightning.models import HTTNet, MultiTaskNet
from htt_lightning.module import HTTModule
from htt_lightning.output import TaskOutput
from htt_lightning.predictor import HTTPredictor
from htt_lightning.tasks import Task

__version__ = version("htt-lightning")

__all__ = [
    "CityscapesDataModule",
    "DiscoveryLossWeights",
    "FolderDataModule",
    "HTTError",
    "HTTModule",
    "HTTNet",
    "HTTPredictor",
    "ImageFolder",
    "LabelDiscovery",
    "MixedDataModule",
    "MultiTaskNet",
    "NYUD40DataModule",
    "NYUDDataModule",
    "NonFiniteLossGuard",
    "PASCALContextDataModule",
    "PartialLabelDataModule",
    "SyntheticDataModule",
    "Task",
    "TaskOutput",
    "TeacherEnsemble",
    "discovery_loss",
]
