import hashlib
import json
import os
import pickle
import re
from unicodedata import normalize

import numpy as np
import pytest
import torch

from htt_lightning.data import read_mask
from htt_lightning.data.datasets.synthetic import write_nyud_tree
from htt_lightning.data.masks.files import protocol_of
from htt_lightning.data.masks.label_mask import sample_mask
from htt_lightning.data.masks.published import PUBLISHED
from htt_lightning.errors import DataError
from tests.conftest import ROOT

NYUD = ("semseg", "depth", "normals")
PASCAL = ("semseg", "human_parts", "saliency", "normals", "edges")
IDS = tuple(str(i) for i in range(795))
FEW = ("0", "1", "2", "10")
PEOPLE = ("2008_000008", "2008_000015", "2008_000019", "2008_000023")
KEPT = np.array([[1, 0, 0, 0, 1], [0, 1, 1, 0, 0], [0, 0, 0, 1, 0], [1, 1, 1, 1, 0]])

GOOD = {"format": 1, "protocol": "x", "seed": 0, "tasks": list(NYUD), "labels": {i: ["depth"] for i in FEW}}
LABELS = GOOD["labels"]


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b'{"format": 1', "JSON"),
        (b"[" * 100_000, "JSON"),
        (b"\xff\xfe\x00", "JSON"),
        (b'{"format": 1, "labels": {"0": [], "0": []}}', "repeated"),
        ([], "format 1"),
        ({**GOOD, "format": 2}, "format 1"),
        ({**GOOD, "tasks": "depth"}, "'tasks'"),
        ({**GOOD, "labels": {**LABELS, "0": "depth"}}, "'labels'"),
        ({**GOOD, "labels": {**LABELS, "0": [1]}}, "'labels'"),
        ({**GOOD, "tasks": [*NYUD, "edges"]}, "edges"),
        ({**GOOD, "tasks": ["semseg", "depth", "edges"]}, "edges"),
        ({**GOOD, "labels": {"0": ["depth"], "1": ["depth"], "2": ["depth"]}}, "1 missing.*'10'"),
        ({**GOOD, "labels": {**LABELS, "x": [], "y": []}}, "2 unexpected.*'x'"),
        ({**GOOD, "labels": {"x": []}}, "4 missing.*'0'.*1 unexpected.*'x'"),
        ({**GOOD, "labels": {**LABELS, "2": ["depth", "edges"]}}, "'2'.*edges"),
        ({**GOOD, "labels": {**LABELS, "2": []}}, "'2'.*none"),
        ({**GOOD, "protocol": 1}, "'protocol'"),
        ({**GOOD, "origin": ["x"]}, "'origin'"),
        ({**GOOD, "seed": "3"}, "'seed'"),
        ({**GOOD, "seed": True}, "'seed'"),
    ],
)
def test_corrupt_json_masks_are_named(tmp_path, content, named):
    path = tmp_path / "mask.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    with pytest.raises(DataError, match=r"mask\.json.*" + named):
        read_mask(path, FEW, NYUD)


@pytest.mark.parametrize("name", ["absent.json", "absent.pth", "."])
def test_missing_masks_are_named(tmp_path, name):
    with pytest.raises(DataError, match=re.escape(str(tmp_path / name))):
        read_mask(tmp_path / name, FEW, NYUD)


def write_tensor(path, weights):
    torch.save({"labels_weights": weights}, path)
    return path


def test_tensors_are_read_by_position(tmp_path, caplog):
    weights = torch.from_numpy(sample_mask("one-label", IDS, NYUD, 0).labeled).float()
    path = write_tensor(tmp_path / "onelabel.pth", weights)
    mask = read_mask(path, sorted(IDS), NYUD)
    assert mask.ids == IDS
    np.testing.assert_array_equal(mask.labeled, weights == 1)
    assert caplog.records[0].levelname == "WARNING"
    assert str(path) in caplog.text


def publish(monkeypatch, path, name="the published NYUD random-label mask"):
    """Register a file as the published mask of that name."""
    mask = next(mask for mask in PUBLISHED.values() if mask.origin == name)
    md5 = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
    monkeypatch.setattr("htt_lightning.data.masks.published.PUBLISHED", {md5: mask})


def test_provenance_of_published_masks_survives_saving(tmp_path, monkeypatch, caplog):
    path = write_tensor(tmp_path / "mask.pth", torch.ones(4, 3))
    publish(monkeypatch, path)
    for file in (path, tmp_path / "first.json", tmp_path / "second.json"):
        mask = read_mask(file, "0123", NYUD)
        assert (mask.protocol, mask.seed, mask.origin) == ("random-label", None, "the published NYUD random-label mask")
        assert protocol_of(str(file)) == "random-label"
        mask.save(tmp_path / ("first.json" if file is path else "second.json"))
    assert caplog.messages == []


