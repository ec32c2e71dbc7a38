"""Completion of command lines."""

import json
from pathlib import Path

import pytest

from htt_lightning.cli.entry import normalize_args, resolve_config, specifies_dataset
from htt_lightning.errors import ConfigError
from tests.conftest import ROOT

pytestmark = pytest.mark.usefixtures("in_empty_folder")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["report", "runs", "--overwrite"], ["report", "runs", "--overwrite=true"]),
        (["report", "--overwrite", "runs"], ["report", "--overwrite=true", "runs"]),
        (["report", "--overwrite", "false", "runs"], ["report", "--overwrite", "false", "runs"]),
        (["fit", "--model.lr", "1"], ["fit", "--data=SyntheticDataModule", "--model.lr", "1"]),
        (["fit", "--data=A", "--model.lr", "-1e-3"], ["fit", "--data=A", "--model.lr=-1e-3"]),
        (["check"], ["check", "--data=SyntheticDataModule"]),
        (["info"], ["info"]),
        ([], []),
    ],
)
def test_normalize_args_completes_command_line(words, expected):
    assert normalize_args(words) == expected


@pytest.mark.parametrize(
    ("words", "specified"),
    [
        (["--data.batch_size", "2"], False),
        (["--data", "NYUDDataModule"], True),
        (["--data.class_path=NYUDDataModule"], True),
        (["--config", "with.yaml"], True),
        (["--config=with.yaml"], True),
        (["-c", "short.yaml"], True),
        (["-cshort.yaml"], True),
        (["-c=short.yaml"], True),
        (["-cwithout.yaml"], False),
        (["--config", "without.yaml"], False),
        (["--config", "empty.yaml"], False),
        (["--config", "missing.yaml"], False),
        (["--config"], False),
    ],
)
def test_specifies_dataset_reads_configs(words, specified):
    Path("with.yaml").write_text("data: {class_path: NYUDDataModule}")
    Path("short.yaml").write_text("data: NYUDDataModule")
    Path("without.yaml").write_text("data: {init_args: {batch_size: 2}}")
    Path("empty.yaml").write_text("")
    assert specifies_dataset(words) is specified


@pytest.mark.parametrize("command", ["fit", "check"])
@pytest.mark.parametrize("text", ["model:\n\tlr: 1\n", "model:\n  dilations: [1, 2\n", "model: {}\nlr: 'a\n", "\n\0"])
def test_syntax_error_names_file_and_line(command, text):
    Path("run.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"--config must be valid YAML, .*\"run\.yaml\", (line [23]|position 1)"):
        normalize_args([command, "--data=SyntheticDataModule", "--config", "run.yaml"])


@pytest.mark.parametrize("words", [["--teachers", "run.yaml"], ["--teachers=run.yaml"]])
def test_teachers_file_is_named_with_its_line(words):
    with pytest.raises(ConfigError, match=r"--teachers must be a file that exists .* got run\.yaml"):
        normalize_args(["discover", *words])
    Path("run.yaml").write_text("depth:\n  maps: [a\n  scale: 1\n")
    with pytest.raises(ConfigError, match=r"--teachers must be valid YAML, .*\"run\.yaml\", line 3"):
        normalize_args(["discover", *words])
    Path("run.yaml").write_text("depth: {maps: a}")
    assert normalize_args(["discover", *words])[-len(words) :] == words


@pytest.mark.parametrize("word", ["-cdemo.yaml", "-c=demo.yaml", "--config=demo.yaml"])
def test_config_attached_to_its_option_is_found(word):
    option = word.removesuffix("demo.yaml")
    assert normalize_args(["fit", word]) == ["fit", f"{option}{ROOT / 'configs' / 'demo.yaml'}"]


def test_config_in_working_directory_wins_over_packaged_one():
    assert resolve_config("synthetic.yaml") == str(ROOT / "configs" / "synthetic.yaml")
    Path("synthetic.yaml").write_text("{}")
    assert resolve_config("synthetic.yaml") == "synthetic.yaml"


def test_config_of_a_run_serves_a_second_process_as_text(tmp_path):
    data = {"class_path": "NYUDDataModule", "init_args": {"root": "x" * 300}}
    config = {"data": data, "trainer": {"devices": 2}, "ckpt_path": None, "checkpoint": {}}
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    words = normalize_args(["discover", "--config", str(tmp_path / "config.yaml")])  # those of the second process
    assert words[:2] == ["discover", "--config"]
    assert json.loads(words[2])["data"] == data
    assert normalize_args(words) == words
