"""Measure samples per second of the loader, and of a plain transcription of the recipe.

    python benchmarks/loader.py                     # NYUD-v2's 13 classes at 288x384
    python benchmarks/loader.py --dataset pascal    # PASCAL-Context, 375x500 in crops of 512x512

Scenes are written in the dataset's format first. Both read the same files and draw from the same distributions, in turn
in one process and on one thread. The plain one does every step of ATRC's augmentation on the whole image, one after the
other. scikit-image thins PASCAL's edges in both. All labels are used (``labels: full``); with partial labels the loader
reads fewer files.
"""

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from scipy.io import loadmat, savemat
from skimage.morphology import thin
from torch.utils.data import default_collate

from htt_lightning import NYUDDataModule, PASCALContextDataModule
from htt_lightning.data.batch import SampleIndex, to_sample
from htt_lightning.data.dataset import PartialLabelDataset
from htt_lightning.data.datasets.pascal_context import CLASSES_WITH_NORMALS, PARTS
from htt_lightning.data.datasets.synthetic import write_nyud_tree
from htt_lightning.data.synthetic_scenes import render

Maps = dict[str, np.ndarray]
MEAN, STD = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)


def plain_nyud(root: Path, index: int) -> Maps:
    """Read a stored sample of NYUD-v2."""
    read = {key: np.load(root / "train" / key / f"{index}.npy") for key in ("image", "label", "depth", "normal")}
    label = np.where(read["label"] < 0, 255, read["label"]).astype(np.float32)
    return {"image": read["image"] * 255, "semseg": label, "depth": read["depth"][..., 0], "normals": read["normal"]}


def plain_pascal(root: Path, index: int) -> Maps:
    """Read a stored sample of PASCAL-Context."""
    name = f"2008_{index:06d}"
    maps = {"image": np.array(Image.open(root / "JPEGImages" / f"{name}.jpg").convert("RGB"), np.float32)}
    maps["semseg"] = np.array(Image.open(root / "semseg" / "VOC12" / f"{name}.png"), np.float32)
    maps["human_parts"] = np.zeros(maps["semseg"].shape, np.float32)
    things = loadmat(root / "human_parts" / f"{name}.mat")["anno"][0, 0]["objects"][0] if shown(name) else ()
    for thing in things:
        if thing["class_ind"].item() == 15 and thing["parts"].size:
            for part in thing["parts"][0]:
                maps["human_parts"][part["mask"] > 0] = PARTS[part["part_name"].item()]
    maps["saliency"] = (np.array(Image.open(root / "sal_distill" / f"{name}.png")) / 255 > 0.5).astype(np.float32)
    segments = root / "pascal-context" / "trainval" / f"{name}.mat"
    normals = 2 * np.array(Image.open(root / "normals_distill" / f"{name}.png"), np.float32) / 255 - 1
    normals[~np.isin(loadmat(segments)["LabelMap"], CLASSES_WITH_NORMALS)] = 0
    edges = np.abs(cv2.Laplacian(loadmat(segments)["LabelMap"].astype(np.float64), cv2.CV_64F)) > 0
    return maps | {"normals": normals, "edges": thin(edges).astype(np.float32)}


def shown(name: str) -> bool:
    """Return True if an image shows a person."""
    return int(name[5:]) % 3 == 0


def plain_sample(maps: Maps, size: tuple[int, int], rng: np.random.Generator) -> dict[str, torch.Tensor]:
    """Augment a sample step by step, by the recipe of ATRC."""
    old, factor = maps["image"].shape[:2], rng.uniform(0.5, 2.0)
    height, width = int(old[0] * factor), int(old[1] * factor)
    for key, array in maps.items():
        smooth = cv2.INTER_LINEAR if key == "image" else cv2.INTER_NEAREST
        maps[key] = cv2.resize(array / factor if key == "depth" else array, (width, height), interpolation=smooth)
    rows, columns = min(height, size[0]), min(width, size[1])
    for _ in range(10):
        top, left = rng.integers(height - rows + 1), rng.integers(width - columns + 1)
        window = slice(top, top + rows), slice(left, left + columns)
        classes, counts = np.unique(maps["semseg"][window], return_counts=True)
        counts = counts[classes != 255]
        if len(counts) > 1 and counts.max() < 0.75 * counts.sum():
            break
    maps = {key: array[window] for key, array in maps.items()}
    if rng.random() < 0.5:
        maps = {key: np.ascontiguousarray(array[:, ::-1]) for key, array in maps.items()}
        maps["normals"] = maps["normals"] * np.array([-1, 1, 1], np.float32)
    maps["image"] = (distorted(maps["image"], rng).astype(np.float32) / 255 - MEAN) / STD
    above, before = (size[0] - rows) // 2, (size[1] - columns) // 2
    border = (above, size[0] - rows - above, before, size[1] - columns - before, cv2.BORDER_CONSTANT)
    for key, array in maps.items():
        outside = 0 if key in ("image", "depth", "normals") else 255
        maps[key] = cv2.copyMakeBorder(array, *border, value=(outside,) * 3)
    maps["normals"][np.linalg.norm(maps["normals"], axis=-1) == 0] = 255
    if "depth" in maps:
        maps["depth"][maps["depth"] == 0] = 255
    if "human_parts" in maps and not np.isin(maps["human_parts"], range(1, 7)).any():
        maps["human_parts"][:] = 255
    chw = {key: (array if array.ndim == 3 else array[..., None]).transpose(2, 0, 1) for key, array in maps.items()}
    return {key: torch.from_numpy(np.ascontiguousarray(array, np.float32)) for key, array in chw.items()}


