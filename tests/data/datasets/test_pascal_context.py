"""PASCAL-Context with five tasks."""

import cv2
import numpy as np
import pytest
from PIL import Image
from scipy.io import loadmat, savemat
from skimage.morphology import thin

from htt_lightning.data.datasets.pascal_context import (
    CLASSES,
    CLASSES_WITH_NORMALS,
    PARTS,
    PASCALContext,
    PASCALContextDataModule,
)
from htt_lightning.errors import HTTError
from tests.data.datasets.pascal_tree import (
    ALL,
    ALONE,
    ANY_SIZE,
    FILES,
    FIRST,
    IDS,
    NOBODY,
    SIZES,
    check_all,
    label,
    palette_png,
    people_of,
    save,
    write_parts,
    write_segments,
    write_tree,
)


@pytest.fixture
def root(tmp_path):
    return write_tree(tmp_path / "PASCALContext")


def segments_of(root, name=FIRST):
    return loadmat(root / "pascal-context" / "trainval" / f"{name}.mat")["LabelMap"].astype(int)


def test_images_are_read_from_jpeg(root):
    source = PASCALContext(root.parent, "train")
    assert source.ids == list(IDS["train"])
    assert source.image(1).shape == (40, 28, 3)
    with Image.open(root / "JPEGImages" / f"{FIRST}.jpg") as image:
        np.testing.assert_array_equal(source.image(0), np.asarray(image))


def test_constants_are_the_published_ones():
    assert len(set(CLASSES)) == 21
    assert CLASSES[15] == "person"
    assert (len(PARTS), set(PARTS.values())) == (24, {1, 2, 3, 4, 5, 6})
    assert len(set(CLASSES_WITH_NORMALS)) == 170
    assert 427 in CLASSES_WITH_NORMALS
    assert 431 not in CLASSES_WITH_NORMALS


def test_semseg_is_read_from_voc_before_context(root):
    classes = label(root, "semseg")
    with Image.open(root / "semseg" / "VOC12" / f"{FIRST}.png") as image:
        np.testing.assert_array_equal(classes, np.asarray(image))
    assert (classes[0, :9] == 255).all()
    assert classes.dtype == np.uint8
    with Image.open(root / "semseg" / "pascal-context" / f"{NOBODY}.png") as image:
        np.testing.assert_array_equal(label(root, "semseg", NOBODY), np.asarray(image))
    palette_png(root / "semseg" / "pascal-context" / f"{FIRST}.png", np.zeros((30, 40), np.uint8))
    np.testing.assert_array_equal(label(root, "semseg"), classes)


def test_saliency_is_above_half(root):
    levels = np.tile(np.array([0, 127, 128, 255], np.uint8), (30, 10))
    save(root / "sal_distill" / f"{FIRST}.png", levels)
    saliency = label(root, "saliency")
    assert saliency.dtype == np.uint8
    np.testing.assert_array_equal(saliency, levels / 255 > 0.5)


def test_normals_are_missing_where_segments_have_none(root):
    normals, segments = label(root, "normals"), segments_of(root)
    with Image.open(root / "normals_distill" / f"{FIRST}.png") as image:
        expected = 2 * np.asarray(image).astype(float) / 255 - 1
    expected /= np.linalg.norm(expected, axis=-1, keepdims=True)
    expected[~np.isin(segments, CLASSES_WITH_NORMALS)] = np.nan
    assert normals.dtype == np.float32
    assert 0 < np.isnan(normals).mean() < 1
    np.testing.assert_allclose(normals, expected, atol=1e-5)


def test_training_edges_are_the_thinned_laplacian(root):
    segments = segments_of(root)
    padded = np.pad(segments, 1, mode="reflect")
    cross = padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:] - 4 * segments
    edges = label(root, "edges")
    assert edges.dtype == np.uint8
    np.testing.assert_array_equal(edges, thin(np.abs(cross) > 0))
    assert 0 < edges.sum() < (cross != 0).sum()


