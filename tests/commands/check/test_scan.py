"""Statistics and problems that ``check`` finds in datasets."""

import numpy as np
import pytest
from PIL import Image

from htt_lightning import MixedDataModule
from htt_lightning.commands.check.command import inspect
from htt_lightning.data import CityscapesDataModule, NYUD40DataModule, NYUDDataModule, PASCALContextDataModule
from htt_lightning.data.datasets.nyud import CLASSES, NYUD
from htt_lightning.data.datasets.synthetic import write_nyud_tree
from htt_lightning.errors import HTTError
from htt_lightning.tasks import Depth
from tests.data.datasets import pascal_tree, test_cityscapes, test_nyud40
from tests.data.datasets.folder_tree import folder, save, write_tree
from tests.data.datasets.pascal_tree import ALONE, FIRST, NO_PARTS, NOBODY
from tests.flow import HeightDataModule, HeightScenes

SIZE = (24, 32)
FOLDERS = {"semseg": "label", "depth": "depth", "normals": "normal"}
SETTINGS = {"labels": "full", "num_workers": 0, "seed": 0}


@pytest.fixture
def root(tmp_path):
    write_nyud_tree(tmp_path / "NYUDv2", train=9, val=3, size=SIZE)
    return tmp_path / "NYUDv2"


def nyud(root, **changes):
    return NYUDDataModule(str(root), **(SETTINGS | changes))


def report_of(data):
    return inspect(data)[1]


def replace(root, kind, change, name, split="train"):
    path = root / split / kind / f"{name}.npy"
    np.save(path, change(np.load(path)))


def found(report):
    return {(row["split"], row["id"], row["task"]): row["message"] for row in report["problems"]}


def assert_found(report, expected):
    """Compare problems by split, id and task, and by a part of the message."""
    problems = found(report)
    assert problems.keys() == expected.keys()
    for place, text in expected.items():
        assert text in problems[place]


@pytest.mark.parametrize("labels", ["full", "one-label"])
def test_statistics_are_those_of_plain_numpy(root, labels):
    replace(root, "depth", lambda a: a * 3, 0, "val")
    data = nyud(root, labels=labels, tasks=["semseg", Depth(min_depth=1.5, max_depth=4.0), "normals"])
    report = report_of(data)
    assert report["problems"] == []
    for split in ("train", "val"):
        kept = data.labels_per_image(split, data.build_dataset(split))
        rows, of_split = report["splits"][split]["tasks"], report["splits"][split]
        assert (of_split["images"], of_split["sizes"]) == (len(kept), {"24x32": len(kept)})
        names = {task: [name for name, tasks in kept.items() if task in tasks] for task in FOLDERS}
        stored = {
            task: np.stack([np.load(root / split / kind / f"{name}.npy").astype(float) for name in names[task]])
            for task, kind in FOLDERS.items()
        }
        valid = {"semseg": stored["semseg"] >= 0, "depth": stored["depth"] > 0, "normals": stored["normals"].any(-1)}
        for task, where in valid.items():
            assert rows[task]["labels"] == len(names[task])
            assert rows[task]["missing_percent"] == pytest.approx(100 - 100 * where.mean())
        shares = [100 * np.mean(stored["semseg"][valid["semseg"]] == k) for k in range(13)]
        assert rows["semseg"]["classes_percent"] == pytest.approx(dict(zip(CLASSES, shares, strict=True)))
        depth = stored["depth"][valid["depth"]]
        outside = 100 * np.mean((depth < 1.5) | (depth > 4))
        assert rows["depth"]["extra"] == {"outside_bins_percent": pytest.approx(outside)}
        assert rows["depth"]["range"] == pytest.approx((depth.min(), depth.max()))
        k = np.arange(40)
        z, turn = 1 - (k + 0.5) / 40, k * np.pi * (3 - np.sqrt(5))
        bins = np.stack([np.sqrt(1 - z * z) * np.cos(turn), np.sqrt(1 - z * z) * np.sin(turn), z], 1)
        angle = np.degrees(np.arccos((stored["normals"][valid["normals"]] @ bins.T).max(1).clip(-1, 1)))
        extra = {"not_unit_percent": 0, "degrees_to_bins": pytest.approx(angle.mean(), abs=0.02)}
        assert rows["normals"]["extra"] == extra


def test_warnings_are_no_problems(root):
    report = report_of(nyud(root, tasks=["semseg", Depth(min_depth=20, max_depth=30)]))
    assert report["problems"] == []
    warnings = "\n".join(report["warnings"])
    for text in ("val semseg: No pixel has the class", "train depth: 100.0 %", "train: 9 images found, but 795"):
        assert text in warnings


