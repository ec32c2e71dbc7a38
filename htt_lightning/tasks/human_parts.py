"""Human part segmentation."""

from dataclasses import dataclass

import numpy as np

from htt_lightning.tasks.base import IGNORE_INDEX
from htt_lightning.tasks.semseg import PixelClassification

PARTS = ("background", "head", "torso", "upper arm", "lower arm", "upper leg", "lower leg")
"""The parts of PASCAL-Part merged to six, after the background."""


@dataclass(frozen=True, kw_only=True)
class HumanParts(PixelClassification):
    """Parts of people; the mean IoU includes the background.

    An image or crop without people has no label.
    """

    name: str = "human_parts"
    classes: tuple[str, ...] = PARTS
    confidence_threshold: float = 0.85

    def postprocess_target(self, array: np.ndarray) -> np.ndarray:
        """Drop the label of a crop without people."""
        people = (array != 0) & (array != IGNORE_INDEX)
        return array if people.any() else np.full_like(array, IGNORE_INDEX)
