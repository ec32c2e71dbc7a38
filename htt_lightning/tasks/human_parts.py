"""Human part segmentation."""

from dataclasses import dataclass

import numpy as np

from htt_lightning.tasks.base import IGNORE_INDEX
from htt_lightning.tasks.semseg import PixelClassification

PARTS = ("background", "head", "torso", "upper arm", "lower arm", "upper leg", "lower leg")
"""PASCAL-Part merged to six parts (protocol.md 1.5)."""


@dataclass(frozen=True, kw_only=True)
class HumanParts(PixelClassification):
    """Parts of people, background included in the mean IoU; an image without people is missing altogether."""

    name: str = "human_parts"
    classes: tuple[str, ...] = PARTS
    confidence_threshold: float = 0.85

    def postprocess_target(self, array: np.ndarray) -> np.ndarray:
        """A crop that misses every person has no label, as an image without people has none (protocol.md 3.2, 7)."""
        people = (array != 0) & (array != IGNORE_INDEX)
        return array if people.any() else np.full_like(array, IGNORE_INDEX)