def test_every_corrupt_file_is_named(root):
    replace(root, "image", lambda a: a * 255, 0)
    replace(root, "label", lambda a: a[:-1], 1)
    replace(root, "label", lambda a: a + 13, 2)
    (root / "train" / "image" / "3.npy").unlink()
    (root / "train" / "depth" / "4.npy").unlink()
    path = root / "train" / "normal" / "4.npy"
    path.write_bytes(path.read_bytes()[:-50])
    replace(root, "normal", lambda a: (a + 1) * 127.5, 5)
    (root / "val" / "image" / "2.npy").write_bytes(b"nothing")
    expected = {
        ("train", "0", None): "image/0.npy must have colors in [0, 1]",
        ("train", "1", "semseg"): "label/1.npy must have the size (24, 32)",
        ("train", "2", "semseg"): "label/2.npy must have classes",
        ("train", "3", None): "image/3.npy is missing",
        ("train", "4", "depth"): "depth/4.npy is missing",
        ("train", "4", "normals"): "normal/4.npy is corrupt",
        ("train", "5", "normals"): "normal/5.npy must contain unit vectors",
        ("val", "2", None): "image/2.npy is corrupt",
    }
    report = report_of(nyud(root))
    assert_found(report, expected)
    assert "normal/0.npy ..." in report["expected_layout"]
    counts = {task: row["labels"] for task, row in report["splits"]["train"]["tasks"].items()}
    assert counts == {"semseg": 6, "depth": 7, "normals": 6}
    assert report_of(nyud(root, num_workers=2)) == report


def test_other_sizes_are_problems_unless_images_are_resized(root):
    for kind in ("image", *FOLDERS.values()):
        replace(root, kind, lambda a: a[:, :20], 2)
    assert_found(report_of(nyud(root)), {("train", None, None): "image/2.npy must have the size (24, 32)"})
    report = report_of(nyud(root, image_size=SIZE))
    assert report["problems"] == []
    assert report["splits"]["train"]["sizes"] == {"24x20": 1, "24x32": 8}


def test_a_broken_split_is_a_problem_and_the_other_is_read(root):
    (root / "val").rename(root / "validation")
    report = report_of(nyud(root))
    assert_found(report, {("val", None, None): "val/image is missing"})
    assert list(report["splits"]) == ["train"]


def test_all_problems_of_constructors_are_listed(root):
    stray = [root / "train" / "image" / "copy.npy", root / "train" / "depth" / "one.npy"]
    for path in stray:
        path.write_bytes(b"")
    messages = [row["message"] for row in report_of(nyud(root))["problems"]]
    assert [str(path) in message for path, message in zip(sorted(stray), messages, strict=True)] == [True, True]


def test_any_exception_of_a_reader_is_a_problem(root, monkeypatch):
    read = NYUD.label

    def broken(self, index, task):
        if index == 1:
            raise ZeroDivisionError("no reason")
        return read(self, index, task)[:-1] if index == 2 else read(self, index, task)

    monkeypatch.setattr(NYUD, "label", broken)
    texts = {"1": "ZeroDivisionError: no reason", "2": "must have the size (24, 32) of its image, got (23, 32)"}
    expected = {(split, name, task): texts[name] for split in ("train", "val") for name in texts for task in FOLDERS}
    assert_found(report_of(nyud(root)), expected)


@pytest.mark.parametrize(
    "image",
    [np.zeros(SIZE, np.uint8), np.full((*SIZE, 3), 1.1), np.full((*SIZE, 3), np.nan), np.zeros((*SIZE, 3), int)],
)
def test_an_image_of_another_type_is_a_problem(root, monkeypatch, image):
    monkeypatch.setattr(NYUD, "image", lambda self, index: image)
    assert {task for _, _, task in found(report_of(nyud(root)))} == {None}


def test_tasks_of_other_projects_are_checked(monkeypatch):
    data = HeightDataModule(train_images=4, val_images=2, image_size=(32, 48), num_workers=0, labels="full")
    report = report_of(data)
    assert report["problems"] == []
    assert 0 < report["splits"]["train"]["tasks"]["height"]["range"][1] <= 8
    monkeypatch.setattr(HeightScenes, "label", lambda self, index, task: np.zeros((32, 48, 2)))
    assert ("val", "1", "height") in found(report_of(data))


def test_missing_pseudo_labels_are_problems(root, tmp_path):
    (tmp_path / "pseudo").mkdir()
    problems = found(report_of(nyud(root, labels="one-label", pseudo_labels=str(tmp_path / "pseudo"))))
    assert [*problems] == [("train", None, None)]
    assert "manifest.json" in problems["train", None, None]


@pytest.mark.parametrize("progressive", [False, True])
def test_corrupt_jpeg_files_are_problems(tmp_path, progressive):
    root = write_tree(tmp_path, suffix="jpg")
    photo = np.random.default_rng(0).integers(0, 256, (32, 48, 3)).astype(np.uint8)
    for name in ("1", "2", "3"):
        Image.fromarray(photo).save(root / "train" / "images" / f"{name}.jpg", progressive=progressive)
    path = root / "train" / "images" / "2.jpg"
    content = path.read_bytes()
    middle = len(content) * 2 // 3
    path.write_bytes(content[:middle] + bytes([255, 0]) * 40 + content[middle + 80 :])
    path = root / "train" / "images" / "3.jpg"
    path.write_bytes(content[:middle] + b"\xff\xd9")
    data = folder(root, train="train/images/*.jpg", val="val/images/*.jpg")
    data.prepare_data()
    expected = {("train", name, None): f"images/{name}.jpg" for name in ("2", "3")}
    assert_found(report_of(data), expected)


