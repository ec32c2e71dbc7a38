import hashlib
import json
import os
import pickle
import re

import numpy as np
import pytest
import torch

from htt_lightning.data import read_mask
from htt_lightning.data.datasets.synthetic import write_nyud_tree
from htt_lightning.data.masks.files import protocol_of
from htt_lightning.data.masks.label_mask import sample_mask
from htt_lightning.data.masks.published import PUBLISHED
from htt_lightning.errors import HTTError
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
    ("content", "message"),
    [
        (b'{"format": 1', "no valid JSON"),
        (b"[" * 100_000, "no valid JSON"),
        (b"\xff\xfe\x00", "no valid JSON"),
        (b'{"format": 1, "labels": {"0": [], "0": []}}', "a key is repeated"),
        ([], "no label mask of format 1"),
        ({**GOOD, "format": 2}, "no label mask of format 1"),
        ({**GOOD, "tasks": "depth"}, "expected 'tasks'"),
        ({**GOOD, "labels": {**LABELS, "0": "depth"}}, "expected 'tasks'"),
        ({**GOOD, "labels": {**LABELS, "0": [1]}}, "expected 'tasks'"),
        ({**GOOD, "tasks": [*NYUD, "edges"]}, "differ in edges"),
        ({**GOOD, "tasks": ["semseg", "depth", "edges"]}, "differ in edges, normals"),
        ({**GOOD, "labels": {"0": ["depth"], "1": ["depth"], "2": ["depth"]}}, r"1 missing \(such as '10'\)"),
        ({**GOOD, "labels": {**LABELS, "x": [], "y": []}}, r"4 training images: 2 unexpected \(such as 'x'\)"),
        ({**GOOD, "labels": {"x": []}}, r"4 missing \(such as '0'\), 1 unexpected \(such as 'x'\)"),
        ({**GOOD, "labels": {**LABELS, "2": ["depth", "edges"]}}, "image '2' lists unknown tasks edges"),
        ({**GOOD, "labels": {**LABELS, "2": []}}, "image '2' has no label"),
        ({**GOOD, "protocol": 1}, "'protocol' and 'origin' must be texts"),
        ({**GOOD, "origin": ["x"]}, "'protocol' and 'origin' must be texts"),
        ({**GOOD, "seed": "3"}, "'seed' a whole number"),
        ({**GOOD, "seed": True}, "'seed' a whole number"),
    ],
)
def test_a_bad_mask_file_is_refused_with_its_name(tmp_path, content, message):
    path = tmp_path / "mask.json"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    with pytest.raises(HTTError, match=r"mask\.json.*" + message):
        read_mask(path, FEW, NYUD)


@pytest.mark.parametrize("name", ["absent.json", "absent.pth", "."])
def test_a_missing_file_is_refused_by_name(tmp_path, name):
    with pytest.raises(HTTError, match=re.escape(f"Cannot read the label mask {tmp_path / name}")):
        read_mask(tmp_path / name, FEW, NYUD)


def published(path, weights):
    torch.save({"labels_weights": weights}, path)
    return path


def test_a_published_file_is_read_by_position(tmp_path, caplog):
    weights = torch.from_numpy(sample_mask("one-label", IDS, NYUD, 0).labeled).float()
    path = published(tmp_path / "onelabel.pth", weights)
    mask = read_mask(path, sorted(IDS), NYUD)
    assert mask.ids == IDS
    np.testing.assert_array_equal(mask.labeled, weights == 1)
    assert (caplog.messages, caplog.records[0].levelname) == ([f"{path} is no published label mask."], "WARNING")


def known(monkeypatch, path, name="the published NYUD random-label mask"):
    """Have a file taken for the published mask of that name."""
    mask = next(mask for mask in PUBLISHED.values() if mask.name == name)
    md5 = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
    monkeypatch.setattr("htt_lightning.data.masks.published.PUBLISHED", {md5: mask})


def test_a_published_file_is_known_and_so_is_what_it_was_converted_to(tmp_path, monkeypatch, caplog):
    path = published(tmp_path / "mask.pth", torch.ones(4, 3))
    known(monkeypatch, path)
    for file in (path, tmp_path / "first.json", tmp_path / "second.json"):
        mask = read_mask(file, "0123", NYUD)
        assert (mask.protocol, mask.seed, mask.origin) == ("random-label", None, "the published NYUD random-label mask")
        assert protocol_of(str(file)) == "random-label"
        mask.save(tmp_path / ("first.json" if file is path else "second.json"))
    assert caplog.messages == []