def write_pascal(root: Path, count: int) -> None:
    """Write scenes in PASCAL-Context's layout; one in three shows a person of up to six parts, as in the archive."""
    names = [f"2008_{index:06d}" for index in range(count)]

    def at(*path: str) -> Path:
        (root / Path(*path)).parent.mkdir(parents=True, exist_ok=True)
        return root / Path(*path)

    at("ImageSets", "Context", "train.txt").write_text("\n".join(names))
    at("ImageSets", "Parts", "train.txt").write_text(json.dumps({name: [15] * shown(name) for name in names}))
    parts = ("head", "torso", "luarm", "llarm", "luleg", "llleg")
    for index, name in enumerate(names):
        scene = render(0, index, (375, 500))
        Image.fromarray(scene["image"]).save(at("JPEGImages", f"{name}.jpg"), quality=92)
        Image.fromarray(scene["semseg"]).save(at("semseg", "VOC12", f"{name}.png"))
        Image.fromarray(scene["saliency"] * np.uint8(255)).save(at("sal_distill", f"{name}.png"))
        coded = np.rint((scene["normals"] + 1) * 127.5).astype(np.uint8)
        Image.fromarray(coded).save(at("normals_distill", f"{name}.png"))
        segments = np.array(CLASSES_WITH_NORMALS, np.uint16)[scene["semseg"] * 2 + scene["saliency"]]
        savemat(at("pascal-context", "trainval", f"{name}.mat"), {"LabelMap": segments}, do_compression=True)
        if not shown(name):
            continue
        masks = [(part, (scene["human_parts"] == k).astype(np.uint8)) for k, part in enumerate(parts, 1)]
        found = np.zeros((1, len(masks)), [("part_name", object), ("mask", object)])
        found[0] = masks
        body = (scene["human_parts"] % 255 > 0).astype(np.uint8)
        things = np.zeros((1, 1), [("class", object), ("class_ind", object), ("mask", object), ("parts", object)])
        things[0, 0] = ("person", 15.0, body, found)
        savemat(at("human_parts", f"{name}.mat"), {"anno": {"imname": name, "objects": things}}, do_compression=True)


def distorted(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Change brightness, contrast, saturation and hue, each on the whole image."""

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


def seconds(work: Callable[[int], object], count: int) -> float:
    """Return the CPU time of this process for items 0 to count - 1."""
    start = time.process_time()
    for item in range(count):
        work(item)
    return time.process_time() - start


def stages(data: PartialLabelDataset, count: int, samples: int) -> dict[str, float]:
    """Measure CPU milliseconds per sample by stage of the loader."""
    rng, spent = np.random.default_rng(0), dict[str, float]()
    kinds = {"PhotoMetricDistortion": "color"}
    compose = data.transform.compose  # type: ignore[attr-defined]
    gathered = [data[SampleIndex(0)]] * 4

    def timed(name: str, work: Callable[[], Any]) -> Any:
        start = time.process_time()
        result = work()
        spent[name] = spent.get(name, 0) + time.process_time() - start
        return result

    for index in range(samples):
        arrays = {"image": timed("reading the image", lambda i=index: data.dataset.image(i % count))}  # type: ignore[misc]
        for task in data.tasks:
            read = timed("reading labels", lambda i=index, t=task.name: data.dataset.label(i % count, t))  # type: ignore[misc]
            arrays[task.name] = read
        if arrays["image"].dtype != np.uint8:
            arrays["image"] = np.rint(arrays["image"] * 255).astype(np.uint8)
        for transform in compose.transforms:
            transform.set_random_state(rng, random.Random(index))
            arrays = timed(kinds.get(type(transform).__name__, "geometry"), lambda t=transform, a=arrays: t(**a))  # type: ignore[misc]
        valid = np.ones(arrays["image"].shape[:2], bool)
        timed("tensors", lambda a=arrays, v=valid: to_sample(a, v, data.tasks, ""))  # type: ignore[misc]
        if index % 4 == 0:
            timed("collation", lambda: default_collate(gathered))
    return {name: 1000 * total / samples for name, total in spent.items()}


def main() -> None:
    """Write a tree, time both in turn, and print the ratio and the stages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", choices=("nyud", "pascal"), default="nyud")
    parser.add_argument("--samples", type=int, default=200, help="Samples per round.")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    images = 12
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        if given.dataset == "nyud":
            size, read = (288, 384), plain_nyud
            write_nyud_tree(root, train=images, val=1, size=size)
            data = NYUDDataModule(str(root), labels="full", seed=0).dataset("train")
        else:
            size, read = (512, 512), plain_pascal
            write_pascal(root, images)
            data = PASCALContextDataModule(str(root), labels="full", seed=0).dataset("train")
        rng = np.random.default_rng(0)
        ratios, ours, plain = [], [], []
        for turn in range(given.rounds + 1):
            mine = seconds(lambda i, epoch=turn: data[SampleIndex(i % images, epoch * 1000 + i)], given.samples)  # type: ignore[misc]
            other = seconds(lambda i: plain_sample(read(root, i % images), size, rng), given.samples)
            if turn:  # the first round warms files and libraries up
                ours.append(given.samples / mine)
                plain.append(given.samples / other)
                ratios.append(other / mine)
        print(f"samples per second and core: ours {statistics.median(ours):.0f}, plain {statistics.median(plain):.0f}")
        print(f"ratio: median {statistics.median(ratios):.2f}, from {min(ratios):.2f} to {max(ratios):.2f}")
        print(", ".join(f"{name} {ms:.2f} ms" for name, ms in stages(data, images, given.samples).items()))


if __name__ == "__main__":
    main()
