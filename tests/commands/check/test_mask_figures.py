"""What a mask holds beside what its protocol lets one expect."""

from dataclasses import replace

import numpy as np
import pytest

from htt_lightning.commands.check.inspection import inspect
from htt_lightning.commands.check.mask_figures import (
    expected_labels,
    expected_patterns,
    expected_sizes,
    mask_doubts,
    mask_figures,
)
from htt_lightning.data.dataset import DenseDataset
from htt_lightning.data.datasets.synthetic import write_nyud
from htt_lightning.data.masks.label_mask import LabelMask, sample_mask
from htt_lightning.data.masks.published import PUBLISHED
from htt_lightning.errors import HTTError
from tests.commands.check.test_inspection import SIZE, nyud

NYUD = ("semseg", "depth", "normals")
PASCAL = ("semseg", "human_parts", "saliency", "normals", "edges")
ROWS = ("labels_per_image", "patterns")
CANONICAL = {"NYUD": NYUD, "Cityscapes": NYUD[:2], "PASCAL-Context": PASCAL}


class Able(DenseDataset):
    """Images of which the first ``people`` can have every label, and the others every one but the second."""

    def __init__(self, tasks, images, people=None):
        self.tasks, self.ids = tasks, [str(k) for k in range(images)]
        self.people = images if people is None else people

    def image(self, index):
        raise NotImplementedError

    def label(self, index, task):
        raise NotImplementedError

    def available(self, task):
        return np.arange(len(self.ids)) < (self.people if task == self.tasks[1] else len(self.ids))

    @property
    def table(self):
        return np.stack([self.available(task) for task in self.tasks], 1)


def drawn(protocol, source, seed=0):
    return sample_mask(protocol, source.ids, source.tasks, seed, source.table)


@pytest.mark.parametrize("protocol", ["full", "one-label", "random-label"])
@pytest.mark.parametrize("people", [90, 20, 3])
def test_drawn_masks_lie_within_the_expected_bands(protocol, people):
    source = Able("abcd", 90, people)
    draws = [drawn(protocol, source, seed) for seed in range(60)]
    counts = [
        [mask.labeled.sum(0) for mask in draws],
        [np.bincount(mask.labeled.sum(1), minlength=5) for mask in draws],
    ]
    sizes = expected_sizes(protocol, source.table)
    expected = [expected_labels(protocol, source.table), [sizes.get(size, (0, 0)) for size in range(5)]]
    for drawn_counts, moments in zip(counts, expected, strict=True):
        for column, (mean, deviation) in zip(np.transpose(drawn_counts), moments, strict=True):
            assert np.mean(column) == pytest.approx(mean, abs=max(3.5 * deviation / np.sqrt(60), 1))
            if protocol != "random-label":
                assert deviation == 0
                assert np.floor(mean) <= column.min()
                assert column.max() <= np.ceil(mean)
            elif deviation:
                assert np.std(column) == pytest.approx(deviation, rel=0.35)


@pytest.mark.parametrize("people", [90, 20])
def test_patterns_of_drawn_masks_are_as_frequent_as_expected(people):
    source = Able("abcd", 90, people)
    masks = [drawn("random-label", source, seed).labeled for seed in range(60)]
    expected = expected_patterns(source.tasks, source.table)
    assert len(expected) == 14
    assert sum(mean for mean, _ in expected.values()) == pytest.approx(90)
    for pattern, (mean, deviation) in expected.items():
        row = [task in pattern for task in source.tasks]
        counts = [(mask == row).all(1).sum() for mask in masks]
        assert np.mean(counts) == pytest.approx(mean, abs=4 * deviation / np.sqrt(60))
        assert np.std(counts) == pytest.approx(deviation, rel=0.5)


def test_the_expected_bands_are_those_of_the_benchmarks():
    rooms, pascal = Able(NYUD, 795), Able(PASCAL, 4998, 1700)
    mean, deviation = expected_labels("random-label", rooms.table)[0]
    assert (mean, round(deviation, 1)) == (397.5, 14.1)
    patterns = expected_patterns(NYUD, rooms.table)
    assert {(round(mean, 1), round(deviation, 1)) for mean, deviation in patterns.values()} == {(132.5, 10.5)}
    figures = expected_labels("random-label", pascal.table)
    assert [round(deviation) for _, deviation in figures] == [35, 21, 35, 35, 35]
    assert [mean for mean, _ in figures] == [2499, 850, 2499, 2499, 2499]
    sizes = expected_sizes("random-label", pascal.table)
    assert [round(mean) for mean, _ in sizes.values()] == [1524, 1524, 1524, 425]
    assert len(expected_patterns(PASCAL, pascal.table)) == 30
    several = pascal.table
    several[:2000, 2] = False
    assert expected_labels("one-label", several) is None  # two scarce tasks


