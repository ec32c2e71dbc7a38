"""Semantic segmentation."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor
from torchmetrics import Metric

from htt_lightning.errors import HTTError
from htt_lightning.losses import cross_entropy, masked_mean, upcast
from htt_lightning.metrics import SegmentationScores
from htt_lightning.output import TaskOutput, upsample_to_image
from htt_lightning.tasks.base import Task
from htt_lightning.tasks.colormap import apply_palette, class_palette
from htt_lightning.tasks.pseudo_label import PseudoLabel, argmax_with_confidence


@dataclass(frozen=True, kw_only=True)
class PixelClassification(Task):
    """A class per pixel: cross entropy over valid pixels, argmax, mean IoU of the dataset's confusion matrix.

    Args:
        classes: Class names; a class's index is its value in the map. Of ``data.tasks``, by default the dataset's.
        absent_classes: Mean IoU skips classes that occur in neither labels nor predictions, or counts them as zero
            (protocol.md 6.20).
        class_balance_power: Exponent of a class's share in the image that soft labels are divided by: 0 leaves them,
            1 gives every class the same say. The mean over classes is what counts, but averaged beliefs
            turn to frequent ones.
    """

    classes: tuple[str, ...] = ()
    absent_classes: Literal["skip", "zero"] = "skip"
    class_balance_power: float = 0.5

    training_fields: ClassVar[tuple[str, ...]] = (*Task.training_fields, "class_balance_power")

    metric_fields: ClassVar[tuple[str, ...]] = (*Task.metric_fields, "absent_classes")
    logits_are_distribution: ClassVar[bool] = True
    primary_metric: ClassVar[str] = "miou"
    higher_is_better: ClassVar[bool] = True
    metric_unit: ClassVar[str] = "%"

    @property
    def num_tokens(self) -> int:
        """One token per class."""
        return len(self.class_names)

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the classes.

        Raises:
            HTTError: There are none.
        """
        if not self.classes:
            raise HTTError(f"The task {self.name} has no classes; list their names in its setting classes.")
        return self.classes

    def loss(self, output: TaskOutput, target: Tensor) -> Tensor:
        """Cross entropy, mean over valid pixels; target int64 ``b h w``, 255 missing."""
        logits = upsample_to_image(upcast(output.logits), (target.shape[-2], target.shape[-1]))
        valid = self.valid_mask(target)
        return masked_mean(cross_entropy(logits, target, valid), valid)

    def decode(self, output: TaskOutput, size: tuple[int, int]) -> Tensor:
        """Class index int64 ``b h w``: argmax of the resized logits."""
        return upsample_to_image(upcast(output.logits), size).argmax(1)

    def pseudo_label(self, output: TaskOutput, size: tuple[int, int]) -> PseudoLabel:
        """The likeliest class and its probability."""
        return argmax_with_confidence(output, size)

    def pseudo_label_loss(self, output: TaskOutput, found: PseudoLabel, valid: Tensor) -> Tensor:
        """Cross entropy of the kept pixels, mean over all valid ones."""
        logits = upsample_to_image(upcast(output.logits), (valid.shape[-2], valid.shape[-1]))
        return masked_mean(cross_entropy(logits, found.label, valid & self.confidence_mask(found.confidence)), valid)

    def finalize_soft_target(self, soft_target: Tensor, valid: Tensor) -> Tensor:
        """Rare classes raised, by the image's own shares: no image depends on others of its batch."""
        inside = valid[:, None].to(soft_target.dtype)
        share = (soft_target * inside).sum((2, 3), keepdim=True) / inside.sum((2, 3), keepdim=True).clamp(min=1)
        raised = soft_target / share.clamp(min=1e-6) ** self.class_balance_power
        return raised / raised.sum(1, keepdim=True)

    def metrics(self) -> Metric:
        """Mean IoU and pixel accuracy in percent."""
        return SegmentationScores(self.num_tokens, absent_classes=self.absent_classes)

    def colorize(self, values: Tensor) -> Tensor:
        """One fixed colour per class."""
        return apply_palette(class_palette(self.num_tokens).to(values.device), values)


@dataclass(frozen=True, kw_only=True)
class SemSeg(PixelClassification):
    """Semantic segmentation: what is where."""

    name: str = "semseg"

    guides_crop: ClassVar[bool] = True