def test_evaluation_edges_are_the_raw_boundaries(root):
    name = IDS["val"][0]
    segments = segments_of(root, name)
    expected = [
        [
            segments[y, x] != segments[min(y + 1, 35), x] or segments[y, x] != segments[y, min(x + 1, 39)]
            for x in range(40)
        ]
        for y in range(36)
    ]
    np.testing.assert_array_equal(label(root, "edges", name, "val"), expected)


@pytest.mark.parametrize("task", ["semseg", "human_parts", "saliency", "edges"])
def test_maps_of_other_sizes_are_resized_by_nearest_neighbor(root, task):
    native = label(root, task)

    def enlarged(array):
        return array.repeat(2, 0).repeat(3, 1)

    for folder in ("semseg/VOC12", "sal_distill"):
        path = root / folder / f"{FIRST}.png"
        array = np.asarray(Image.open(path))
        palette_png(path, enlarged(array)) if "VOC" in folder else save(path, enlarged(array))
    write_segments(root / "pascal-context" / "trainval" / f"{FIRST}.mat", enlarged(segments_of(root)))
    grown = [
        (c, k, enlarged(mask), [(n, enlarged(m)) for n, m in parts])
        for c, k, mask, parts in people_of(FIRST, SIZES[FIRST])
    ]
    write_parts(root / "human_parts" / f"{FIRST}.mat", grown)
    np.testing.assert_array_equal(label(root, task), native)


def test_normals_and_segments_are_resized_to_the_image(root):
    path = root / "normals_distill" / f"{FIRST}.png"
    save(path, cv2.resize(np.asarray(Image.open(path)), (20, 15)))
    write_segments(root / "pascal-context" / "trainval" / f"{FIRST}.mat", np.array([[3.0, 431.0], [3.0, 431.0]]))
    normals = label(root, "normals")
    assert normals.shape == (30, 40, 3)
    np.testing.assert_allclose(np.linalg.norm(normals[:, :20], axis=-1), 1, atol=1e-5)
    assert np.isnan(normals[:, 20:]).all()


def test_tasks_have_canonical_order_and_published_settings(root):
    data = PASCALContextDataModule(str(root))
    assert data.canonical_tasks == ALL
    assert [task.loss_weight for task in data.tasks] == [1, 2, 5, 10, 50]
    assert [task.confidence_threshold for task in data.tasks] == [0.9, 0.85, 0.7, 0.7, 0.99]
    assert [task.pseudo_label_weight for task in data.tasks] == [1, 1, 1, 1, 0.05]
    assert data.tasks[4].tolerance == 0.0075
    assert [task.num_tokens for task in data.tasks] == [21, 7, 2, 40, 1]


def test_images_of_all_sizes_are_padded_to_the_published_size(root):
    data = PASCALContextDataModule(str(root), labels="full", batch_size=2, num_workers=0, seed=0)
    data.prepare_data()
    data.setup("fit")
    for loader in (data.train_dataloader(), data.val_dataloader()):
        assert next(iter(loader))["image"].shape == (2, 3, 512, 512)
    uncropped = PASCALContextDataModule(str(root), augment=None, num_workers=0)
    with pytest.raises(HTTError, match=r"Set data\.image_size") as error:
        uncropped.prepare_data()
    assert not error.value.expected_layout  # no file is missing
    PASCALContextDataModule(str(root), augment=None, image_size=(24, 32), num_workers=0).prepare_data()


# Problems


def test_check_decodes_no_pixels_and_no_annotations(root, monkeypatch):
    for split in ("train", "val"):
        PASCALContext(root, split).available("human_parts")
    data = PASCALContextDataModule(str(root), labels="full", batch_size=2, num_workers=0, seed=0)
    monkeypatch.setattr("PIL.Image.Image.load", lambda *_: pytest.fail("decoded a file"))
    monkeypatch.setattr("htt_lightning.data.datasets.pascal_context.read_mat", lambda *_: pytest.fail("read a file"))
    data.prepare_data()
    data.setup("fit")


