"""Parquet shards of the Hugging Face hub, against the trees of the same scenes."""

import pickle
import shutil
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet

from htt_lightning import NYUDDataModule
from htt_lightning.cli import main
from htt_lightning.data.datasets.cityscapes import Cityscapes, CityscapesDataModule
from htt_lightning.data.datasets.nyud import NYUD
from htt_lightning.data.datasets.parquet import ParquetDataset
from htt_lightning.errors import DataError, HTTError
from tests.data.datasets import test_cityscapes
from tests.data.datasets.shards import CITYSCAPES_FOLDERS, rows_of, write_shard, write_shards
from tests.tiny import BACKBONE

ALL = ("semseg", "depth", "normals")
SIZE = (32, 48)
SHARD = "train-00001-of-00002.parquet"

pytestmark = pytest.mark.usefixtures("hub_caches")


@pytest.fixture
def root(scenes, tmp_path):
    """A copy of the shards that a test may change."""
    return Path(shutil.copytree(scenes / "features" / "data", tmp_path / "shards"))


def open_train(root, **arguments):
    return NYUDDataModule(str(root), **arguments).build_dataset("train")


def change(root, **changes):
    """Write the second training shard again, with functions of single arrays applied to columns, or None to drop."""
    stored = parquet.read_table(root / SHARD).to_pydict()
    types = {"segmentation": np.int64}
    columns = {
        name: [np.array(values, types.get(name, np.float32)) for values in column]
        for name, column in stored.items()
        if changes.get(name, len) is not None
    }
    for name, function in changes.items():
        if function:
            columns[name] = [function(array) for array in columns[name]]
    write_shard(root / SHARD, columns)


def check_all(root):
    dataset = open_train(root)
    dataset.check(dict.fromkeys(dataset.ids, ALL))
    return dataset


# Reading


@pytest.mark.parametrize("kind", ["features", "lists"])
@pytest.mark.parametrize("split", ["train", "val"])
def test_samples_equal_those_of_the_tree(scenes, kind, split):
    shards, tree = NYUDDataModule(str(scenes / kind)).build_dataset(split), NYUD(scenes, split)
    assert isinstance(shards, ParquetDataset)
    assert shards.ids == tree.ids == [str(number) for number in range(5 if split == "train" else 2)]
    assert shards.content_hash() == tree.content_hash()
    for index in range(len(tree.ids)):
        pairs = [(shards.label(index, task), tree.label(index, task)) for task in ALL]
        for read, expected in [(shards.image(index), tree.image(index)), *pairs]:
            np.testing.assert_array_equal(read, expected)
            assert (read.dtype, read.flags.writeable) == (expected.dtype, True)
        assert shards.size(index) == shards.read_size(index) == SIZE


@pytest.mark.parametrize("classes", [7, 19])
def test_cityscapes_shards_equal_the_tree(tmp_path, classes):
    tree = test_cityscapes.write_tree(tmp_path / "cityscapes")
    for split in ("train", "val"):
        write_shards(tmp_path / "shards", rows_of(tree / split, CITYSCAPES_FOLDERS), split, 2)
    data = CityscapesDataModule(str(tmp_path / "shards"), classes=classes)
    shards, expected = data.build_dataset("val"), Cityscapes(tree, "val", classes)
    assert (len(shards.ids), shards.published) == (2, 500)
    for index in range(2):
        np.testing.assert_allclose(shards.image(index), expected.image(index), atol=1e-7)
        for task in ("semseg", "depth"):
            np.testing.assert_array_equal(shards.label(index, task), expected.label(index, task))
    assert (shards.label(0, "semseg") == 255).any()


def test_published_mask_selects_the_same_labels(scenes, tmp_path):
    path = tmp_path / "onelabel.pth"
    torch.save({"labels_weights": torch.eye(3)[[0, 1, 2, 2, 0]]}, path)  # the published format
    data = [NYUDDataModule(str(scenes / name), labels=str(path)) for name in ("features", "")]
    shards, tree = (one.partial_label_dataset("train") for one in data)
    assert shards.ids == tree.ids
    assert shards.items == tree.items
    for one, other in zip(shards, tree, strict=True):
        torch.testing.assert_close(one["image"], other["image"], rtol=0, atol=0)


