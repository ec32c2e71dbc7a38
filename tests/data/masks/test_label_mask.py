import itertools
import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from htt_lightning.data.masks.files import read_mask
from htt_lightning.data.masks.label_mask import LabelMask, natural_key, natural_sort, sample_mask
from htt_lightning.errors import ConfigError, DataError, HTTError

NYUD = ("semseg", "depth", "normals")
PASCAL = ("semseg", "human_parts", "saliency", "normals", "edges")
IDS = tuple(str(i) for i in range(795))
FEW = ("0", "1", "2", "10")
PARTIAL = pytest.mark.parametrize("protocol", ["one-label", "random-label"])
SEEDS = st.integers(0, 2**63)


def people():
    """PASCAL's 4998 training images, of which 1700 show persons."""
    available = np.ones((4998, 5), bool)
    available[:, 1] = np.random.default_rng(7).permutation(4998) < 1700
    return tuple(f"2008_{i:06d}" for i in range(4998)), available


@st.composite
def availabilities(draw):
    """Draw the availability of labels: at least one per image, the first task perhaps for all images."""
    images, tasks = draw(st.integers(1, 30)), draw(st.integers(3, 6))
    available = draw(hnp.arrays(bool, (images, tasks)))
    available[:, 0] |= draw(st.booleans()) | ~available.any(1)
    return available


def names(count):
    return tuple(f"image {i}" for i in range(count))


@pytest.mark.parametrize("seed", range(5))
def test_one_label_gives_every_nyud_task_a_third(seed):
    mask = sample_mask("one-label", IDS, NYUD, seed)
    assert mask.summary == dict.fromkeys(NYUD, 265)
    assert (mask.labeled.sum(1) == 1).all()
    assert (mask.labeled[1:] != mask.labeled[:-1]).any(1).mean() == pytest.approx(2 / 3, abs=0.07)


@pytest.mark.parametrize("seed", range(5))
def test_random_label_is_uniform_over_patterns(seed):
    mask = sample_mask("random-label", IDS, NYUD, seed)
    assert list(mask.summary.values()) == pytest.approx([397.5] * 3, abs=3 * 14.1)
    patterns = np.unique(mask.labeled, axis=0, return_counts=True)[1]
    assert patterns.tolist() == pytest.approx([132.5] * 6, abs=3 * 10.5)


@pytest.mark.parametrize("seed", range(5))
def test_random_label_counts_on_pascal(seed):
    ids, available = people()
    mask = sample_mask("random-label", ids, PASCAL, seed, available)
    counts = mask.summary
    assert counts.pop("human_parts") == pytest.approx(850, abs=3 * 21)
    assert list(counts.values()) == pytest.approx([2499] * 4, abs=3 * 35)
    sizes = np.bincount(mask.labeled.sum(1), minlength=6)
    assert sizes[1:5].tolist() == pytest.approx([1524, 1524, 1524, 425], abs=3 * 33)


@pytest.mark.parametrize("seed", range(5))
def test_one_label_draws_human_parts_from_people(seed):
    ids, available = people()
    mask = sample_mask("one-label", ids, PASCAL, seed, available)
    assert set(mask.summary.values()) <= {999, 1000}
    persons = mask.labeled[available[:, 1]].sum(0)
    assert persons[1] == mask.summary["human_parts"]
    # The other persons are spread evenly over the other tasks.
    rest = (1700 - persons[1]) / 4
    assert persons[[0, 2, 3, 4]].tolist() == pytest.approx([rest] * 4, abs=4 * rest**0.5)


def test_one_label_gives_a_scarce_task_all_it_has():
    available = np.ones((100, 5), bool)
    available[4:, 1] = False
    mask = sample_mask("one-label", names(100), PASCAL, 0, available)
    assert mask.summary == {"semseg": 24, "human_parts": 4, "saliency": 24, "normals": 24, "edges": 24}


@given(images=st.integers(0, 60), tasks=st.integers(1, 6), seed=SEEDS)
def test_one_label_is_a_balanced_partition(images, tasks, seed):
    labeled = sample_mask("one-label", names(images), PASCAL[:tasks] + ("depth",) * (tasks > 5), seed).labeled
    assert (labeled.sum(1) == 1).all()
    assert np.ptp(labeled.sum(0)) <= 1


@PARTIAL
@given(available=availabilities(), seed=SEEDS)
def test_partial_masks_keep_some_labels_and_not_all(protocol, available, seed):
    images, tasks = available.shape
    labeled = sample_mask(protocol, names(images), (*PASCAL, "depth")[:tasks], seed, available).labeled
    counts = labeled.sum(1)
    assert (labeled <= available).all()
    assert (counts >= 1).all()
    assert (counts <= np.maximum(available.sum(1) - 1, 1)).all()
    assert (counts == 1).all() or protocol == "random-label"


@PARTIAL
@given(available=availabilities(), seed=SEEDS, data=st.data())
def test_masks_do_not_depend_on_the_order_of_ids(protocol, available, seed, data):
    images, tasks = available.shape
    order = data.draw(st.permutations(range(images)))
    ids, tasks = names(images), (*PASCAL, "depth")[:tasks]
    expected = sample_mask(protocol, ids, tasks, seed, available)
    shuffled = sample_mask(protocol, [ids[i] for i in order], tasks, seed, available[order])
    assert shuffled.fingerprint == expected.fingerprint
    assert shuffled.ids == expected.ids == natural_sort(ids)


@PARTIAL
def test_masks_depend_on_the_seed_alone(protocol):
    masks = [sample_mask(protocol, IDS, NYUD, seed).fingerprint for seed in (0, 0, 1, 2)]
    assert masks[0] == masks[1]
    assert len(set(masks)) == 3