def test_a_file_of_ours_keeps_what_it_was_drawn_with(tmp_path):
    drawn = sample_mask("random-label", FEW, NYUD, 3)
    for _ in range(2):
        drawn.save(tmp_path / "mask.json")
        drawn = read_mask(tmp_path / "mask.json", FEW, NYUD)
        assert (drawn.protocol, drawn.seed, drawn.origin) == ("random-label", 3, None)


def test_a_file_may_say_nothing_about_itself(tmp_path):
    (tmp_path / "mask.json").write_text(json.dumps({key: GOOD[key] for key in ("format", "tasks", "labels")}))
    mask = read_mask(tmp_path / "mask.json", FEW, NYUD)
    assert (mask.protocol, mask.seed, mask.origin) == ("file", None, None)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (torch.ones(5, 3), r"shape \(5, 3\), expected \(4, 3\)"),
        (torch.ones(4, 2), r"shape \(4, 2\), expected \(4, 3\)"),
        (torch.full((4, 3), 0.5), "only 0 and 1"),
        (torch.tensor([[1, 0, 0]] * 3 + [[0, 0, 0]]), "image '3' has no label"),
        ([[1, 0, 0]], "expected a torch file"),
    ],
)
def test_a_bad_published_file_is_refused_with_its_name(tmp_path, weights, message):
    with pytest.raises(HTTError, match=r"mask\.pth.*" + message):
        read_mask(published(tmp_path / "mask.pth", weights), ("0", "1", "2", "3"), NYUD)


def test_a_positional_file_does_not_fit_ids_that_are_no_positions(tmp_path):
    with pytest.raises(HTTError, match=r"mask\.pth numbers its images 0 to 3, .*'10'"):
        read_mask(published(tmp_path / "mask.pth", torch.ones(4, 3)), FEW, NYUD)


DAMAGE = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-200]),
    "text": lambda path: path.write_bytes(b"hello"),
    "empty": lambda path: path.write_bytes(b""),
    "other keys": lambda path: torch.save({"weights": 1}, path),
    "no dict": lambda path: torch.save(torch.ones(4, 3), path),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_published_file_is_refused_with_its_name(tmp_path, damage):
    damage(published(tmp_path / "mask.pth", torch.ones(4, 3)))
    with pytest.raises(HTTError, match=r"mask\.pth is no label mask"):
        read_mask(tmp_path / "mask.pth", FEW, NYUD)


def table(path, rows=KEPT, ids=PEOPLE, key=np.str_):
    """A mask by image id: strings of numpy, which torch's own safe reader refuses."""
    torch.save({key(name): [int(keep) for keep in row] for name, row in zip(ids, rows, strict=True)}, path)
    return path


def lists(path, rows=KEPT, ids=PEOPLE, tasks=("semseg", "human_parts", "sal", "normals", "edge")):
    """A mask by task, in another order of tasks and images than ours."""
    content = {
        task: [np.str_(ids[i]) for i in np.flatnonzero(rows[:, column])[::-1]]
        for column, task in reversed(list(enumerate(tasks)))
    }
    np.save(path, content, allow_pickle=True)
    return path


@pytest.mark.parametrize("write", [table, lists])
def test_masks_of_pascal_are_read_by_name(tmp_path, caplog, write):
    path = write(tmp_path / ("mask.npy" if write is lists else "mask.pth"))
    mask = read_mask(path, PEOPLE[::-1], PASCAL)
    assert mask.ids == PEOPLE
    np.testing.assert_array_equal(mask.labeled, KEPT == 1)
    assert caplog.messages == [f"{path} is no published label mask."]


@pytest.mark.parametrize("protocol", [2, 3])
def test_lists_of_older_numpy_and_older_pickles_are_read(tmp_path, protocol):
    path = lists(tmp_path / "mask.npy")
    array = np.load(path, allow_pickle=True)
    old = pickle.dumps(array, protocol).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert b"numpy.core" in old
    header = path.read_bytes()[:128]
    path.write_bytes(header + old)
    np.testing.assert_array_equal(read_mask(path, PEOPLE, PASCAL).labeled, KEPT == 1)


def test_ids_of_a_table_may_be_plain_strings(tmp_path):
    np.testing.assert_array_equal(read_mask(table(tmp_path / "mask.pth", key=str), PEOPLE, PASCAL).labeled, KEPT == 1)


