"""Review of discovered labels, without a page."""

import numpy as np
import pytest
import torch

from htt_lightning.commands.app import review as module
from htt_lightning.commands.app.review import Review, describe
from htt_lightning.data.origin import Origin
from htt_lightning.data.pseudo_labels import PseudoLabelStore
from htt_lightning.errors import DataError
from htt_lightning.tasks.colormap import heatmap
from tests.data.test_pseudo_labels import FEW, store_truth
from tests.tiny import tiny_data


@pytest.fixture
def store(tmp_path):
    """Discovered labels whose confidence grows with the number of the image, but for those of depth."""
    store = store_truth(tmp_path / "store", tiny_data(**FEW))
    tasks = {task.name: task for task in tiny_data(**FEW).tasks}
    for name in store.manifest()["images"]:
        maps, missing = {}, missing_of(store, name)
        for task, arrays in ((tasks[task], store.read(name, [tasks[task]])) for task in missing):
            value = 1 - int(name) / 20 if task.name == "depth" else int(name) / 20
            maps[task.name] = task, arrays[f"{task.name}.pseudo_label"], np.full((32, 48), value)
        if maps:
            store.write(name, maps)
    return store


def missing_of(store, name):
    return [task for task, kind in store.manifest()["images"][name].items() if kind == Origin.DISCOVERED]


@pytest.fixture
def review(store):
    return Review(store, tiny_data(**FEW))


def entry_of(review, name, monkeypatch):
    """The panel of an image before it is drawn."""
    entries = []
    monkeypatch.setattr(module, "draw_panel", lambda drawn, legend: entries.append((drawn[0], legend)))
    review.draw(name)
    return entries[0]


def test_order_begins_with_lowest_confidence(store, review):
    names = [name for name in store.manifest()["images"] if missing_of(store, name)]
    means = {name: np.mean([*review.confidences[name].values()]) for name in names}
    assert review.order() == sorted(names, key=means.get)
    depth = [name for name in names if "depth" in missing_of(store, name)]
    assert review.order("depth") == sorted(depth, key=int, reverse=True)
    assert review.confidences[depth[0]]["depth"] == pytest.approx(1 - int(depth[0]) / 20, abs=1 / 255)


def test_panel_shows_given_discovered_and_true_labels(store, review, monkeypatch):
    name = next(name for name in store.manifest()["images"] if 0 < len(missing_of(store, name)) < 4)
    entry, legend = entry_of(review, name, monkeypatch)
    rows, missing = dict(entry.rows), missing_of(store, name)
    assert list(rows) == ["given", "discovered", "confidence", "true"]
    for task in ("semseg", "normals", "depth", "edges"):
        texts = [isinstance(row[task], str) for row in rows.values()]
        assert texts == ([True, False, False, False] if task in missing else [False, True, True, True])
        if task in missing:
            assert rows["discovered"][task].shape == entry.image.shape == (32, 48, 3)
            assert np.abs(rows["discovered"][task].astype(int) - rows["true"][task]).mean() < 2, "stored from the truth"
    assert [items[0] for items in legend] == ["semseg:", "normals:", "depth:", "edges:"]


def test_confidence_is_drawn_as_heat_map(review, monkeypatch):
    name, task = review.order("depth")[0], "depth"
    picture = dict(entry_of(review, name, monkeypatch)[0].rows)["confidence"][task]
    value = np.full((1, 1, 1), review.confidences[name][task], np.float32)
    color = heatmap(torch.from_numpy(value))[0, :, 0, 0]
    np.testing.assert_allclose(picture[5, 5], color, atol=1)


def test_panel_is_a_picture(review):
    picture = review.draw(review.order()[0])
    assert (picture.dtype, picture.shape[2]) == (np.uint8, 3)
    assert picture.shape[1] >= 1000


def test_missing_truth_is_named(review, monkeypatch):
    def label(index, task):
        raise DataError("missing.png is missing.")

    name = max(review.confidences, key=lambda name: len(review.confidences[name]))
    monkeypatch.setattr(review.dataset, "label", label)
    monkeypatch.setitem(review.origins, name, {})
    assert {*review._true(name, (32, 48)).values()} == {"no label"}


def test_rejection_is_written_and_shown(store, review, monkeypatch):
    name, before = review.order("depth")[0], store.manifest()
    review.set_rejected(name, "depth", True)
    assert review.is_rejected(name, "depth")
    assert PseudoLabelStore(store.folder).rejected() == {name: ["depth"]}
    assert "depth 0." in describe(review, name, 0, 9)
    assert "(rejected)" in describe(review, name, 0, 9)
    assert "1 rejected" in describe(review, name, 0, 9)
    entry, legend = entry_of(review, name, monkeypatch)
    assert all("depth (rejected)" in row for _, row in entry.rows)
    assert "depth:" in [items[0] for items in legend]
    assert Review(store, tiny_data(**FEW)).is_rejected(name, "depth"), "after a restart"
    review.set_rejected(name, "depth", False)
    assert store.manifest() == before


def test_review_refuses_other_dataset(store):
    with pytest.raises(DataError, match="images"):
        Review(store, tiny_data(**FEW, scene_seed=7))


def test_derived_labels_have_a_row_of_their_own(tmp_path, monkeypatch):
    plain = store_truth(tmp_path / "store", tiny_data(**FEW))
    data, manifest = tiny_data(**FEW, derive={"normals": "depth"}), plain.manifest()
    origins = data.origins_per_image(data.build_dataset("train"))
    plain.write_manifest(manifest | {"images": {name: manifest["images"][name] | own for name, own in origins.items()}})
    review = Review(plain, data)
    name = next(name for name, own in origins.items() if Origin.DERIVED in own.values() and len(own) < 4)
    rows = dict(entry_of(review, name, monkeypatch)[0].rows)
    assert list(rows) == ["given", "derived", "discovered", "confidence", "true"]
    assert rows["given"]["normals"] == "no label"
    assert (rows["derived"]["depth"], rows["discovered"]["normals"]) == ("given", "derived")
    assert np.median(np.abs(rows["derived"]["normals"].astype(int) - rows["true"]["normals"])) < 5
    assert "normals" not in review.confidences[name]


def test_rejected_image_without_file_is_left_out(store, review):
    name = review.order()[0]
    for task in missing_of(store, name):
        review.set_rejected(name, task, True)
    store.path(name).unlink()
    assert Review(store, tiny_data(**FEW)).order() == review.order()[1:]
