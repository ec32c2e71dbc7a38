"""Safe reading of files written by ``torch.save``."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any
from zipfile import BadZipFile, ZipFile, is_zipfile

import torch
from torch import Tensor


def verify_zip_checksums(file: str | Path | IO[bytes]) -> None:
    """Verify the checksums of a ``torch.save`` file, which torch never does; files before torch 1.6 have none."""
    if is_zipfile(file):
        with ZipFile(file) as archive:
            if (record := archive.testzip()) is not None:
                raise BadZipFile(f"its record {record} has changed since it was written")


def safe_torch_load(file: str | Path | IO[bytes], **options: Any) -> Any:
    """Load weights and plain values from a ``torch.save`` file without executing anything in it.

    The type of an error depends on the damage.
    """
    verify_zip_checksums(file)
    if not isinstance(file, str | Path):
        file.seek(0)
    try:
        return torch.load(file, map_location="cpu", weights_only=True, **options)
    except pickle.UnpicklingError as error:  # the message of torch recommends weights_only=False
        raise ValueError("it holds more than weights and plain values, which is never run, or is corrupt") from error


def check_finite(state: Mapping[str, Tensor]) -> None:
    """Check that every weight is real and finite."""
    for name, weight in state.items():
        if weight.is_complex() or not weight.isfinite().all():
            raise ValueError(f"its weight {name} is not finite")
