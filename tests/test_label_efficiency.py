"""The fraction of the gap to full labels that a method closes."""

import argparse
import sys
from collections import Counter
from pathlib import Path

import pytest

from benchmarks import gap

sys.path.append(str(Path(gap.__file__).parent))  # as for a script in that folder
from label_efficiency import MAIN, METHODS, PROTOCOLS, plan


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


def planned(**options):
    given = {"quick": False, "seeds": None, "images": [60], "only": list(METHODS)}
    given |= {"labels": PROTOCOLS, "backbones": ["pretrained"]}
    return plan(argparse.Namespace(**given | options))


def test_teachers_come_before_their_students():
    runs = planned()
    assert all(runs.index(run.teacher) < runs.index(run) for run in runs if run.teacher)


def test_only_main_rows_have_other_settings_and_five_seeds():
    runs = planned(images=[60, 120])
    others = {run.method.name for run in runs if run.images == 120 or run.labels == "random-label"}
    assert others == set(MAIN)
    counts = Counter(run.method.name for run in runs if run.images == 60 and run.labels == "one-label")
    assert counts[gap.SUPERVISED] == 5
    assert counts["FixMatch"] == 3


def test_all_labels_are_trained_once_for_both_protocols():
    assert [(run.labels, run.seed) for run in planned(only=[gap.FULL])] == [("full", seed) for seed in range(5)]