def test_only_columns_of_kept_labels_are_read(root, monkeypatch):
    change(root, segmentation=lambda a: a * 0 + 99)  # an error where it is read
    labels = {name: ("depth",) if int(name) > 2 else ("normals",) for name in map(str, range(5))}
    data = NYUDDataModule(str(root), seed=0)
    monkeypatch.setattr(data, "labels_per_image", lambda *_: labels)
    read, getitem = [], datasets.Dataset.__getitem__
    shards = {3: 0, 2: 3}  # the first row by the number of rows
    spy = lambda self, row: read.append((shards[len(self)] + row, *self.column_names)) or getitem(self, row)  # noqa: E731
    monkeypatch.setattr(datasets.Dataset, "__getitem__", spy)
    data.build_dataset("train").check(labels)
    assert len(list(data.partial_label_dataset("train"))) == 5
    expected = {(k, column) for k in range(5) for column in ("image", "depth" if k > 2 else "normal")}
    assert set(read) == expected
    with pytest.raises(DataError, match=rf"{SHARD}, row 0, column 'segmentation', must have classes .* got 99"):
        data.build_dataset("train").label(3, "semseg")


def test_split_can_be_pickled_and_read_by_workers(scenes):
    data = NYUDDataModule(str(scenes / "features"), labels="full", num_workers=2, batch_size=1, augment=None, seed=0)
    dataset = data.build_dataset("train")
    content = pickle.dumps(dataset)
    assert len(content) < 50_000  # paths, no arrays
    np.testing.assert_array_equal(pickle.loads(content).image(3), dataset.image(3))
    data.setup("fit")
    images = {batch["id"][0]: batch["image"][0] for batch in data.train_dataloader()}
    plain = data.train_images_for_eval()
    for index, name in enumerate(plain.ids):
        torch.testing.assert_close(images[name], plain[index]["image"], rtol=0, atol=0.003)  # training images are uint8


def test_changed_shard_is_read_anew(root):
    before = open_train(root).image(4)
    change(root, image=lambda a: 1 - a)
    np.testing.assert_allclose(open_train(root).image(4), 1 - before, atol=1e-6)


@pytest.mark.parametrize("name", ["val-00000.parquet", "validation-00000-of-00001.parquet", "test.parquet"])
def test_validation_shards_have_several_names(root, name):
    (root / "val-00000-of-00001.parquet").rename(root / name)
    assert len(NYUDDataModule(str(root)).build_dataset("val").ids) == 2


def test_published_number_of_rows_is_compared(scenes):
    (warning,) = open_train(scenes / "features").warnings()
    assert "5 images found, but 795 were published. Download" in warning


def test_check_and_fit_run_on_shards(root, in_empty_folder, capsys):
    data = ["--config", "nyud.yaml", "--data.root", str(root), "--data.augment.crop", "[32, 48]",
            "--data.num_workers", "0", "--data.batch_size", "2"]  # fmt: skip
    main(["check", *data])
    main(["fit", *data, "--model.backbone", BACKBONE, "--model.pretrained", "false", "--model.token_dim", "8",
          "--trainer.accelerator", "cpu", "--trainer.max_epochs", "1", "--discovery.stages", "1",
          "--trainer.enable_progress_bar", "false"])  # fmt: skip
    assert "normals/mean" in next(Path("runs").glob("*/val_metrics.json")).read_text()
    assert "795 were published" in capsys.readouterr().out


# Refusing


@pytest.mark.parametrize("length", [0, 3, 2000, -1, -1000])
def test_truncated_shards_are_named(root, length):
    path = root / SHARD
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(DataError, match=rf"{SHARD} is corrupt or no Parquet file"):
        open_train(root)


def test_all_broken_shards_are_reported(root):
    for path in root.glob("train-*"):
        path.write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(DataError) as error:
        open_train(root)
    assert len(error.value.errors) == 2


def test_damage_inside_a_shard_is_named(root):
    content = bytearray((root / SHARD).read_bytes())
    content[4:5000] = bytes(4996)  # headers of the first pages
    (root / SHARD).write_bytes(content)
    with pytest.raises(DataError, match=rf"{SHARD} cannot be read"):
        open_train(root)


