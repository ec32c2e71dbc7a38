import pickle

import numpy as np
import pytest

from htt_lightning.data.datasets import synthetic
from htt_lightning.data.datasets.synthetic import SyntheticScenes, write_nyud_tree
from htt_lightning.errors import HTTError
from tests.tiny import tiny_data, tiny_trainer

SIZE = (24, 32)


def same(first: SyntheticScenes, second: SyntheticScenes, index: int) -> bool:
    labels = all((first.label(index, task) == second.label(index, task)).all() for task in first.tasks)
    return labels and (first.image(index) == second.image(index)).all()


@pytest.fixture
def renders(monkeypatch):
    calls = []

    def counted(*key):
        calls.append(key)
        return synthetic.__dict__["_original"](*key)

    monkeypatch.setattr(synthetic, "_original", synthetic.render, raising=False)
    monkeypatch.setattr(synthetic, "render", counted)
    return calls


def test_splits_have_plain_ids_and_six_tasks():
    scenes = SyntheticScenes("train", 12, SIZE)
    assert scenes.ids == [str(index) for index in range(12)]
    assert set(scenes.tasks) == {"semseg", "human_parts", "saliency", "normals", "depth", "edges"}
    assert scenes.image(11).shape == (*SIZE, 3)


def test_longer_splits_begin_with_the_same_scenes():
    assert same(SyntheticScenes("train", 3, SIZE), SyntheticScenes("train", 9, SIZE), 2)


def test_splits_and_seeds_are_disjoint():
    depth = [
        SyntheticScenes(split, 3, SIZE, seed).label(index, "depth").tobytes()
        for split in ("train", "val")
        for seed in (0, 1)
        for index in range(3)
    ]
    assert len(set(depth)) == 12


def test_image_and_labels_are_rendered_once(renders):
    scenes = SyntheticScenes("train", 3, SIZE)
    scenes.image(1)
    for task in scenes.tasks:
        scenes.label(1, task)
    assert len(renders) == 1
    scenes.image(2)
    assert len(renders) == 2


def test_changing_arrays_does_not_change_scenes():
    scenes = SyntheticScenes("val", 2, SIZE)
    scenes.image(0)[:] = 0
    scenes.label(0, "depth")[:] = 0
    assert same(scenes, SyntheticScenes("val", 2, SIZE), 0)


def test_datasets_can_be_pickled(tmp_path):
    scenes = SyntheticScenes("val", 2, SIZE, cache=tmp_path)
    scenes.image(1)
    assert same(pickle.loads(pickle.dumps(scenes)), scenes, 0)


def test_cached_scenes_are_rendered_once(tmp_path, renders):
    first = SyntheticScenes("train", 2, SIZE, cache=tmp_path)
    assert same(first, SyntheticScenes("train", 2, SIZE), 1)
    assert len(renders) == 2
    assert same(SyntheticScenes("train", 2, SIZE, cache=tmp_path), first, 1)
    assert len(renders) == 2
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["1.npz"]


@pytest.mark.parametrize("workers", [0, 2])
def test_prerender_fills_the_cache_before_training(tmp_path, renders, workers):
    data = tiny_data(train_images=5, val_images=3, cache=tmp_path, num_workers=workers, labels="full")
    data.prepare_data()
    assert len(list(tmp_path.rglob("train/*.npz"))) == 5
    assert len(list(tmp_path.rglob("val/*.npz"))) == 3
    renders.clear()
    data.prepare_data()
    data.setup("fit")
    assert data.train[4]["id"] == "4"
    assert renders == []


@pytest.mark.parametrize(("command", "trial", "expected"), [("fit", 0, 5), ("validate", 0, 3), ("fit", 1, 0)])
def test_prerender_is_limited_to_the_splits_of_a_run(tmp_path, command, trial, expected):
    data = tiny_data(train_images=2, val_images=3, cache=tmp_path)
    data.trainer = tiny_trainer(tmp_path, fast_dev_run=trial)
    data.trainer.state.fn = command
    data.prepare_data()
    assert len(list(tmp_path.rglob("*.npz"))) == expected