def test_full_keeps_all_available_labels():
    ids, available = people()
    mask = sample_mask("full", ids, PASCAL, 5, available)
    np.testing.assert_array_equal(mask.labeled, available)
    assert (mask.protocol, mask.seed) == ("full", None)


def test_natural_sort_orders_numbers():
    assert natural_sort(["10", "b2", "2", "b10", "02", "b2x"]) == ("02", "2", "10", "b2", "b2x", "b10")


@given(ids=st.lists(st.text(max_size=6) | st.from_regex(r"[a-z0-9_٣²-]{0,6}", fullmatch=True), unique=True))
def test_natural_sort_is_a_total_order(ids):
    ordered = natural_sort(ids)
    assert sorted(ordered) == sorted(ids)
    assert natural_sort(reversed(ordered)) == ordered
    assert all(natural_key(a) < natural_key(b) for a, b in itertools.pairwise(ordered))


@pytest.mark.parametrize(("typed", "meant"), [("onelabel", "one-label"), ("random", "random-label"), ("ful", "full")])
def test_unknown_protocols_get_a_hint(typed, meant):
    with pytest.raises(ConfigError, match=f"'{typed}'.*mean '{meant}'"):
        sample_mask(typed, IDS, NYUD, 0)


@pytest.mark.parametrize(
    ("protocol", "ids", "tasks", "seed", "named"),
    [
        ("one-label", ("1", "2", "1"), NYUD, 0, "image id.*'1'"),
        ("full", FEW, ("depth", "depth"), 0, "task.*'depth'"),
        ("one-label", FEW, NYUD, -1, "-1"),
        ("random-label", FEW, ("semseg", "depth"), 0, "one-label"),
        ("random-label", FEW, ("depth",), 0, "one-label"),
    ],
)
def test_sample_mask_validates_its_arguments(protocol, ids, tasks, seed, named):
    with pytest.raises(HTTError, match=named):
        sample_mask(protocol, ids, tasks, seed)


def test_sample_mask_names_images_without_any_label():
    available = np.array([[True] * 3] * 3 + [[False] * 3])
    with pytest.raises(DataError, match="'10'"):
        sample_mask("one-label", ("2", "1", "0", "10"), NYUD, 0, available)
    with pytest.raises(ValueError, match="shape"):
        sample_mask("one-label", FEW, NYUD, 0, available[:2])


def small():
    return LabelMask(NYUD, FEW, np.array([[1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 1]], bool), "one-label", 3)


def test_select_drops_unlabeled_images():
    mask = small().select(("depth", "semseg"))
    assert mask.tasks == ("depth", "semseg")
    assert mask.ids == ("0", "1", "2")
    np.testing.assert_array_equal(mask.labeled, [[0, 1], [1, 0], [1, 1]])
    assert (mask.protocol, mask.seed) == ("one-label", 3)
    assert mask.summary == {"depth": 2, "semseg": 2}
    assert small().select(NYUD).fingerprint == small().fingerprint


def test_select_refuses_unknown_tasks_and_empty_masks():
    with pytest.raises(ConfigError, match="edges"):
        small().select(("depth", "edges"))
    with pytest.raises(ConfigError, match="normals"):
        LabelMask(NYUD, ("0",), np.array([[True, True, False]]), "file").select(("normals",))


def test_fingerprint_ignores_the_provenance():
    mask = small()
    assert re.fullmatch("[0-9a-f]{64}", mask.fingerprint)
    assert replace(mask, protocol="file", seed=None).fingerprint == mask.fingerprint
    changes = {"tasks": PASCAL[:3], "ids": ("0", "1", "2", "11"), "labeled": ~mask.labeled}
    changed = {replace(mask, **{key: value}).fingerprint for key, value in changes.items()}
    assert len({mask.fingerprint, *changed}) == 4


def test_label_mask_validates_shape_and_order():
    with pytest.raises(ValueError, match="one row per image"):
        LabelMask(NYUD, FEW, np.ones((3, 4), bool), "file")
    with pytest.raises(ValueError, match="natural order"):
        LabelMask(NYUD, ("10", "2"), np.ones((2, 3), bool), "file")


@given(available=availabilities(), seed=SEEDS, data=st.data())
def test_saved_masks_are_read_back_equal(tmp_path_factory, available, seed, data):
    images, tasks = available.shape[0], (*PASCAL, "dépth")[: available.shape[1]]
    text = st.text(st.characters(codec="utf-8"), max_size=5)
    ids = data.draw(st.lists(text, min_size=images, max_size=images, unique=True))
    mask = sample_mask("random-label", ids, tasks, seed, available)
    path = tmp_path_factory.mktemp("mask") / "deep" / "mask.json"
    mask.save(path)
    again = read_mask(path, data.draw(st.permutations(ids)), tasks)
    assert again.fingerprint == mask.fingerprint
    np.testing.assert_array_equal(read_mask(path, ids, tasks[::-1]).labeled, mask.labeled[:, ::-1])
    assert (again.protocol, again.seed) == ("random-label", seed)


def test_save_writes_one_line_per_image(tmp_path):
    small().save(tmp_path / "mask.json")
    assert (tmp_path / "mask.json").read_text() == (
        '{\n  "format": 1,\n  "protocol": "one-label",\n  "seed": 3,\n  "origin": null,\n'
        '  "tasks": ["semseg", "depth", "normals"],\n'
        '  "labels": {\n    "0": ["semseg"],\n    "1": ["depth"],\n    "2": ["semseg", "depth"],\n'
        '    "10": ["normals"]\n  }\n}\n'
    )
