import hashlib
import json
import logging
import os
import pickle
import re

import numpy as np
import pytest
import torch

from htt_lightning.data.mask_files import PUBLISHED, protocol_of, read_mask
from htt_lightning.data.masks import draw_mask
from htt_lightning.errors import HTTError

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
    weights = torch.from_numpy(draw_mask("one-label", IDS, NYUD, 0).labeled).float()
    path = published(tmp_path / "onelabel.pth", weights)
    mask = read_mask(path, sorted(IDS), NYUD)
    assert mask.ids == IDS
    np.testing.assert_array_equal(mask.labeled, weights == 1)
    assert (caplog.messages, caplog.records[0].levelname) == ([f"{path} is no published label mask."], "WARNING")


def test_a_known_file_is_named_in_the_log(tmp_path, caplog):
    path = published(tmp_path / "mask.pth", torch.ones(4, 2))
    md5 = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
    with caplog.at_level(logging.INFO):
        read_mask(path, ("0", "1", "2", "3"), NYUD[:2], {md5: "the mask of this test"})
    assert (caplog.messages, caplog.records[0].levelname) == ([f"{path} is the mask of this test."], "INFO")


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


def test_published_masks_are_known_with_their_protocol(tmp_path, monkeypatch):
    path = lists(tmp_path / "mask.npy")
    assert protocol_of(str(path)) == "file"
    md5 = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
    for description in PUBLISHED.values():
        monkeypatch.setattr("htt_lightning.data.mask_files.PUBLISHED", {md5: description})
        assert protocol_of(str(path)) in ("one-label", "random-label")
        assert protocol_of(str(path)) in description
