"""Datasets with labels for only some tasks on each image, and their datamodules."""

import os

# Otherwise importing albumentations asks the network for its latest version.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

from htt_lightning.data.datamodule import PartialLabelDataModule
from htt_lightning.data.dataset import DenseDataset, PartialLabelDataset
from htt_lightning.data.datasets.cityscapes import Cityscapes, CityscapesDataModule
from htt_lightning.data.datasets.folder import Folder, FolderDataModule
from htt_lightning.data.datasets.image_folder import ImageFolder
from htt_lightning.data.datasets.label_files import LabelFiles
from htt_lightning.data.datasets.mixed import MixedDataModule, MixedDataset
from htt_lightning.data.datasets.nyud import NYUD, NYUDDataModule
from htt_lightning.data.datasets.nyud40 import NYUD40, NYUD40DataModule
from htt_lightning.data.datasets.parquet import HubRepo
from htt_lightning.data.datasets.pascal_context import PASCALContext, PASCALContextDataModule
from htt_lightning.data.datasets.synthetic import SyntheticDataModule, SyntheticScenes
from htt_lightning.data.masks.files import read_mask
from htt_lightning.data.masks.label_mask import LabelMask, sample_mask
from htt_lightning.data.transforms import AugmentConfig

__all__ = [
    "NYUD", "NYUD40", "AugmentConfig", "Cityscapes", "CityscapesDataModule", "DenseDataset", "Folder",
    "FolderDataModule", "HubRepo", "ImageFolder", "LabelFiles", "LabelMask", "MixedDataModule", "MixedDataset",
    "NYUD40DataModule", "NYUDDataModule", "PASCALContext", "PASCALContextDataModule", "PartialLabelDataModule",
    "PartialLabelDataset", "SyntheticDataModule", "SyntheticScenes", "read_mask", "sample_mask",
]  # fmt: skip
