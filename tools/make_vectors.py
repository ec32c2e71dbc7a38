"""Make the reference vectors in ``tests/vectors`` from the full set.

    python tools/make_vectors.py FOLDER

Large arrays are rounded to single precision. Of two images the first is enough where losses are per image anyway.
"""

import json
import sys
from pathlib import Path

import numpy as np

OUT = Path(__file__).parents[1] / "tests" / "vectors"
BOTH_IMAGES = ("bins", "feature_losses", "pseudo_labels", "semi_losses", "supervised", "total_pascal")
FIRST_IMAGE = ("bin_classification", "decode")
NETWORK = "network_cityscapes"
KEYS = "released_state_dict_keys.json"
MIN_ROUNDED_SIZE = 128
"""Smaller arrays keep their double precision."""


def write(folder: Path, name: str, images: int | None = None) -> None:
    """Round and compress one file.

    Args:
        folder: Folder of the full set.
        name: Name of the file without its suffix.
        images: Number of leading images kept of each array that has them; None keeps all.
    """
    with np.load(folder / f"{name}.npz") as archive:
        arrays = {key: archive[key] for key in archive if not key.startswith("out.bin_logits")}
    for key, array in arrays.items():
        array = array[:images] if array.ndim else array
        rounded = array.dtype == np.float64 and array.size > MIN_ROUNDED_SIZE
        arrays[key] = array.astype(np.float32) if rounded else array
    np.savez_compressed(OUT / f"{name}.npz", **arrays)


def main(folder: Path) -> None:
    """Write all files.

    Args:
        folder: Folder of the full set.
    """
    for name in (*BOTH_IMAGES, NETWORK):
        write(folder, name)
    for name in FIRST_IMAGE:
        write(folder, name, images=1)
    (OUT / KEYS).write_text(json.dumps(json.loads((folder / KEYS).read_text()), separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
