"""Teacher that is a model of the package ``transformers``."""

import hashlib
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from htt_lightning.discovery.outside.classes import class_table, map_probabilities
from htt_lightning.discovery.outside.options import TeacherOptions
from htt_lightning.discovery.outside.teacher import LabelWithConfidence, OutsideTeacher
from htt_lightning.errors import ConfigError, HTTError, missing_extra
from htt_lightning.tasks import Depth, Task


class HubTeacher(OutsideTeacher):
    """Model of ``transformers`` for depth estimation or semantic segmentation; it executes no code of its repository.

    Attributes:
        model: The model.
    """

    reads_images: ClassVar[bool] = True

    def __init__(self, task: Task, options: TeacherOptions) -> None:
        super().__init__(task, options)
        assert options.hub is not None
        self.is_local = Path(options.hub).expanduser().is_dir()
        self.model, self.processor = self._load(str(Path(options.hub).expanduser()) if self.is_local else options.hub)
        if not isinstance(task, Depth):
            names: dict[int, str] = self.model.config.id2label
            other = [names.get(index, str(index)) for index in range(len(names))]
            self.table = class_table(options.classes, task.class_names, other, self.option)

    def _load(self, name: str) -> tuple[Any, Any]:
        """Load the model and its image processor."""
        try:
            import transformers
        except ImportError as error:
            raise missing_extra(f"{self.option}.hub needs transformers", "teachers") from error
        transformers.logging.disable_progress_bar()  # of reading weights; downloads have their own
        depth = isinstance(self.task, Depth)
        kind: Any = transformers.AutoModelForDepthEstimation if depth else transformers.AutoModelForSemanticSegmentation
        arguments = {"revision": self.options.revision or "main"} if not self.is_local else {}
        try:
            processor = transformers.AutoImageProcessor.from_pretrained(name, **arguments)
            model, loading = kind.from_pretrained(
                name, use_safetensors=True, output_loading_info=True, **arguments
            )  # tensors alone: a pickle is never opened
        except Exception as error:  # clients of the hub and readers of configs raise many types
            raise self._cannot_load(name, error) from error
        if missing := loading["missing_keys"]:
            kind_of_model = "depth estimation" if depth else "semantic segmentation"
            raise ConfigError(
                f"{self.option}.hub must be a model trained for {kind_of_model}, got {name}, whose weights lack "
                f"{len(missing)} tensors, such as {sorted(missing)[0]}."
            )
        return model.eval().requires_grad_(False), processor

    def _cannot_load(self, name: str, error: Exception) -> HTTError:
        cause = f"({type(error).__name__}: {str(error).strip().partition('. ')[0].partition(chr(10))[0]})"
        if self.is_local:
            step = "It must hold what save_pretrained of a model and of its image processor write."
            return ConfigError(f"{self.option}.hub cannot be loaded from the folder {name} {cause}. {step}")
        return ConfigError(
            f"{self.option}.hub must be a model of the Hugging Face hub or a folder with a saved one, got {name!r}, "
            f"which cannot be fetched {cause}. Without a connection, run `hf download {name} --local-dir FOLDER` "
            "elsewhere, copy the folder, and name it in place of the model."
        )

    def source(self) -> dict[str, Any]:
        """Describe the model: its name and commit, or the SHA-256 of the weights in its folder."""
        if not self.is_local:
            return {"hub": self.options.hub, "revision": self.model.config._commit_hash}
        digest = hashlib.sha256()
        for path in sorted(Path(str(self.options.hub)).expanduser().glob("*")):
            if path.suffix in (".json", ".safetensors"):
                with path.open("rb") as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
        return {"hub": Path(str(self.options.hub)).name, "sha256": digest.hexdigest()}

    @torch.no_grad()
    def predict(self, images: Sequence[Tensor]) -> list[LabelWithConfidence]:
        """Predict maps of images ``3 h w`` in [0, 1]; they are not yet aligned."""
        sizes = [(image.shape[-2], image.shape[-1]) for image in images]
        if len(set(sizes)) > 1:  # some processors keep the aspect ratio
            return [self.predict([image])[0] for image in images]
        inputs = self.processor(images=list(images), do_rescale=False, return_tensors="pt").to(self.model.device)
        outputs = self.model(**inputs)
        if isinstance(self.task, Depth):
            decode = self.processor.post_process_depth_estimation
            padded = {"source_sizes": sizes} if "source_sizes" in inspect.signature(decode).parameters else {}
            found = decode(outputs, target_sizes=sizes, **padded)
            depths = [each["predicted_depth"].float().cpu().numpy() for each in found]
            return [(depth, torch.ones(depth.shape).numpy()) for depth in depths]
        probabilities = [
            F.interpolate(logits[None].float(), size, mode="bilinear", align_corners=False)[0].softmax(0).cpu().numpy()
            for logits, size in zip(outputs.logits, sizes, strict=True)
        ]
        return [map_probabilities(each, self.table, len(self.task.class_names)) for each in probabilities]
