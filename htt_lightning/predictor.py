"""Prediction of the maps of images by a trained network."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from htt_lightning.data.batch import to_chw_tensor
from htt_lightning.data.input_size import InputResizer, InputSize
from htt_lightning.errors import ConfigError
from htt_lightning.io.images import read_photograph, to_rgb
from htt_lightning.models.sliding_window import predict_at_original_size
from htt_lightning.module import HTTModule
from htt_lightning.output import ImageView
from htt_lightning.training.loading import load_module

ImageLike = str | Path | Image.Image | np.ndarray | Tensor
"""An image as users have it; see ``HTTPredictor``."""


ImageList = list[Any] | tuple[Any, ...]
"""Several images, each an ``ImageLike``."""


class HTTPredictor:
    """Predict every task's map of images at their original size, from a checkpoint alone.

    Examples:
        >>> from htt_lightning.tasks import Depth
        >>> predictor = HTTPredictor(HTTModule([Depth(num_bins=5)], token_dim=16))
        >>> predictor(np.zeros((48, 64, 3), np.uint8))["depth"].shape
        torch.Size([1, 48, 64])

    Args:
        module: Trained module; it is set to evaluation mode.
        input_size: Size at which the network sees images: ``training`` (as in the evaluation of the training run),
            ``original``, or ``(h, w)`` (resized to that number of pixels, aspect ratio kept).
        tile_size: Width in pixels of a sliding window for larger images, a multiple of 32; None never tiles.

    Attributes:
        module: The module.
        tasks: Tasks by name, with their ``class_names`` and ``metric_unit``, and the colors of their maps.

    Raises:
        ConfigError: An argument is out of its range.
    """

    def __init__(self, module: HTTModule, input_size: InputSize = "training", tile_size: int | None = None) -> None:
        self.module = module.eval()
        self.tasks = {task.name: task for task in module.tasks}
        self.resizer = InputResizer.of(module.input_size, input_size, tile_size)

    @classmethod
    def from_checkpoint(
        cls,
        path: str | Path,
        device: str | torch.device = "cpu",
        input_size: InputSize = "training",
        tile_size: int | None = None,
    ) -> Self:
        """Load a checkpoint; nothing in the file is executed.

        Args:
            path: Path to the checkpoint.
            device: Device of the network.
            input_size: Size at which the network sees images, see ``HTTPredictor``.
            tile_size: Width in pixels of the sliding window; None never tiles.

        Raises:
            CheckpointError: The file is missing, corrupt or no checkpoint of this library.
            ConfigError: An argument is out of its range.
        """
        return cls(load_module(path, "from_checkpoint", device=device), input_size, tile_size)

    @overload
    def __call__(self, image: ImageLike, batch_size: int = 4) -> dict[str, Tensor]: ...

    @overload
    def __call__(self, image: ImageList, batch_size: int = 4) -> list[dict[str, Tensor]]: ...

    @torch.inference_mode()
    def __call__(
        self, image: ImageLike | ImageList, batch_size: int = 4
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Predict the maps of an image, or of each image of a list or batch.

        Args:
            image: Path to a file, PIL image, array ``h w 3`` (RGB) or ``h w`` (gray), or tensor ``3 h w`` (RGB).
                Arrays and tensors are uint8, or floats in [0, 1]. Or a list of these, whose sizes may differ, or a
                tensor ``b 3 h w``.
            batch_size: Maximum number of images of one size that the network sees at once.

        Returns:
            By task, on the CPU: classes int64 ``h w``, probabilities float32 ``h w``, or a field float32 ``c h w``. For
            a list or batch a list of these, in its order; an image's maps do not depend on the others.

        Raises:
            ConfigError: An image has another type, shape or range, or needs ``tile_size``.
            DataError: A file is missing or corrupt.
        """
        if batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1, got {batch_size}.")
        if isinstance(image, list | tuple) or (isinstance(image, Tensor) and image.ndim == 4):
            return self._predict_all([*image], batch_size)
        return self._predict_all([image], 1)[0]

    def _predict_all(self, images: Sequence[ImageLike], batch_size: int) -> list[dict[str, Tensor]]:
        """Predict images in their order; consecutive ones of one size and type make a batch."""
        resized = (self.resizer(*to_array(image)) for image in images)
        batches = self.resizer.batches((("", to_chw_tensor(pixels), view) for pixels, view in resized), batch_size)
        return [maps for _, pixels, view in batches for maps in self._predict_batch(pixels, view)]

    def _predict_batch(self, pixels: Tensor, view: ImageView) -> list[dict[str, Tensor]]:
        batch = pixels.to(self.module.device)
        batch = batch.float().div_(255) if batch.dtype == torch.uint8 else batch
        maps = predict_at_original_size(self.module, self.module.tasks, batch, view, self.resizer.tile_size)
        on_cpu = {task: values.cpu() for task, values in maps.items()}
        return [{task: values[k] for task, values in on_cpu.items()} for k in range(len(batch))]


def to_array(image: ImageLike) -> tuple[np.ndarray, str]:
    """Convert an image to an array ``h w 3``, uint8 or float32 in [0, 1], and its name for messages."""
    if isinstance(image, str | Path):
        return read_photograph(Path(image).expanduser()), str(image)
    if isinstance(image, Image.Image):
        name = str(getattr(image, "filename", "") or "The image")
        return to_rgb(image, name), name
    if isinstance(image, Tensor):
        if image.ndim != 3 or image.shape[0] != 3:
            raise ConfigError(f"An image tensor must be 3 h w, got {tuple(image.shape)}.")
        array = image.detach().cpu().movedim(0, -1).numpy()
    elif isinstance(image, np.ndarray):
        array = np.repeat(image[..., None], 3, -1) if image.ndim == 2 else image
    else:
        raise ConfigError(f"An image must be a path, PIL image, array or tensor, got {type(image).__name__}.")
    if array.ndim != 3 or array.shape[2] != 3 or not array.size:
        raise ConfigError(f"An image array must be h w 3 (RGB) or h w (gray), got {array.shape}.")
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array), "The image"
    if array.dtype.kind != "f":
        raise ConfigError(f"An image must be uint8, or float in [0, 1], got {array.dtype}.")
    low, high = array.min(), array.max()
    if not 0 <= low <= high <= 1:  # false for NaN as well
        raise ConfigError(f"A float image must lie in [0, 1], got {low:g} to {high:g}. Divide by 255.")
    return np.ascontiguousarray(array, np.float32), "The image"
