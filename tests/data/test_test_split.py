"""The split that ``test`` scores: a test split of one's own, or any other."""

import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest

from htt_lightning.commands.check.command import inspect
from htt_lightning.data import MixedDataModule, NYUDDataModule
from htt_lightning.data.datasets.synthetic import write_nyud_tree
from htt_lightning.errors import CheckpointError, ConfigError
from tests.data.datasets.folder_tree import KEPT, LABELLED, MAPS, SIZE, TASKS, folder, rows_of, write_table, write_tree
from tests.tiny import tiny_data, tiny_module, tiny_trainer

FILES = [replace(files, test=files.val.replace("val", "test")) for files in MAPS]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Three splits; image 20 is in the test split alone."""
    path = write_tree(tmp_path_factory.mktemp("data") / "mine")
    shutil.copytree(path / "val", path / "test")
    for kind in ("images", *TASKS):
        shutil.move(path / "test" / kind / "1.png", path / "test" / kind / "20.png")
    write_table(path, rows_of({name: KEPT[name] for name in ("3", "10")}, "test"), "test.csv")
    return path


def mine(root, **changes):
    return folder(root, **({"test": "test/images/*.png", "label_files": FILES} | changes))


def scored(data):
    data.setup("test")
    return {data.test.ids[k]: labeled for k, (_, labeled) in enumerate(data.test.items)}


def test_test_split_is_scored_where_there_is_one(root):
    data = mine(root, labels="one-label")
    expected = {("20" if name == "1" else name): labels for name, labels in KEPT.items()}
    assert data.test_split == "test"
    assert scored(data) == expected
    assert [name for batch in data.test_dataloader() for name in batch["id"]] == sorted(expected, key=int)


def test_table_lists_test_images(root):
    files = [replace(files, test=name) for name, files in zip(TASKS, MAPS, strict=True)]
    expected = {f"test/images/{name}": KEPT[name] for name in ("3", "10")}
    assert scored(mine(root, test="test.csv", label_files=files)) == expected


@pytest.mark.parametrize(("split", "expected"), [("val", KEPT), ("train", LABELLED)])
def test_any_split_can_be_scored(root, split, expected):
    data = mine(root, test_split=split)
    assert scored(data) == expected
    sample = data.test[0]
    assert sample["image"].equal(data._eval_dataset(data.build_dataset(split), expected)[0]["image"])


def test_scored_training_images_keep_the_label_mask(root):
    data = folder(root, labels="one-label", test_split="train")
    assert scored(data) == data.labels_per_image("train", data.build_dataset("train"))
    assert {len(labeled) for labeled in scored(data).values()} == {1}


def test_validation_images_are_scored_without_a_test_split(root, tmp_path):
    data = folder(root)
    assert data.test_split == "val"
    module = tiny_module(data)
    (validated,) = tiny_trainer(tmp_path).validate(module, data, verbose=False)
    (tested,) = tiny_trainer(tmp_path).test(module, data, verbose=False)
    assert {key.removeprefix("test/"): value for key, value in tested.items()} == pytest.approx(
        {key.removeprefix("val/"): value for key, value in validated.items()}, nan_ok=True
    )


def test_rendered_scenes_are_scored_from_the_cache(tmp_path):
    data = tiny_data(test_split="train", cache=str(tmp_path), train_images=4, tasks="depth", labels="full")
    tiny_trainer(tmp_path, limit_test_batches=1).test(tiny_module(data), data, verbose=False)
    assert data.test.ids == data.build_dataset("train").ids
    assert len(list(tmp_path.rglob("*.npz"))) == 4


def test_split_that_the_dataset_lacks_is_refused(root):
    with pytest.raises(ConfigError, match=r"data\.test_split must be one of train, val, got 'test'"):
        folder(root, test_split="test")
    with pytest.raises(ConfigError, match=r"data\.test must .*semseg"):
        folder(root, label_files=FILES)
    with pytest.raises(ConfigError, match=r"data\.label_files must .*'test/images/\*\.png'"):
        mine(root, label_files=MAPS)


def test_other_label_mask_may_be_scored_but_not_resumed(root):
    data = folder(root, test_split="train")
    data.setup("test")
    for command in ("test", "fit"):
        data.trainer = SimpleNamespace(state=SimpleNamespace(fn=command))
        if command == "test":
            data.load_state_dict({"labels": "another"})
        else:
            with pytest.raises(CheckpointError, match=r"data\.labels"):
                data.load_state_dict({"labels": "another"})


def test_mixture_scores_what_its_datasets_score(root, tmp_path):
    write_nyud_tree(tmp_path / "NYUDv2", train=3, val=2, size=SIZE)
    rooms = NYUDDataModule(str(tmp_path), tasks="depth")
    data = MixedDataModule([rooms, mine(root)], SIZE, num_workers=0, batch_size=2)
    assert data.test_split == "test"
    assert list(scored(data)) == ["0/0", "0/1", *(f"1/{name}" for name in ("2", "3", "4", "10", "11", "12", "20"))]
    assert MixedDataModule([rooms], SIZE).test_split == "val"


def test_check_reads_the_test_split(root, tmp_path):
    copy = shutil.copytree(root, tmp_path / "mine")
    shutil.copy(copy / "train" / "images" / "2.png", copy / "test" / "images" / "2.png")
    (copy / "test" / "depth" / "3.png").write_bytes(b"")
    _, report = inspect(mine(copy))
    assert list(report["splits"]) == ["train", "val", "test"]
    assert {(problem["split"], problem["id"], problem["task"]) for problem in report["problems"]} == {
        ("test", "3", "depth")
    }
    assert "1 of 6 training images also appear in the test split" in " ".join(report["warnings"])