def test_labels_that_exif_turns_away_are_refused(root):
    path, tags = root / "JPEGImages" / f"{FIRST}.jpg", Image.Exif()
    tags[0x0112] = 6
    with Image.open(path) as image:
        image.save(path, exif=tags)
    source = PASCALContext(root, "train", **ANY_SIZE)
    assert source.image(0).shape == (40, 30, 3)
    with pytest.raises(HTTError) as error:
        source.check({FIRST: ALL})
    texts = [one.message for one in error.value.errors if "which EXIF turns to (40, 30), got (30, 40)" in one.message]
    assert [folder in text for folder, text in zip(("VOC12", "sal_", "normals_"), texts, strict=True)] == [True] * 3
    for task in ("semseg", "human_parts", "saliency", "edges"):
        with pytest.raises(HTTError, match="EXIF turns"):
            source.label(0, task)


def test_missing_roots_and_folders_are_reported_with_the_layout(root):
    with pytest.raises(HTTError, match=r"nowhere[\s\S]*semseg/VOC12/<id>\.png"):
        PASCALContext(root / "nowhere", "train")
    (root / "sal_distill").rename(root / "saliency")
    with pytest.raises(HTTError) as error:
        check_all(root)
    assert len(error.value.errors) == 4
    assert "normals_distill/<id>.png" in str(error.value)


@pytest.mark.parametrize("name", [FIRST, ALONE])
@pytest.mark.parametrize("task", ALL)
def test_missing_and_corrupt_labels_are_reported_unless_hidden(root, task, name):
    dataset = PASCALContext(root, "train", **ANY_SIZE)
    dataset.available("human_parts")
    path = root / FILES[task].format(name)
    content = path.read_bytes()
    for broken in (content[: len(content) // 2], content[:100], b""):
        path.write_bytes(broken)
        with pytest.raises(HTTError, match=path.name):
            label(root, task, name)
    path.unlink()
    for read in (lambda: check_all(root), lambda: label(root, task, name)):
        with pytest.raises(HTTError, match=rf"{path.name} is missing"):
            read()
    needs = {"normals", "edges"} if task == "edges" else {task}
    dataset.check({name: [other for other in ALL if other not in needs], NOBODY: ALL})


def test_matlab_files_without_the_variable_are_rejected(root):
    path = root / FILES["edges"].format(FIRST)
    for write in (
        lambda: savemat(path, {"labels": np.ones((3, 3))}),
        lambda: path.write_bytes(b"\x89HDF" + bytes(999)),
    ):
        write()
        with pytest.raises(HTTError, match=path.name):
            label(root, "edges")


@pytest.mark.parametrize(
    "segments",
    [*(np.full((30, 40), value) for value in (460, -1, 0.5, np.nan)), np.ones((30, 40, 2)), "text"],
)
def test_invalid_segments_are_rejected(root, segments):
    write_segments(root / FILES["edges"].format(FIRST), segments)
    for task in ("edges", "normals"):
        with pytest.raises(HTTError, match=rf"{FIRST}\.mat must have"):
            label(root, task)


@pytest.mark.parametrize("value", [21, 254])
def test_unknown_classes_are_rejected(root, value):
    palette_png(root / FILES["semseg"].format(FIRST), np.full((30, 40), value, np.uint8))
    with pytest.raises(HTTError, match=rf"{FIRST}\.png must have classes 0 to 20.*got {value}"):
        label(root, "semseg")


def test_check_names_images_of_other_types(root):
    save(root / FILES["normals"].format(FIRST), np.zeros((30, 40), np.uint8))
    save(root / FILES["saliency"].format(ALONE), np.zeros((40, 28, 3), np.uint8))
    with pytest.raises(HTTError, match=rf"{FIRST}\.png[\s\S]*{ALONE}\.png"):
        check_all(root)
