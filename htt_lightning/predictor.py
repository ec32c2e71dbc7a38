"""A trained network as a function from one image to its maps."""

from pathlib import Path
from typing import Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from htt_lightning.data.batch import to_chw_tensor
from htt_lightning.data.input_size import InputResizer, InputSize
from htt_lightning.errors import HTTError
from htt_lightning.io.images import read_photograph, to_rgb
from htt_lightning.models.sliding_window import predict_at_original_size
from htt_lightning.module import HTTModule
from htt_lightning.training.loading import load_module


class HTTPredictor:
    """Every task's map of an image, at the image's own size. A checkpoint holds all that is needed, but no dataset.

    Examples:
        >>> predictor = HTTPredictor.from_checkpoint("last.ckpt")  # doctest: +SKIP
        >>> predictor("photo.jpg")["depth"].shape  # doctest: +SKIP
        torch.Size([1, 480, 640])

    Args:
        module: The trained module; it is put into evaluation mode.
        input_size: Size at which the network sees images: ``training`` (as in the evaluation of the training run),
            ``original``, or ``(h, w)`` (resized to that number of pixels, aspect ratio kept).
        tile_size: Width in pixels of a sliding window for larger images, a multiple of 32; None for whole images.

    Attributes:
        module: The module.
        tasks: The tasks by name, which know their ``class_names`` and ``unit``, and the colours of their maps.

    Raises:
        HTTError: An argument is out of its range.
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
        """The predictor of a checkpoint; nothing in the file is executed.

        Args:
            path: The checkpoint.
            device: Where to compute.
            input_size: Size at which the network sees images.
            tile_size: Width of the sliding window.

        Raises:
            HTTError: The file is missing, damaged or of something else, or an argument is out of its range.
        """
        return cls(load_module(path, "from_checkpoint", device=device), input_size, tile_size)

    @torch.inference_mode()
    def __call__(self, image: str | Path | Image.Image | np.ndarray | Tensor) -> dict[str, Tensor]:
        """Predict.

        Args:
            image: A file; a PIL image; RGB or grey as an array ``h w 3`` or ``h w``; or RGB as a tensor ``3 h w``.
                Arrays and tensors are uint8, or floats in [0, 1].

        Returns:
            By task, on the CPU: classes int64 ``h w``, probabilities float32 ``h w``, or a field float32 ``c h w``.

        Raises:
            HTTError: It is no such image, or too large to be seen at once.
        """
        pixels, name = to_array(image)
        seen, view = self.resizer(pixels, name)
        batch = to_chw_tensor(seen)[None].to(self.module.device)
        batch = batch.float().div_(255) if batch.dtype == torch.uint8 else batch
        maps = predict_at_original_size(self.module, self.module.tasks, batch, view, self.resizer.tile_size)
        return {task: values[0].cpu() for task, values in maps.items()}


def to_array(image: str | Path | Image.Image | np.ndarray | Tensor) -> tuple[np.ndarray, str]:
    """An image as an array ``h w 3``, uint8 or float32 in [0, 1], and what to call it; see ``HTTPredictor``.

    Raises:
        HTTError: It is none.
    """
    if isinstance(image, str | Path):
        return read_photograph(Path(image).expanduser()), str(image)
    if isinstance(image, Image.Image):
        name = str(getattr(image, "filename", "") or "The image")
        return to_rgb(image, name), name
    if isinstance(image, Tensor):
        if image.ndim != 3 or image.shape[0] != 3:
            raise HTTError(f"A tensor must be 3 h w, one image with its colours first, not {tuple(image.shape)}.")
        array = image.detach().cpu().movedim(0, -1).numpy()
    elif isinstance(image, np.ndarray):
        array = np.repeat(image[..., None], 3, -1) if image.ndim == 2 else image
    else:
        raise HTTError(f"An image is a path, a PIL image, an array or a tensor, not {type(image).__name__}.")
    if array.ndim != 3 or array.shape[2] != 3 or not array.size:
        raise HTTError(f"An array must be h w 3 (RGB) or h w (grey), not {array.shape}.")
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array), "The image"
    if array.dtype.kind != "f":
        raise HTTError(f"Images are uint8, or floats in [0, 1], not {array.dtype}; convert it.")
    low, high = array.min(), array.max()
    if not 0 <= low <= high <= 1:  # NaN fails as well
        raise HTTError(f"Float images lie in [0, 1], not {low:g} to {high:g}; divide by their white.")
    return np.ascontiguousarray(array, np.float32), "The image"
