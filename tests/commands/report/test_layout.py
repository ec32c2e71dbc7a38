import csv
import io

import pytest
from rich.console import Console

from htt_lightning.commands.report.command import read_runs
from htt_lightning.commands.report.comparison import compare, measure
from htt_lightning.commands.report.layout import markdown, numbers, table
from tests.commands.report.folders import config_of, scored_run


@pytest.fixture
def found(tmp_path):
    for seed in (0, 1):
        for labels, gain in (("one-label", 0.0), ("full", 4.0)):
            values = {"semseg/miou": 30.0 + seed + gain, "semseg/pixel_acc": 50.0, "depth/abs_err": 0.5}
            scored_run(
                tmp_path / f"{labels}_{seed}", values, config_of(seed=seed, labels=labels, model={"lr": gain or 1.0})
            )
    runs, faults = read_runs([str(tmp_path)])
    comparison = compare(runs, None, faults)
    measure(comparison, "labels=one-label", faults)
    assert faults == []
    return comparison


def test_markdown_holds_headlines_with_units_arrows_spread_and_what_differs(found):
    lines = markdown(found).splitlines()
    assert lines[0] == "Figures of test, mean ± standard deviation over seeds."
    assert lines[2] == "| run | seeds | semseg miou % ↑ | depth abs_err m ↓ | delta_m % ↑ |"
    assert lines[3] == "| :--- | ---: | ---: | ---: | ---: |"
    full, one = lines[4:6]
    assert one == "| labels=one-label | 2 | 30.50 ± 0.71 | **0.5000 ± 0.0000** | 0.00 ± 1.16 |"
    assert full == "| labels=full | 2 | **34.50 ± 0.71** | **0.5000 ± 0.0000** | **6.56 ± 1.16** |"
    assert lines[lines.index("Settings that differ:") + 2] == "| run | model.lr | data.labels |"
    assert lines[-1] == "Delta_m is measured against labels=one-label."


def test_the_csv_holds_every_figure_and_setting_unrounded(found):
    heads, *rows = numbers(found)
    by_run = {row[0]: dict(zip(heads, row, strict=True)) for row in rows}
    one = by_run["labels=one-label"]
    assert one["test/semseg/miou"] == 30.5
    assert one["test/semseg/miou std"] == pytest.approx(0.5**0.5)
    assert one["test/semseg/pixel_acc"] == 50
    assert one["data.labels"] == "one-label"
    assert len(one["folders"].split()) == 2
    text = io.StringIO()
    csv.writer(text).writerows(numbers(found))
    assert len(text.getvalue().splitlines()) == 3


def test_the_printed_table_holds_the_same(found):
    console = Console(file=io.StringIO(), width=120, force_terminal=True)
    console.print(table(found))
    printed = console.file.getvalue()
    for text in ("labels=full", "34.50 ± 0.71", "6.56 ± 1.16", "miou % ↑"):
        assert text in printed
    assert "\x1b[1m34.50 ± 0.71" in printed  # bold, as it is the best


def test_one_run_has_no_spread_and_no_settings_that_differ(tmp_path):
    scored_run(tmp_path / "a", {"semseg/miou": 30.0}, config_of())
    text = markdown(compare(read_runs([str(tmp_path)])[0], None, []))
    assert "| SyntheticDataModule | 1 | 30.00 |" in text
    assert "differ" not in text
