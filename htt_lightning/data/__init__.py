"""Datasets with labels for only some tasks on each image, and their datamodules; a new dataset is a file here."""

from htt_lightning.data.base import PartialLabelDataModule
from htt_lightning.data.cityscapes import Cityscapes, CityscapesDataModule
from htt_lightning.data.folder import Folder, FolderDataModule
from htt_lightning.data.image_folder import ImageFolder
from htt_lightning.data.map_files import MapFiles
from htt_lightning.data.mask_files import read_mask
from htt_lightning.data.masks import LabelMask, draw_mask
from htt_lightning.data.mixed import Mixed, MixedDataModule
from htt_lightning.data.nyud import NYUD, NYUDDataModule
from htt_lightning.data.nyud40 import NYUD40, NYUD40DataModule
from htt_lightning.data.partial import PartialLabels, Source
from htt_lightning.data.pascal_context import PASCALContext, PASCALContextDataModule
from htt_lightning.data.synthetic import SyntheticDataModule, SyntheticScenes
from htt_lightning.data.transforms import Augment

__all__ = [
    "NYUD",
    "NYUD40",
    "Augment",
    "Cityscapes",
    "CityscapesDataModule",
    "Folder",
    "FolderDataModule",
    "ImageFolder",
    "LabelMask",
    "MapFiles",
    "Mixed",
    "MixedDataModule",
    "NYUD40DataModule",
    "NYUDDataModule",
    "PASCALContext",
    "PASCALContextDataModule",
    "PartialLabelDataModule",
    "PartialLabels",
    "Source",
    "SyntheticDataModule",
    "SyntheticScenes",
    "draw_mask",
    "read_mask",
]