# Every dataset


def cityscapes(root):
    root = test_cityscapes.write_tree(root / "cityscapes")
    np.save(root / "train" / "label_19" / "3.npy", np.full(test_cityscapes.SIZE, 19.0))
    np.save(root / "val" / "depth" / "1.npy", np.ones((3, 3), np.float32))
    (root / "train" / "depth" / "0.npy").unlink()
    return CityscapesDataModule(str(root), classes=19, **SETTINGS), {
        ("train", "0", "depth"): "depth/0.npy is missing",
        ("train", "3", "semseg"): "label_19/3.npy must have classes",
        ("val", "1", "depth"): "depth/1.npy must have the size (16, 32)",
    }


def nyud40(root):
    root = test_nyud40.write_tree(root / "NYUDv2")
    test_nyud40.replace(root, "semseg", np.full(test_nyud40.SIZE, 41, np.uint8))
    test_nyud40.replace(root, "edges", np.full(test_nyud40.SIZE, 1, np.uint8), "3")
    (root / "depth" / "10.npy").unlink()
    (root / "images" / "1448.png").write_bytes(b"")
    (root / "gt_sets" / "val.txt").write_text("1\n5\n77\n")
    return NYUD40DataModule(str(root), **SETTINGS), {
        ("train", "2", "semseg"): "segmentation/2.png",
        ("train", "3", "edges"): "edge/3.png",
        ("train", "10", "depth"): "depth/10.npy is missing",
        ("train", "1448", None): "images/1448.png",
        ("val", "77", None): "images/77.png is missing",
    } | {("val", "77", task): "77." for task in test_nyud40.ALL}


def pascal(root):
    root = pascal_tree.write_tree(root / "PASCALContext")
    PASCALContextDataModule(str(root), **SETTINGS).build_dataset("train")  # lists the people
    for path in (f"JPEGImages/{NOBODY}.jpg", f"human_parts/{FIRST}.mat", f"semseg/VOC12/{NO_PARTS}.png"):
        (root / path).write_bytes((root / path).read_bytes()[:-40])
    (root / "sal_distill" / f"{ALONE}.png").unlink()
    (root / "pascal-context" / "trainval" / f"{ALONE}.mat").write_bytes(b"")
    name = pascal_tree.IDS["val"][0]
    Image.fromarray(np.zeros((5, 5), np.uint8)).save(root / "normals_distill" / f"{name}.png")
    return PASCALContextDataModule(str(root), **SETTINGS), {
        ("train", FIRST, "human_parts"): f"human_parts/{FIRST}.mat",
        ("train", ALONE, "saliency"): f"sal_distill/{ALONE}.png is missing",
        ("train", ALONE, "normals"): f"trainval/{ALONE}.mat",  # edges are read from the same file
        ("train", NO_PARTS, "semseg"): f"VOC12/{NO_PARTS}.png",
        ("train", NOBODY, None): f"JPEGImages/{NOBODY}.jpg",
        ("val", name, "normals"): f"normals_distill/{name}.png",
    }


def own_folder(root):
    root = write_tree(root)
    for path in ("images/1", "semseg/2", "depth/3"):
        (root / "train" / f"{path}.png").write_bytes(b"")
    save(root / "train" / "normals" / "11.png", np.zeros((4, 4, 3), np.uint8))
    save(root / "val" / "semseg" / "2.png", np.full((32, 48), 3, np.uint8))
    return folder(root), {
        ("train", "1", None): "images/1.png",
        ("train", "2", "semseg"): "semseg/2.png",
        ("train", "3", "depth"): "depth/3.png",
        ("train", "11", "normals"): "normals/11.png must have the size",
        ("val", "2", "semseg"): "semseg/2.png",
    }


@pytest.mark.parametrize("plant", [cityscapes, nyud40, pascal, own_folder])
def test_every_dataset_names_its_corrupt_files(plant, tmp_path):
    data, expected = plant(tmp_path)
    assert_found(report_of(data), expected)


def test_a_mixture_names_the_problems_of_all_datasets(root, tmp_path):
    (root / "train" / "depth" / "1.npy").unlink()
    own = write_tree(tmp_path / "mine")
    (own / "train" / "depth" / "3.png").write_bytes(b"")
    parts = [nyud(root, tasks="depth"), folder(own, tasks="depth")]
    report = report_of(MixedDataModule(parts, image_size=SIZE, num_workers=0, seed=0))
    expected = {("train", "0/1", "depth"): "depth/1.npy is missing", ("train", "1/3", "depth"): "depth/3.png"}
    assert_found(report, expected)
    assert "train/" in report["expected_layout"]
    assert any(text.startswith("train: data.datasets 0: 9 images found, but 795") for text in report["warnings"])
    broken = MixedDataModule([nyud(root / "a"), nyud(root / "b")], image_size=SIZE, num_workers=0)
    with pytest.raises(HTTError, match=r"a is missing[\s\S]*b is missing"):
        inspect(broken)
