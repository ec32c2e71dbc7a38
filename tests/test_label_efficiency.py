"""The fraction of the gap to full labels that a method closes."""

import argparse
import sys
from collections import Counter
from pathlib import Path

import pytest

from benchmarks import gap
from htt_lightning.data import SyntheticScenes

sys.path.append(str(Path(gap.__file__).parent))  # as for a script in that folder
from by_source import LABELED_TASKS, Sources
from figures import draw_budget
from label_efficiency import BY_SOURCE, LONGER, MAIN, METHODS, PROTOCOLS, RIVAL, Study, plan


def values_of(**methods):
    return {(getattr(gap, name, name), "depth"): scores for name, scores in methods.items()}


def test_gap_starts_at_the_better_supervised_run():
    values = values_of(SUPERVISED=[1.0, 1.0], LONGER=[0.8, 0.8], FULL=[0.4, 0.4], method=[0.7, 0.5])
    assert gap.gap_closed(values, "method") == {"depth": pytest.approx(0.5)}
    assert gap.gap_closed(values, gap.FULL) == {"depth": pytest.approx(1.0)}


def test_gap_within_two_standard_deviations_is_not_averaged(tmp_path):
    values = values_of(SUPERVISED=[1.0, 0.6], FULL=[0.6, 0.6], method=[0.7, 0.5])
    assert gap.gap_closed(values, "method") == {"depth": None}
    rows = [
        {"backbone": "pretrained", "images": 60, "labels": "full" if method == gap.FULL else "one-label",
         "method": method, "seed": seed, "task": "depth", "metric": "val/depth/abs_err", "value": value}
        for (method, _), scores in values.items() for seed, value in enumerate(scores)
    ]  # fmt: skip
    gap.write(rows, tmp_path / "results.csv")
    assert gap.read(tmp_path / "results.csv") == rows
    table = gap.summary(rows, [gap.SUPERVISED, "method", gap.FULL])
    assert "0.8 ± 0.28" in table
    assert "two standard deviations: depth." in table


def test_gain_is_paired_by_seed_and_signed_by_task():
    def rows(**values):
        return [
            {"seed": seed, "task": task, "metric": "", "value": one * values.get(task, 1.0)}
            for seed, one in ((0, 10.0), (1, 20.0))
            for task in gap.TASKS
        ]

    base, ours = rows(), rows(semseg=1.3, depth=0.7)
    assert gap.gain(ours, base) == pytest.approx([10.0, 10.0])
    assert gap.gain(ours[: len(gap.TASKS)], base) == pytest.approx([10.0])  # the second seed is missing


def rows_of(method, images, value, labels="one-label", seeds=2):
    """Rows of a method whose every metric is as good as ``value``."""
    return [
        {"backbone": "pretrained", "images": images, "labels": labels, "method": method, "seed": seed, "task": task,
         "metric": f"val/{task}", "value": 10.0 + gap.SIGNS[task] * value}
        for seed in range(seeds) for task in gap.TASKS
    ]  # fmt: skip


def test_every_number_of_images_and_protocol_has_a_table():
    rows = [*rows_of(LONGER, 60, 0), *rows_of(LONGER, 120, 1), *rows_of(LONGER, 60, 0, BY_SOURCE)]
    rows += [*rows_of(gap.FULL, 60, 2, "full"), *rows_of(gap.FULL, 60, 4, "full-by-source")]
    sections = gap.summary(rows, [LONGER, gap.FULL]).split("### ")[1:]
    assert [section.splitlines()[0] for section in sections] == [
        f"pretrained, {images} images, {labels}"
        for images, labels in ((60, "one-label"), (120, "one-label"), (60, BY_SOURCE))
    ]
    assert ["| 20 ± 0 |" in section for section in sections] == [True, False, False]
    assert ["| 40 ± 0 |" in section for section in sections] == [False, False, True]


def test_budget_counts_labels_and_starts_at_the_fewest_images(tmp_path):
    rows = [*rows_of(LONGER, 120, 1), *rows_of(LONGER, 60, 0), *rows_of(RIVAL, 60, 3), *rows_of(RIVAL, 120, 4, seeds=3)]
    rows += [*rows_of(gap.FULL, 60, 5, "full"), *rows_of(gap.FULL, 120, 6, "full"), *rows_of("FixMatch", 60, 2)]
    curves = gap.budget([*rows, *rows_of(LONGER, 60, 9, BY_SOURCE)], [RIVAL, LONGER, "FixMatch", gap.FULL])
    assert list(curves) == [RIVAL, LONGER, gap.FULL]
    assert curves[RIVAL] == {10: pytest.approx([30, 30]), 20: pytest.approx([40, 40])}
    assert curves[LONGER] == {10: [0, 0], 20: pytest.approx([10, 10])}
    assert list(curves[gap.FULL]) == [60, 120]
    draw_budget(curves, tmp_path / "budget.png")
    assert (tmp_path / "budget.png").read_bytes().startswith(b"\x89PNG")


def test_sources_have_labels_of_their_own_and_no_other_is_read(tmp_path, monkeypatch):
    sources, label, seen = Sources(tmp_path, 7, 3, (24, 32), 0), SyntheticScenes.label, set()
    sources.prepare(0)
    data = sources.datamodule(labels=str(sources.mask), batch_size=2, num_workers=0, seed=0)

    def noted(scenes, index, task):
        seen.add((scenes.style, task))
        return label(scenes, index, task)

    monkeypatch.setattr(SyntheticScenes, "label", noted)
    data.prepare_data()
    data.setup("fit")
    assert len([data.train[k] for k in range(7)]) == 7
    assert seen == {(style, task) for style, tasks in LABELED_TASKS.items() for task in tasks}
    counts = data.mask.summary
    assert 0 < counts.pop("human_parts") <= 4
    assert counts == {"semseg": 4, "saliency": 4, "normals": 3, "edges": 3, "depth": 3}
    assert data.val.ids == ["0/0", "0/1", "1/0"]
    assert all(data.val[k]["labeled"][task] for k in range(3) for task in counts)


def test_runs_of_sources_differ_in_their_labels_alone(tmp_path):
    runs = planned(labels=[BY_SOURCE], only=[LONGER, gap.FULL], seeds=1)
    hidden, full = (Study(tmp_path, 1, 2).data_words(run) for run in runs)
    assert [(a, b) for a, b in zip(hidden, full, strict=True) if a != b] == [
        (str(tmp_path / "masks" / "by-source-60.json"), "full")
    ]


def planned(**options):
    given = {"quick": False, "seeds": None, "images": [60], "only": list(METHODS)}
    given |= {"labels": PROTOCOLS, "backbones": ["pretrained"]}
    return plan(argparse.Namespace(**given | options))


def test_teachers_come_before_their_students():
    runs = planned()
    assert all(runs.index(run.teacher) < runs.index(run) for run in runs if run.teacher)


def test_main_rows_and_rival_have_other_settings():
    runs = planned(images=[60, 120])
    others = {run.method.name for run in runs if run.images == 120 or run.labels == "random-label"}
    assert others == {*MAIN, RIVAL}
    counts = Counter(run.method.name for run in runs if run.images == 60 and run.labels == "one-label")
    assert counts[gap.SUPERVISED] == 5
    assert counts["FixMatch"] == 3


def test_all_labels_are_trained_once_for_both_protocols():
    assert [(run.labels, run.seed) for run in planned(only=[gap.FULL])] == [("full", seed) for seed in range(5)]
    others = planned(only=[gap.FULL], labels=[BY_SOURCE])
    assert [(run.labels, run.seed) for run in others] == [("full-by-source", seed) for seed in range(3)]