def test_corrupt_cache_files_are_rendered_again(tmp_path):
    SyntheticScenes("train", 1, SIZE, cache=tmp_path).image(0)
    (path,) = tmp_path.rglob("*.npz")
    sound = path.read_bytes()
    damaged = [sound[: int(len(sound) * share)] for share in (0, 0.3, 0.999)]
    places = range(0, len(sound), len(sound) // 60)
    damaged += [sound[:place] + bytes([sound[place] ^ 255]) + sound[place + 1 :] for place in places]
    for content in damaged:
        path.write_bytes(content)
        assert same(SyntheticScenes("train", 1, SIZE, cache=tmp_path), SyntheticScenes("train", 1, SIZE), 0)
        assert len(path.read_bytes()) == len(sound)


@pytest.mark.parametrize("labels", ["one-label", "random-label"])
def test_masks_give_human_parts_only_to_people(labels):
    data = tiny_data(train_images=40, image_size=(64, 96), labels=labels)
    data.setup("fit")
    column = data.mask.tasks.index("human_parts")
    people = np.array([np.isin(data.train.dataset.label(k, "human_parts"), range(1, 7)).any() for k in range(40)])
    assert 0 < people.sum() < 40
    assert not data.mask.labeled[~people, column].any()
    assert data.mask.labeled[people, column].any()


def test_caches_differ_by_seed_size_split_and_version(tmp_path, monkeypatch, renders):
    SyntheticScenes("train", 1, SIZE, cache=tmp_path).image(0)
    SyntheticScenes("val", 1, SIZE, cache=tmp_path).image(0)
    SyntheticScenes("train", 1, SIZE, 1, cache=tmp_path).image(0)
    SyntheticScenes("train", 1, SIZE[::-1], cache=tmp_path).image(0)
    monkeypatch.setattr(synthetic, "RENDERER_VERSION", -1)
    SyntheticScenes("train", 1, SIZE, cache=tmp_path).image(0)
    assert len(renders) == 5


def test_night_changes_images_and_no_labels(tmp_path):
    day = tiny_data(train_images=3, cache=tmp_path).build_dataset("train")
    night = tiny_data(train_images=3, cache=tmp_path, style="night").build_dataset("train")
    for index in range(3):
        assert all((day.label(index, task) == night.label(index, task)).all() for task in day.tasks)
        blue, dark = (image.mean((0, 1)) for image in (day.image(index), night.image(index)))
        assert dark[2] / dark[0] > 1.3 * blue[2] / blue[0]
        assert (day.image(index) != night.image(index)).mean() > 0.9
    assert {path.parent.parent.name for path in tmp_path.rglob("*.npz")} == {"v1-seed0-32x48", "v1-seed0-32x48-night"}


@pytest.mark.parametrize(
    "arguments",
    [
        ("test", 1, SIZE),
        ("train", 0, SIZE),
        ("train", 1, (0, 9)),
        ("train", 1, SIZE, -1),
        ("train", 1, SIZE, 0, None, "dusk"),
    ],
)
def test_invalid_collections_are_rejected(arguments):
    with pytest.raises(HTTError):
        SyntheticScenes(*arguments)


def test_nyud_tree_has_the_scenes_with_holes(tmp_path):
    write_nyud_tree(tmp_path, train=2, val=1, size=(60, 80), seed=3)
    files = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.npy")}
    indices = {"train": (0, 1), "val": (0,)}
    assert files == {
        f"{split}/{folder}/{index}.npy"
        for split in indices
        for folder in ("image", "label", "depth", "normal")
        for index in indices[split]
    }
    for split in indices:
        scenes = SyntheticScenes(split, 2, (60, 80), seed=3)
        for index in indices[split]:
            image, label, depth, normal = (
                np.load(tmp_path / split / folder / f"{index}.npy") for folder in ("image", "label", "depth", "normal")
            )
            assert {array.dtype.kind for array in (image, label, depth, normal)} == {"f"}
            assert (image.shape, label.shape) == ((60, 80, 3), (60, 80))
            assert (depth.shape, normal.shape) == ((60, 80, 1), (60, 80, 3))
            np.testing.assert_array_equal((image * 255).round(), scenes.image(index))
            for array, task, missing in (
                (label, "semseg", label == -1),
                (depth[..., 0], "depth", depth[..., 0] == 0),
                (normal, "normals", (normal == 0).all(-1)),
            ):
                assert 0 < missing.mean() < 0.03
                np.testing.assert_array_equal(array[~missing], scenes.label(index, task)[~missing])