@pytest.mark.parametrize(
    "row",
    [
        np.array,
        lambda row: np.array(row, np.float32),
        lambda row: np.array(row, np.bool_),
        lambda row: list(np.array(row, np.int64)),
    ],
)
def test_rows_of_a_table_may_be_arrays_and_numbers_of_numpy(tmp_path, row):
    rows = zip(PEOPLE, KEPT.tolist(), strict=True)
    torch.save({np.str_(name): row(keep) for name, keep in rows}, tmp_path / "mask.pth")
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.pth", PEOPLE, PASCAL).labeled, KEPT == 1)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: table(path, ids=("a", *PEOPLE[1:])), r"1 missing .*, 1 unexpected \(such as 'a'\)"),
        (lambda path: table(path, rows=KEPT[:, :4]), r"shape \(4, 4\), expected \(4, 5\)"),
        (lambda path: table(path, rows=2 * KEPT), "only 0 and 1"),
        (lambda path: torch.save({"a": [1, 0], "b": [1]}, path), "is no label mask"),
        (lambda path: torch.save({"a": np.array([1, "x"], object)}, path), "is no label mask"),
        (lambda path: table(path, rows=KEPT * [[1], [1], [1], [0]]), "image '2008_000023' has no label"),
    ],
)
def test_a_bad_table_is_refused_with_its_name(tmp_path, write, message):
    write(tmp_path / "mask.pth")
    with pytest.raises(HTTError, match=r"mask\.pth.*" + message):
        read_mask(tmp_path / "mask.pth", PEOPLE, PASCAL)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda path: lists(path, ids=("a", *PEOPLE[1:])), r"1 missing .*, 1 unexpected \(such as 'a'\)"),
        (
            lambda path: lists(path, tasks=("semseg", "human_parts", "sal", "normals", "depth")),
            "differ in depth, edges",
        ),
        (lambda path: np.save(path, np.ones((4, 5))), "not an array of objects"),
        (lambda path: np.save(path, [{"semseg": 1}], allow_pickle=True), "is no label mask"),
        (lambda path: path.write_bytes(b"hello"), "is no label mask"),
        (lambda path: path.write_bytes(lists(path).read_bytes()[:-30]), "is no label mask"),
    ],
)
def test_bad_lists_are_refused_with_their_name(tmp_path, write, message):
    write(tmp_path / "mask.npy")
    with pytest.raises(HTTError, match=r"mask\.npy.*" + message):
        read_mask(tmp_path / "mask.npy", PEOPLE, PASCAL)


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("harm",)


@pytest.mark.parametrize("suffix", [".npy", ".pth"])
def test_code_in_a_mask_is_refused_and_not_run(tmp_path, monkeypatch, suffix):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / f"mask{suffix}"
    if suffix == ".npy":
        np.save(path, np.array({"semseg": [Harmful()]}, object), allow_pickle=True)
    else:
        torch.save({"2008_000008": Harmful()}, path)
    with pytest.raises(HTTError, match="is no label mask"):
        read_mask(path, PEOPLE, PASCAL)
    assert not (tmp_path / "harm").exists()
    pickle.loads(pickle.dumps(Harmful()))  # which elsewhere would run
    assert (tmp_path / "harm").exists()


def test_the_example_of_the_page_on_datasets_converts_a_published_mask(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_nyud_tree(tmp_path / "DIR" / "NYUDv2", train=12, val=1, size=(8, 8))
    kept = sample_mask("random-label", IDS[:12], NYUD, 0)
    known(monkeypatch, published(tmp_path / "randomlabels.pth", torch.from_numpy(kept.labeled).float()))
    page = (ROOT / "htt_lightning" / "data" / "README.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(example, {})
    mask = read_mask("label_mask.json", IDS[:12], NYUD)
    assert mask.fingerprint == kept.fingerprint
    assert mask.origin == "the published NYUD random-label mask"


def test_published_masks_are_known_with_their_protocol(tmp_path, monkeypatch):
    path = lists(tmp_path / "mask.npy")
    assert protocol_of(str(path)) == "file"
    for mask in PUBLISHED.values():
        known(monkeypatch, path, mask.name)
        assert protocol_of(str(path)) == mask.protocol
        assert mask.protocol in mask.name


def test_the_numbers_of_published_masks_add_up():
    assert len(PUBLISHED) == 7
    for mask in PUBLISHED.values():
        labels = sum(size * images for size, images in mask.sizes.items())
        assert labels == sum(mask.tasks.values())
        if mask.patterns:
            assert sum(mask.patterns.values()) == sum(mask.sizes.values())
            for task, images in mask.tasks.items():
                assert images == sum(count for kept, count in mask.patterns.items() if task in kept)