def test_provenance_of_drawn_masks_survives_saving(tmp_path):
    mask = sample_mask("random-label", FEW, NYUD, 3)
    for _ in range(2):
        mask.save(tmp_path / "mask.json")
        mask = read_mask(tmp_path / "mask.json", FEW, NYUD)
        assert (mask.protocol, mask.seed, mask.origin) == ("random-label", 3, None)


def test_provenance_may_be_missing(tmp_path):
    (tmp_path / "mask.json").write_text(json.dumps({key: GOOD[key] for key in ("format", "tasks", "labels")}))
    mask = read_mask(tmp_path / "mask.json", FEW, NYUD)
    assert (mask.protocol, mask.seed, mask.origin) == ("file", None, None)


@pytest.mark.parametrize(
    ("weights", "named"),
    [
        (torch.ones(5, 3), r"\(4, 3\).*\(5, 3\)"),
        (torch.ones(4, 2), r"\(4, 3\).*\(4, 2\)"),
        (torch.full((4, 3), 0.5), "0 and 1"),
        (torch.tensor([[1, 0, 0]] * 3 + [[0, 0, 0]]), "'3'"),
        ([[1, 0, 0]], "labels_weights"),
    ],
)
def test_corrupt_tensors_are_named(tmp_path, weights, named):
    with pytest.raises(DataError, match=r"mask\.pth.*" + named):
        read_mask(write_tensor(tmp_path / "mask.pth", weights), ("0", "1", "2", "3"), NYUD)


def test_tensors_need_ids_that_are_positions(tmp_path):
    with pytest.raises(DataError, match=r"mask\.pth.*'10'"):
        read_mask(write_tensor(tmp_path / "mask.pth", torch.ones(4, 3)), FEW, NYUD)


DAMAGE = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-200]),
    "text": lambda path: path.write_bytes(b"hello"),
    "empty": lambda path: path.write_bytes(b""),
    "other keys": lambda path: torch.save({"weights": 1}, path),
    "no dict": lambda path: torch.save(torch.ones(4, 3), path),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_corrupt_torch_files_are_named(tmp_path, damage):
    damage(write_tensor(tmp_path / "mask.pth", torch.ones(4, 3)))
    with pytest.raises(DataError, match=r"mask\.pth"):
        read_mask(tmp_path / "mask.pth", FEW, NYUD)


def write_table(path, rows=KEPT, ids=PEOPLE, key=np.str_):
    """Write a mask by image id; torch's own safe loader refuses numpy's strings."""
    torch.save({key(name): [int(keep) for keep in row] for name, row in zip(ids, rows, strict=True)}, path)
    return path


def write_lists(path, rows=KEPT, ids=PEOPLE, tasks=("semseg", "human_parts", "sal", "normals", "edge")):
    """Write a mask by task, with tasks and images in another order."""
    content = {
        task: [np.str_(ids[i]) for i in np.flatnonzero(rows[:, column])[::-1]]
        for column, task in reversed(list(enumerate(tasks)))
    }
    np.save(path, content, allow_pickle=True)
    return path


@pytest.mark.parametrize("write", [write_table, write_lists])
def test_tables_and_lists_are_read_by_name(tmp_path, caplog, write):
    path = write(tmp_path / ("mask.npy" if write is write_lists else "mask.pth"))
    mask = read_mask(path, PEOPLE[::-1], PASCAL)
    assert mask.ids == PEOPLE
    np.testing.assert_array_equal(mask.labeled, KEPT == 1)
    assert str(path) in caplog.text


@pytest.mark.parametrize("protocol", [2, 3])
def test_lists_of_older_numpy_and_pickle_are_read(tmp_path, protocol):
    path = write_lists(tmp_path / "mask.npy")
    array = np.load(path, allow_pickle=True)
    old = pickle.dumps(array, protocol).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert b"numpy.core" in old
    path.write_bytes(path.read_bytes()[:128] + old)
    np.testing.assert_array_equal(read_mask(path, PEOPLE, PASCAL).labeled, KEPT == 1)