@pytest.mark.parametrize("other", ["train-00000-of-00003.parquet", "train-00000-of-00002-0a1b.parquet", None])
def test_missing_and_repeated_shards_are_named(root, other):
    if other is None:
        (root / SHARD).unlink()
    else:
        shutil.copy(root / SHARD, root / other)
    with pytest.raises(DataError, match=r"each of the [23] shards of train once, got"):
        open_train(root)


def test_missing_shard_of_eight_is_named(root):
    for number in (0, 1, 2, 4, 5, 6, 7):
        shutil.copy(root / SHARD, root / f"val-{number:05}-of-00008.parquet")
    (root / "val-00000-of-00001.parquet").unlink()
    with pytest.raises(DataError, match="val-00003-of-00008 missing"):
        NYUDDataModule(str(root)).build_dataset("val")


def test_missing_split_is_named(root):
    (root / "val-00000-of-00001.parquet").unlink()
    with pytest.raises(DataError, match=r"shards must have shards val-\*.* got train-00000.*tanganke/nyuv2"):
        NYUDDataModule(str(root)).build_dataset("val")


@pytest.mark.parametrize(
    ("column", "function", "message"),
    [
        ("segmentation", None, "a column 'segmentation', got image, depth"),
        ("depth", lambda a: a.astype(np.int64), "column 'depth', must be float 1 h w or h w, got int64"),
        ("segmentation", lambda a: a[None], "'segmentation', must be float or integer h w, got .* depth 3"),
        ("image", lambda a: a[0], "column 'image', must be float 3 h w, got float in lists of depth 2"),
        ("normal", lambda a: a > 0, "column 'normal', must be float 3 h w, got bool"),
        ("image", lambda a: np.moveaxis(a, 0, -1), r"row 0, column 'image', must be float 3 h w, got \(32, 48, 3\)"),
        ("depth", lambda a: np.repeat(a, 2, 0), r"row 0, column 'depth', must be .* got \(2, 32, 48\)"),
        ("normal", lambda a: a[..., :9], r"column 'normal', must have the size \(32, 48\) of its image"),
    ],
)
def test_check_names_columns_that_differ(root, column, function, message):
    change(root, **{column: function})
    with pytest.raises(DataError, match=f"{SHARD}.*{message}"):
        check_all(root)


@pytest.mark.parametrize("hole", [None, [[0.5], [0.5, 0.25]], [[0.5, None], [0.5, 0.25]]])
def test_uneven_lists_and_nulls_are_named(scenes, tmp_path, hole):
    table = parquet.read_table(scenes / "lists" / SHARD)
    depth = table["depth"].to_pylist()
    depth[1] = hole and [hole]
    root = tmp_path / "shards"
    shutil.copytree(scenes / "lists", root)
    index = table.column_names.index("depth")
    changed = table.set_column(index, "depth", pa.array(depth, table["depth"].type))
    parquet.write_table(changed, root / SHARD)
    with pytest.raises(DataError, match=rf"{SHARD}, row 1, column 'depth', must be .* got lists"):
        check_all(root)


@pytest.mark.parametrize(
    ("column", "task", "message"),
    [
        ("image", None, "colors in .*Divide"),
        ("segmentation", "semseg", "0 to 12, or -1"),
        ("normal", "normals", "unit"),
    ],
)
def test_values_out_of_range_are_named(root, column, task, message):
    change(root, **{column: lambda a: a * 0 + 200})
    dataset = check_all(root)
    with pytest.raises(DataError, match=rf"{SHARD}, row 1, column '{column}', must .*{message}"):
        dataset.label(4, task) if task else dataset.image(4)


def test_images_of_other_sizes_are_reported_unless_resized(root):
    cut = dict.fromkeys(("image", "segmentation", "depth", "normal"), lambda a: a[..., :40])
    change(root, **cut)
    with pytest.raises(DataError, match=rf"{SHARD}, row 0, .* must have the size \(32, 48\).*image_size"):
        check_all(root)
    assert open_train(root, image_size=SIZE).size(4) == (32, 40)


def test_unknown_tasks_are_rejected(scenes):
    with pytest.raises(HTTError, match="edges"):
        open_train(scenes / "features").label(0, "edges")