def test_a_random_mask_of_nyud_is_held_against_tasks_sizes_and_patterns():
    figures = mask_figures(drawn("random-label", Able(NYUD, 795)), Able(NYUD, 795))
    bands = {group: [row["band"] for row in figures[group].values()] for group in ("tasks", *ROWS)}
    assert bands == {"tasks": [(355, 440)] * 3, "labels_per_image": [(355, 440)] * 2, "patterns": [(100, 165)] * 6}
    assert list(figures["tasks"]) == list(NYUD)
    assert list(figures["labels_per_image"]) == ["1", "2"]
    assert "semseg + normals" in figures["patterns"]
    assert mask_doubts(figures) == []


def test_masks_of_pascal_draw_no_doubt():
    source = Able(PASCAL, 4998, 1700)
    for protocol, seed in (("random-label", 0), ("random-label", 1), ("one-label", 0), ("full", 0)):
        figures = mask_figures(drawn(protocol, source, seed), source)
        assert mask_doubts(figures) == []
        assert len(figures["patterns"]) == (30 if protocol == "random-label" else 0)


def test_what_another_rule_has_drawn_is_doubted():
    """Uniform over the non-empty proper subsets, which protocol.md 2.3.2 rejects for five tasks."""
    source, rng = Able(PASCAL, 4998), np.random.default_rng(0)
    labeled = (rng.integers(1, 31, 4998)[:, None] >> np.arange(5)) % 2 == 1
    doubts = mask_doubts(mask_figures(LabelMask(PASCAL, tuple(source.ids), labeled, "random-label"), source))
    assert any("images keep 1 of their labels, not 11" in text for text in doubts)
    assert any("images keep just semseg, not" in text for text in doubts)
    one = drawn("one-label", source)
    moved = one.labeled.copy()
    moved[:200] = one.labeled[:1]
    assert "keep a label of" in mask_doubts(mask_figures(replace(one, labeled=moved), source))[0]


def of_counts(known):
    """A mask with the numbers of a published one, as far as they can be had."""
    tasks = next(tasks for data, tasks in CANONICAL.items() if data in known.name)
    rng, images = np.random.default_rng(0), sum(known.sizes.values())
    left = [known.tasks[task] for task in tasks]
    sizes = np.repeat(
        sorted(known.sizes, reverse=True), [known.sizes[size] for size in sorted(known.sizes, reverse=True)]
    )
    labeled = np.zeros((images, len(tasks)), bool)
    patterns = [pattern for pattern, count in known.patterns.items() for _ in range(count)]
    for row, size in enumerate(sizes):
        kept = np.lexsort((rng.random(len(tasks)), left))[::-1][:size]
        labeled[row, [tasks.index(task) for task in patterns[row]] if patterns else kept] = True
        left = [count - keep for count, keep in zip(left, labeled[row], strict=True)]
    return LabelMask(tasks, tuple(str(k) for k in range(images)), labeled, known.protocol, None, known.name)


@pytest.mark.parametrize("known", sorted({mask.name: mask for mask in PUBLISHED.values()}.items()), ids=lambda p: p[0])
def test_a_published_mask_must_have_exactly_its_published_numbers(known):
    mask = of_counts(known[1])
    source = Able(mask.tasks, len(mask.ids))
    figures = mask_figures(mask, source)
    rows = [*figures["tasks"].values(), *figures["labels_per_image"].values()]
    assert all(row["band"] == (row["expected"], row["expected"]) for row in rows)
    assert mask_doubts(figures) == []
    labeled = mask.labeled.copy()
    labeled[0] = ~labeled[0]
    assert mask_doubts(mask_figures(replace(mask, labeled=labeled), source))


def test_a_mask_that_does_not_say_how_it_was_drawn_has_counts_alone():
    source = Able(NYUD, 30)
    for mask in (
        replace(drawn("random-label", source), protocol="file"),
        replace(drawn("full", source), protocol="own"),
    ):
        figures = mask_figures(mask, source)
        rows = [row for group in ("tasks", "labels_per_image") for row in figures[group].values()]
        assert all(row.keys() == {"images"} for row in rows)
        assert figures["patterns"] == {}
        assert mask_doubts(figures) == []


def test_a_task_that_cannot_be_read_keeps_no_mask_file_from_being_counted():
    class Broken(Able):
        def available(self, task):
            raise HTTError("no such folder")

    mask = drawn("one-label", Able(NYUD, 30))
    assert mask_figures(mask, Broken(NYUD, 30))["tasks"]["depth"] == {"images": 10}


def test_a_mask_file_is_held_against_its_own_protocol(tmp_path):
    write_nyud(tmp_path / "NYUDv2", train=9, val=3, size=SIZE)
    data = nyud(tmp_path, labels="random-label", seed=4)
    data.label_mask(data.source("train")).save(tmp_path / "mask.json")
    one, read = inspect(data)["mask"], inspect(nyud(tmp_path, labels=str(tmp_path / "mask.json")))["mask"]
    assert read == one
    assert (read["protocol"], read["seed"]) == ("random-label", 4)
    assert "band" in read["tasks"]["depth"]
