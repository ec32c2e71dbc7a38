"""Multi-task dense prediction from partial labels with hierarchical task tokens (arXiv 2411.18823)."""

from importlib.metadata import version

from htt_lightning.callbacks import LabelDiscovery, NumericalGuard
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
from htt_lightning.discovery.loss import Discovery, Terms, discover_task
from htt_lightning.errors import HTTError
from htt_lightning.models import HTTNet, MultiTaskNet
from htt_lightning.module import HTTModule
from htt_lightning.output import Output
from htt_lightning.predictor import HTTPredictor
from htt_lightning.tasks import Task

__version__ = version("htt-lightning")

__all__ = [
    "CityscapesDataModule",
    "Discovery",
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
    "NumericalGuard",
    "Output",
    "PASCALContextDataModule",
    "PartialLabelDataModule",
    "SyntheticDataModule",
    "Task",
    "Terms",
    "discover_task",
]
