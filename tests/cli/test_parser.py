"""Suggestions for misspelled names, and checks of options."""

import sys
from pathlib import Path
from unittest.mock import patch

import pytest
from jsonargparse import capture_parser

from htt_lightning.cli.entry import main, resolve_config
from htt_lightning.cli.lightning_cli import CALLBACKS, HTTCLI

pytestmark = pytest.mark.usefixtures("in_empty_folder")


@pytest.fixture(scope="module")
def parser():
    with patch.object(sys, "argv", ["htt", "fit"]):
        return capture_parser(main)


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["--model.lrr", "3"], "model.lr"),
        (["--modle.lr", "3"], "model.lr"),
        (["--data=SyntheticDataModule", "--data.lables", "full"], "labels"),
        (["--data", "NYUDataModul", "--data.root", "."], "NYUDDataModule"),
        (["--data=SyntheticDataModule", "--trainer.logger", "WandBLogger"], "WandbLogger"),
        (["--data=SyntheticDataModule", "--trainer.callbacks", "EarlyStoping"], "EarlyStopping"),
        (["--data=SyntheticDataModule", "--data.tasks", "[{class_path: Dept}]"], "Depth"),
        (["--config", "mine.yaml"], "max_epochs"),
        (["--data=SyntheticDataModule", "--discovery.target_type", "sotf"], "soft"),
        (["--data=SyntheticDataModule", "--data.test_split", "tset"], "test"),
    ],
)
def test_parser_suggests_similar_name(parser, words, meant, capsys):
    Path("mine.yaml").write_text("data: SyntheticDataModule\ntrainer: {max_epoch: 3}\n")
    with pytest.raises(SystemExit) as stop:
        parser.parse_args(["fit", *words])
    assert stop.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    hints = [line.strip() for line in lines if "Did you mean" in line]
    assert hints in ([f"Did you mean '{meant}'?"], [f"Did you mean 'trainer.{meant}'?"])
    assert len(lines) < 30  # usage alone has hundreds


def test_known_name_has_no_suggestion(parser):
    assert parser.suggestion("Parser key 'model.lr': Expected a <class 'float'>. Given value: quick") == ""


FOLDER = "{class_path: FolderDataModule, init_args: {root: ., train: '*', val: '*', label_files: [%s]}}"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config", "folder.yaml"], "data.root must be set for FolderDataModule, got none"),
        (["--data", FOLDER % "{train: '*'}"], "data.label_files.task must be set for LabelFiles, got none"),
        (["--data=SyntheticDataModule", "--data.root", "."], "data.root must be an option of the dataset"),
        (["--data=SyntheticDataModule", "--data.image_size", "96"], "data.image_size must be a list, got 96."),
        (["--data=SyntheticDataModule", "--data.image_size", "[96]"], "data.image_size must be a list of 2 values"),
        (["--data=SyntheticDataModule", "--data.augment.crop", "96"], "data.augment.crop must be a list, got 96."),
        (["--data=SyntheticDataModule", "--model.dilations", "3"], "model.dilations must be a list, got 3."),
        (
            ["--data=SyntheticDataModule", "--data.tasks", "[{class_path: SemSeg, init_args: {classes: sky}}]"],
            "data.tasks.classes must be a list, got sky.",
        ),
        (
            ["--data", FOLDER % "{task: Depth, train: '*', missing_values: 7}"],
            "data.label_files.missing_values must be a list, got 7.",
        ),
    ],
)
def test_missing_or_foreign_option_is_named(parser, words, message, capsys):
    words = [resolve_config(word) for word in words]
    with pytest.raises(SystemExit):
        parser.parse_args(["fit", *words])
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith(f"error: {message}")
    assert len(lines) < 3


@pytest.mark.parametrize(
    ("words", "option", "known"),
    [
        (["discover", "--out=x", "--teachers={edges: {}, depth: {nonsense: 1}}"], "teachers.depth", "hub, revision"),
        (["fit", "--data.augment.nonsense=1"], "data.augment", "scale_range, scale_values, crop"),
        (["fit", "--data.tasks=[{class_path: Depth, init_args: {nonsense: 1}}]"], "data.tasks", "num_bins"),
    ],
)
def test_unknown_option_is_named_beside_those_known(words, option, known, capsys):
    with pytest.raises(SystemExit):
        main(words)
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: An option of {option} must be one of ")
    assert known in error
    assert "got 'nonsense'" in error


def test_message_leaves_out_all_options_of_a_class(parser, capsys):
    with pytest.raises(SystemExit):
        parser.parse_args(["fit", "--data", FOLDER % "{task: Depth, train: '*', sacle: 1}"])
    error = capsys.readouterr().err
    assert "Did you mean 'scale'?" in error
    assert max(map(len, error.splitlines())) < 200


def error_of(config, *words):
    Path("run.yaml").write_text(config)
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--config", "run.yaml", *words])
    return str(stop.value)


GROUP = next(iter(CALLBACKS))


@pytest.mark.parametrize(
    ("group", "value"),
    [(GROUP, value) for value in ("3", "null", "[1]", "false", ".nan")]
    + [(group, "3") for group in ("trainer", "model", "discovery.loss_weights", *CALLBACKS)],
)
def test_value_in_place_of_options_is_rejected(group, value):
    outer, _, inner = group.partition(".")
    error = error_of(f"{outer}: {{{inner}: {value}}}" if inner else f"{outer}: {value}")
    assert error.startswith(f"error: {group} must hold options, got {'NaN' if value == '.nan' else value}")


@pytest.mark.parametrize(
    ("config", "key"),
    [
        ("model: {lr: null}", "model.lr"),
        ("discovery: {teacher: null}", "discovery.teacher"),
        ("data: {class_path: SyntheticDataModule, init_args: {train_images: null}}", "data.train_images"),
        ("data: {class_path: SyntheticDataModule, init_args: {labels: null}}", "data.labels"),
    ],
)
def test_null_is_rejected_where_a_value_is_needed(config, key):
    assert error_of(config).startswith(f"error: {key} must not be null")


@pytest.fixture
def options(monkeypatch):
    """Options of a command that is parsed but not run."""
    found = {}
    monkeypatch.setattr(HTTCLI, "_run_subcommand", lambda self, name: found.update(vars(self.config[name])))
    return found


QUICK = ["--trainer.accelerator=cpu", "--trainer.logger=false"]


def test_null_is_accepted_where_it_is_allowed(options):
    config = "{model: {backbone: test_resnet, loss_weights: null}}"
    main(["fit", f"--config={config}", "--data.augment=null", "--data.cache=null", *QUICK])
    assert options["model"].loss_weights is None


def test_group_of_options_may_be_a_file(options):
    Path("model.yaml").write_text("{backbone: test_resnet, token_dim: 16}")
    Path("run.yaml").write_text("model: model.yaml")
    main(["fit", "--config=run.yaml", *QUICK])
    assert options["model"].token_dim == 16


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("trainer: {accelerator: hello}", "trainer: You selected an invalid accelerator name"),
        ("trainer: {accelerator: cpu, strategy: hello}", "trainer: You selected an invalid strategy name"),
        ("trainer: {accelerator: cpu, devices: hello}", "trainer: `devices`"),
        ("trainer: {accelerator: tpu}", "trainer: "),
        ("model: {dropout: !!int x}", "--config or an option: invalid literal for int"),
        ("seed_everything: 1000000000000000000000", "seed_everything: 1000000000000000000000 is not in bounds"),
    ],
)
def test_error_of_lightning_names_option(config, message):
    assert error_of(config, "--model.backbone=test_resnet").startswith(f"error: {message}")
