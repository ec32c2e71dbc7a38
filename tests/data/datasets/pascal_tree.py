"""A small tree in exactly the formats of PASCAL-Context."""

from pathlib import Path

import cv2
import numpy as np
from PIL import Image
from scipy.io import savemat

from htt_lightning.data.datasets.pascal_context import PASCALContext

ALL = ("semseg", "human_parts", "saliency", "normals", "edges")
SIZES = {"2008_000002": (30, 40), "2008_000008": (40, 28), "2008_000010": (34, 40), "2009_000003": (24, 32)}
IDS = {"train": ("2008_000002", "2008_000008", "2008_000010", "2009_000003"), "val": ("2010_000001", "2010_000002")}
FIRST, ALONE, NO_PARTS, NOBODY = IDS["train"]
"""Two persons and a dog; one person, of one part; a person without parts; no object at all."""
ANY_SIZE = {"uniform_size": False}
FILES = {
    "semseg": "semseg/VOC12/{}.png",
    "human_parts": "human_parts/{}.mat",
    "saliency": "sal_distill/{}.png",
    "normals": "normals_distill/{}.png",
    "edges": "pascal-context/trainval/{}.mat",
}


def block(size, rows, columns):
    mask = np.zeros(size, np.uint8)
    mask[slice(*rows), slice(*columns)] = 1
    return mask


def struct_array(fields, rows):
    """A MATLAB struct array ``1 n``; without a row it is empty, as PASCAL-Part writes it."""
    if not rows:
        return np.zeros((0, 0))
    array = np.zeros((1, len(rows)), [(field, object) for field in fields])
    for place, row in enumerate(rows):
        array[0, place] = row
    return array


def write_parts(path, objects, compressed=True):
    """``anno.objects(i).class / class_ind / mask / parts(j).part_name / mask``.

    ``objects`` lists the class, its index, the mask, and names and masks of the parts.
    """
    rows = [(c, float(index), mask, struct_array(("part_name", "mask"), parts)) for c, index, mask, parts in objects]
    objects = struct_array(("class", "class_ind", "mask", "parts"), rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    anno = struct_array(("imname", "objects"), [(path.stem, objects)])
    savemat(path, {"anno": anno}, do_compression=compressed)


def people_of(name, size):
    body, dog = (
        block(size, (2, 20), (3, 15)),
        ("dog", 12, block(size, (20, 24), (0, 9)), [("lleg", block(size, (20, 22), (0, 3)))]),
    )
    if name == ALONE:
        return [("person", 15, body, [("torso", block(size, (5, 12), (4, 12)))])]
    if name == NO_PARTS:
        return [("person", 15, body, []), dog]
    if name == NOBODY:
        return []
    parts = [
        ("torso", block(size, (8, 16), (4, 14))),
        ("head", block(size, (2, 9), (5, 10))),
        ("rfoot", block(size, (18, 20), (8, 12))),
    ]
    return [("person", 15, body, parts), dog, ("person", 15, body, [("lhand", block(size, (7, 10), (8, 18)))])]


def write_segments(path, segments):
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, {"LabelMap": segments}, do_compression=True)


def save(path, picture, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    picture.save(path, **options)


def palette_png(path, indices):
    image = Image.frombytes("P", indices.shape[::-1], indices.tobytes())
    image.putpalette(np.random.default_rng(0).permutation(768).astype(np.uint8).tobytes())
    save(path, image)


def write_tree(folder: Path) -> Path:
    for split, names in IDS.items():
        path = folder / "ImageSets" / "Context" / f"{split}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(names) + "\n")
        for seed, name in enumerate(names):
            rng, size = np.random.default_rng(seed), SIZES.get(name, (36, 40))
            save(
                folder / "JPEGImages" / f"{name}.jpg", cv2.resize(rng.integers(0, 256, (4, 5, 3), np.uint8), size[::-1])
            )
            classes = rng.integers(0, 21, size, np.uint8)
            classes[0, :9] = 255
            palette_png(folder / "semseg" / ("pascal-context" if name == NOBODY else "VOC12") / f"{name}.png", classes)
            write_parts(folder / "human_parts" / f"{name}.mat", people_of(name, size), compressed=name != ALONE)
            ids = rng.choice([2, 3, 5, 9, 427, 431, 454, 459], (6, 8)).astype(np.uint16)
            ids[0, :2] = 3, 431
            segments = cv2.resize(ids, size[::-1], interpolation=cv2.INTER_NEAREST)
            write_segments(folder / "pascal-context" / "trainval" / f"{name}.mat", segments)
            save(folder / "normals_distill" / f"{name}.png", rng.integers(0, 256, (*size, 3), np.uint8))
            save(folder / "sal_distill" / f"{name}.png", rng.integers(0, 256, size, np.uint8))
    return folder


def label(root, task, name=FIRST, split="train"):
    source = PASCALContext(root, split)
    return source.label(source.ids.index(name), task)


def check_all(root, split="train"):
    source = PASCALContext(root, split, **ANY_SIZE)
    source.check(dict.fromkeys(source.ids, ALL))