@pytest.mark.parametrize(
    ("key", "row"),
    [
        (str, list),
        (np.str_, np.array),
        (np.str_, lambda row: np.array(row, np.float32)),
        (np.str_, lambda row: np.array(row, np.bool_)),
        (np.str_, lambda row: list(np.array(row, np.int64))),
    ],
)
def test_tables_may_hold_arrays_and_numbers_of_numpy(tmp_path, key, row):
    rows = zip(PEOPLE, KEPT.tolist(), strict=True)
    torch.save({key(name): row(keep) for name, keep in rows}, tmp_path / "mask.pth")
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.pth", PEOPLE, PASCAL).labeled, KEPT == 1)


@pytest.mark.parametrize(
    ("suffix", "write", "named"),
    [
        ("pth", lambda path: write_table(path, ids=("a", *PEOPLE[1:])), "1 missing.*1 unexpected.*'a'"),
        ("pth", lambda path: write_table(path, rows=KEPT[:, :4]), r"\(4, 5\).*\(4, 4\)"),
        ("pth", lambda path: write_table(path, rows=2 * KEPT), "0 and 1"),
        ("pth", lambda path: torch.save({"a": [1, 0], "b": [1]}, path), ""),
        ("pth", lambda path: torch.save({"a": np.array([1, "x"], object)}, path), ""),
        ("pth", lambda path: write_table(path, rows=KEPT * [[1], [1], [1], [0]]), "'2008_000023'"),
        ("npy", lambda path: write_lists(path, ids=("a", *PEOPLE[1:])), "1 missing.*1 unexpected.*'a'"),
        ("npy", lambda path: write_lists(path, tasks=("semseg", "human_parts", "sal", "normals", "depth")), "depth"),
        ("npy", lambda path: np.save(path, np.ones((4, 5))), "objects"),
        ("npy", lambda path: np.save(path, [{"semseg": 1}], allow_pickle=True), ""),
        ("npy", lambda path: path.write_bytes(b"hello"), ""),
        ("npy", lambda path: path.write_bytes(write_lists(path).read_bytes()[:-30]), ""),
    ],
)
def test_corrupt_tables_and_lists_are_named(tmp_path, suffix, write, named):
    path = tmp_path / f"mask.{suffix}"
    write(path)
    with pytest.raises(DataError, match=rf"mask\.{suffix}.*{named}"):
        read_mask(path, PEOPLE, PASCAL)


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("harm",)


@pytest.mark.parametrize("suffix", [".npy", ".pth"])
def test_code_in_a_mask_is_not_run(tmp_path, monkeypatch, suffix):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / f"mask{suffix}"
    if suffix == ".npy":
        np.save(path, np.array({"semseg": [Harmful()]}, object), allow_pickle=True)
    else:
        torch.save({"2008_000008": Harmful()}, path)
    with pytest.raises(DataError, match=path.name):
        read_mask(path, PEOPLE, PASCAL)
    assert not (tmp_path / "harm").exists()
    pickle.loads(pickle.dumps(Harmful()))  # it does run elsewhere
    assert (tmp_path / "harm").exists()


def test_readme_example_converts_a_published_mask(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_nyud_tree(tmp_path / "DIR" / "NYUDv2", train=12, val=1, size=(8, 8))
    kept = sample_mask("random-label", IDS[:12], NYUD, 0)
    publish(monkeypatch, write_tensor(tmp_path / "randomlabels.pth", torch.from_numpy(kept.labeled).float()))
    page = (ROOT / "htt_lightning" / "data" / "README.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(example, {})
    mask = read_mask("label_mask.json", IDS[:12], NYUD)
    assert mask.fingerprint == kept.fingerprint
    assert mask.origin == "the published NYUD random-label mask"


def test_published_masks_state_their_protocol(tmp_path, monkeypatch):
    path = write_lists(tmp_path / "mask.npy")
    assert protocol_of(str(path)) == "file"
    assert protocol_of(str(tmp_path / "absent.json")) == "file"
    assert len(PUBLISHED) == 7
    for mask in PUBLISHED.values():
        publish(monkeypatch, path, mask.origin)
        assert protocol_of(str(path)) == mask.protocol
        assert mask.protocol in mask.origin


@pytest.mark.parametrize(("stored", "known"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_masks_find_names_of_another_unicode_form(tmp_path, stored, known):
    names = ["Café", "plain"]
    labels = {normalize(stored, name): ["depth"] for name in names}
    (tmp_path / "mask.json").write_text(json.dumps({**GOOD, "labels": labels}))
    ids = [normalize(known, name) for name in names]
    mask = read_mask(tmp_path / "mask.json", ids, NYUD)
    assert sorted(mask.ids) == sorted(ids)
    np.testing.assert_array_equal(mask.labeled, [[False, True, False]] * 2)
