"""How fast does the loader feed training? Our samples per second beside those of a plain transcription of the recipe.

    python benchmarks/loader.py               # NYUD-v2's 13 classes, 288x384
    python benchmarks/loader.py --samples 400

Scenes are written in the dataset's format first. Both read the same files and draw from the same distributions, in turn
in one process and on one thread; the plain one does every step of protocol.md 3.2 on the whole image, one after the
other. All labels are used (``labels: full``): with partial labels ours reads fewer files still.
"""

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch

from htt_lightning import NYUDDataModule
from htt_lightning.data.partial import PartialLabels
from htt_lightning.data.sample import Batch, Draw, collate, to_sample
from htt_lightning.data.synthetic import write_nyud

SIZE = (288, 384)
MEAN, STD = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)


def plain_sample(root: Path, index: int, rng: np.random.Generator) -> dict[str, torch.Tensor]:
    """One augmented sample, as one would write protocol.md 3.2 down."""
    read = {key: np.load(root / "train" / key / f"{index}.npy") for key in ("image", "label", "depth", "normal")}
    image, label = read["image"] * 255, np.where(read["label"] < 0, 255, read["label"]).astype(np.float32)
    depth, normals = read["depth"][..., 0], read["normal"]
    factor = rng.uniform(0.5, 2.0)
    height, width = int(SIZE[0] * factor), int(SIZE[1] * factor)
    image = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
    label, depth, normals = (
        cv2.resize(x, (width, height), interpolation=cv2.INTER_NEAREST) for x in (label, depth / factor, normals)
    )
    rows, columns = min(height, SIZE[0]), min(width, SIZE[1])
    for _ in range(10):
        top, left = rng.integers(height - rows + 1), rng.integers(width - columns + 1)
        classes, counts = np.unique(label[top : top + rows, left : left + columns], return_counts=True)
        counts = counts[classes != 255]
        if len(counts) > 1 and counts.max() < 0.75 * counts.sum():
            break
    window = slice(top, top + rows), slice(left, left + columns)
    image, label, depth, normals = image[window], label[window], depth[window], normals[window]
    if rng.random() < 0.5:
        image, label, depth, normals = (np.ascontiguousarray(x[:, ::-1]) for x in (image, label, depth, normals))
        normals = normals * np.array([-1, 1, 1], np.float32)
    image = distorted(image, rng)
    image = (image.astype(np.float32) / 255 - MEAN) / STD
    above, before = (SIZE[0] - rows) // 2, (SIZE[1] - columns) // 2
    border = (above, SIZE[0] - rows - above, before, SIZE[1] - columns - before, cv2.BORDER_CONSTANT)
    image, depth, normals = (cv2.copyMakeBorder(x, *border, value=(0, 0, 0)) for x in (image, depth, normals))
    label = cv2.copyMakeBorder(label, *border, value=255)
    normals[np.linalg.norm(normals, axis=-1) == 0] = 255
    depth[depth == 0] = 255
    maps = {"image": image, "semseg": label[..., None], "depth": depth[..., None], "normals": normals}
    return {key: torch.from_numpy(np.ascontiguousarray(x.transpose(2, 0, 1), np.float32)) for key, x in maps.items()}


def distorted(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Brightness, contrast, saturation and hue, each on the whole image (protocol.md 3.2, step 4)."""

    def levels(x: np.ndarray) -> np.ndarray:
        return x.clip(0, 255).astype(np.uint8)

    image = levels(image)
    first = rng.random() < 0.5
    if rng.random() < 0.5:
        image = levels(image.astype(np.float32) + rng.uniform(-32, 32))
    if first and rng.random() < 0.5:
        image = levels(image.astype(np.float32) * rng.uniform(0.5, 1.5))
    if rng.random() < 0.5:
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
        hsv[..., 1] = levels(hsv[..., 1].astype(np.float32) * rng.uniform(0.5, 1.5))
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    if rng.random() < 0.5:
        hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)
        hsv[..., 0] = (hsv[..., 0].astype(int) + rng.integers(-18, 18)) % 180
        image = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    if not first and rng.random() < 0.5:
        image = levels(image.astype(np.float32) * rng.uniform(0.5, 1.5))
    return image


def seconds(work: Callable[[], object]) -> float:
    """CPU time of this process: other work on the machine does not count."""
    start = time.process_time()
    work()
    return time.process_time() - start


def stages(data: PartialLabels, count: int) -> dict[str, float]:
    """Where our time goes, in CPU milliseconds per sample."""
    rng, spent = np.random.default_rng(0), dict.fromkeys(("reading", "geometry", "colour", "padding, tensors"), 0.0)
    compose = data.transform.compose  # type: ignore[attr-defined]
    collected: list[Batch] = []
    batches = 0.0
    for index in range(count):
        arrays = {"image": data.source.image(index)}
        start = time.process_time()
        arrays = {"image": data.source.image(index)}
        arrays |= {task.name: data.source.label(index, task.name) for task in data.tasks}
        spent["reading"] += time.process_time() - start
        arrays["image"] = np.rint(arrays["image"] * 255).astype(np.uint8)
        for transform in compose.transforms:
            transform.set_random_state(rng, random.Random(index))
            start = time.process_time()
            arrays = transform(**arrays)
            name = "colour" if type(transform).__name__ == "Photometric" else "geometry"
            spent[name] += time.process_time() - start
        valid = np.ones(arrays["image"].shape[:2], bool)
        start = time.process_time()
        collected.append(to_sample(arrays, valid, data.tasks, str(index)))
        spent["padding, tensors"] += time.process_time() - start
    same = [sample for sample in collected if sample["image"].shape == collected[0]["image"].shape]
    batches = seconds(lambda: collate(same)) / len(same)
    return {name: 1000 * total / count for name, total in spent.items()} | {"collation": 1000 * batches}


def main() -> None:
    """Write a tree, time both in turn, print the ratio and the stages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=200, help="Samples per round.")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    images = 12
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_nyud(root, train=images, val=1, size=SIZE)
        module = NYUDDataModule(str(root), labels="full", seed=0)
        data = module.dataset("train")
        rng = np.random.default_rng(0)
        ratios, ours, plain = [], [], []
        for turn in range(given.rounds + 1):
            mine = seconds(lambda epoch=turn: [data[Draw(i % images, epoch * 1000 + i)] for i in range(given.samples)])  # type: ignore[misc]
            other = seconds(lambda: [plain_sample(root, i % images, rng) for i in range(given.samples)])
            if turn:  # the first round warms files and libraries up
                ours.append(given.samples / mine)
                plain.append(given.samples / other)
                ratios.append(other / mine)
        print(f"samples per second and core: ours {statistics.median(ours):.0f}, plain {statistics.median(plain):.0f}")
        print(f"ratio: median {statistics.median(ratios):.2f}, from {min(ratios):.2f} to {max(ratios):.2f}")
        print(", ".join(f"{name} {ms:.2f} ms" for name, ms in stages(data, images).items()))


if __name__ == "__main__":
    main()
