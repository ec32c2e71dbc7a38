"""Commands of the program from end to end."""

import itertools
import json
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
import torch
import wandb
import yaml
from PIL import Image

from htt_lightning import HTTModule, LabelDiscovery
from htt_lightning.cli.entry import main
from htt_lightning.cli.lightning_cli import COMMANDS, HTTCLI
from htt_lightning.data.datasets.synthetic import write_nyud_tree
from htt_lightning.io import checkpoints
from tests.conftest import working_in

TINY = {
    "--model.backbone": "test_resnet",
    "--model.pretrained": "false",
    "--model.token_dim": "8",
    "--data.num_workers": "0",
    "--data.batch_size": "3",
    "--trainer.max_epochs": "1",
    "--discovery.stages": "1",
    "--trainer.limit_train_batches": "1.0",
    "--trainer.accelerator": "cpu",
    "--trainer.enable_progress_bar": "false",
    "--trainer.enable_model_summary": "false",
}
SCENES = {"--data.image_size": "[32, 48]", "--data.train_images": "9", "--data.val_images": "3", "--data.cache": "null"}


pytestmark = pytest.mark.usefixtures("in_empty_folder")


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    write_nyud_tree(root / "NYUDv2", train=9, val=3, size=(32, 48))
    return root


DEPTH = ["--config", "synthetic.yaml", "--data.tasks", "depth"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Checkpoint of a run on depth alone."""
    folder = tmp_path_factory.mktemp("trained")
    with working_in(folder):
        htt("fit", *DEPTH, over=SCENES | {"--data.labels": "full"})
        return str(folder / run_directory() / "checkpoints" / "last.ckpt")


def words_of(settings):
    return list(itertools.chain(*settings.items()))


def htt(command, *arguments, over=None):
    main([command, *arguments, *words_of(TINY | (over or {}))])


def run_directory():
    return max(Path("runs").glob("version_*"))


def printed_config(capsys, *words):
    with pytest.raises(SystemExit) as stop:
        main(["fit", *words, "--print_config"])
    assert stop.value.code == 0, words
    return yaml.safe_load(capsys.readouterr().out)


def test_synthetic_config_runs_every_command(capsys):
    htt("fit", "--config", "synthetic.yaml", over=SCENES)
    printed = capsys.readouterr().out
    run = run_directory()
    assert all((run / name).is_file() for name in ("config.yaml", "label_mask.json", "metrics.csv"))
    for name in ("val_metrics.json", "panels/epoch_000.png"):
        assert (run / name).is_file(), name
        assert str(run / name) in printed
    checkpoint = run / "checkpoints" / "last.ckpt"
    assert len(json.loads((run / "val_metrics.json").read_text())) == 6
    for command in ("validate", "test", "predict"):
        htt(command, "--config", "synthetic.yaml", "--ckpt_path", str(checkpoint), over=SCENES)
    assert "Test after" in capsys.readouterr().out
    assert len(list(Path("runs").glob("*/test_metrics.*"))) == 2
    assert len(list((run_directory() / "predictions").glob("*_depth.png"))) == 3
    assert [task.name for task in HTTModule.load_from_checkpoint(checkpoint).tasks][-1] == "depth"


def test_fit_ends_with_commands_that_run(capsys):
    htt("fit", *DEPTH, over=SCENES | {"--data.labels": "full"})
    printed = capsys.readouterr().out
    assert "FLOPs" not in printed
    predict, test, export = (line.split() for line in printed.partition("Next:")[2].splitlines() if line.strip())
    assert {words[0] for words in (predict, test, export)} == {"htt"}
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save("photo.png")
    main([word.replace("FOLDER_OF_PHOTOS", "photo.png") for word in predict[1:]])
    assert Path("maps/photo_panel.png").is_file()
    main(test[1:])
    assert "test/depth/abs_err" in (run_directory() / "test_metrics.json").read_text()
    export[export.index("onnx")] = "safetensors"  # the quickest to write
    main(export[1:])
    assert Path("net.onnx").is_file()


def test_nyud_config_runs_every_command_on_a_tree(tree, capsys):
    torch.save({"labels_weights": torch.eye(3).repeat(3, 1)}, "onelabel.pth")  # the published format
    over = {"--discovery.stages": str(LabelDiscovery().stages), "--data.labels": "onelabel.pth"}
    htt("fit", "--config", "nyud.yaml", "--data.root", str(tree), "--data.augment.crop", "[32, 48]", over=over)
    checkpoint = run_directory() / "checkpoints" / "last.ckpt"
    stored = torch.load(checkpoint, weights_only=True)
    assert stored["callbacks"]["LabelDiscovery"]["stage"] == 1
    assert [task["init_args"]["name"] for task in stored["hyper_parameters"]["tasks"]] == ["semseg", "depth", "normals"]
    for command in ("validate", "test", "predict"):
        htt(command, "--config", "nyud.yaml", "--data.root", str(tree), "--ckpt_path", str(checkpoint))
    assert "Test after" in capsys.readouterr().out


def test_augmentation_config_goes_on_top_of_dataset_config(capsys):
    config = printed_config(capsys, "--config", "cityscapes.yaml", "--config", "mtan.yaml", "--data.root", ".")
    expected = {"scale_values": [1, 1.2, 1.5], "max_crop_attempts": 1, "hflip_prob": 0, "photometric_prob": 0}
    assert expected.items() <= config["data"]["init_args"]["augment"].items()


def test_nyud_config_is_published_recipe(capsys):
    config = printed_config(capsys, "--config", "nyud.yaml", "--data.root", ".")
    model = {"backbone": "resnet18", "pretrained": True, "token_dim": 256, "lr": 2e-5, "weight_decay": 1e-6}
    assert (model | {"poly_power": 0.9}).items() <= config["model"].items()
    assert {"gradient_clip_val": 10, "max_epochs": 100}.items() <= config["trainer"].items()
    data = config["data"]["init_args"]
    assert {"batch_size": 6, "labels": "one-label", "image_size": None}.items() <= data.items()
    assert data["augment"]["scale_range"] == [0.5, 2.0]
    assert {"stages": 2, "student_init": "random", "target_type": "hard"}.items() <= config["discovery"].items()
    weights = {"pseudo_label": 1, "feature_labeled": 1, "feature_unlabeled": 1}
    assert config["discovery"]["loss_weights"] == weights


def test_synthetic_config_trains_in_two_stages(capsys):
    discovery = printed_config(capsys, "--config", "synthetic.yaml")["discovery"]
    assert {"stages": 2, "student_init": "teacher", "target_type": "soft"}.items() <= discovery.items()


def test_soft_targets_config_is_the_recipe_of_synthetic(capsys):
    ours = printed_config(capsys, "--config", "nyud.yaml", "--config", "recipes/soft_targets.yaml", "--data.root", ".")
    theirs = printed_config(capsys, "--config", "synthetic.yaml")
    assert ours["discovery"] == theirs["discovery"]
    assert ours["model"]["tokens"] == theirs["model"]["tokens"]
    assert ours["model"]["lr"] == 2e-5


def test_mean_teacher_config_has_one_stage_on_top_of_others(capsys):
    words = ["--config", "nyud.yaml", "--config", "recipes/mean_teacher.yaml", "--data.root", "."]
    config = printed_config(capsys, *words, "--trainer.max_epochs", "200")
    assert config["discovery"]["teacher"] == "ema"
    assert config["discovery"]["rampup_epochs"] == config["trainer"]["max_epochs"] / 2
    assert config["data"]["class_path"].endswith("NYUDDataModule")


def test_help_lists_every_command(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    printed = capsys.readouterr().out
    assert all(f"\n    {name} " in printed for name in ("fit", "validate", "test", "predict", *COMMANDS))


def test_config_may_define_another_task():
    config = {
        "model": {"single_task_baselines": {"height": 1.0, "depth": 1.0}, "loss_weights": {"height": 0.5}},
        "data": {
            "class_path": "tests.flow.HeightDataModule",
            "init_args": {"tasks": ["depth", {"class_path": "tests.flow.Height", "init_args": {"reach": 5.0}}]},
        },
    }
    Path("mine.yaml").write_text(yaml.safe_dump(config))
    htt("fit", "--config", "mine.yaml", over=SCENES | {"--data.labels": "full"})
    results = json.loads((run_directory() / "val_metrics.json").read_text())
    assert set(results) == {"val/depth/abs_err", "val/height/abs_err", "val/delta_m"}
    loaded = HTTModule.load_from_checkpoint(run_directory() / "checkpoints" / "last.ckpt")
    assert loaded.tasks[1].reach == 5.0
    assert loaded.net.heads["height"].classify.out_channels == 1


def test_every_setting_of_a_study_is_an_option():
    htt(
        "fit",
        "--data.class_path", "SyntheticDataModule",
        "--data.tasks+", '{"class_path": "Depth", "init_args": {"num_bins": 9, "min_depth": 0.5}}',
        "--data.labels", "full",
        "--data.augment", '{"scale_range": [1, 1], "hflip_prob": 0.5, "photometric_prob": 0}',
        "--model.loss_weights.depth", "0.45",
        "--model.network", "multitask",
        "--model.lr", "3e-4",
        "--model.dropout", "0.1",
        "--model.backbone_options", '{"drop_path_rate": 0.1}',
        over=SCENES,
    )  # fmt: skip
    config = yaml.safe_load((run_directory() / "config.yaml").read_text())
    assert config["data"]["init_args"]["augment"]["photometric_prob"] == 0
    assert config["model"]["loss_weights"] == {"depth": 0.45}
    stored = torch.load(run_directory() / "checkpoints" / "last.ckpt", weights_only=True)["hyper_parameters"]
    assert (stored["network"], stored["lr"], stored["tasks"][0]["init_args"]["num_bins"]) == ("multitask", 3e-4, 9)


def test_fit_discover_and_fit_on_pseudo_labels(capsys):
    once = SCENES | {"--trainer.limit_val_batches": "1", "--data.labels": "one-label"}
    htt("fit", "--config", "synthetic.yaml", over=once | {"--discovery.stages": "2"})
    run = run_directory()
    assert "train/depth/pseudo_label_coverage" in (run / "metrics.csv").read_text()
    assert (run / "checkpoints" / "stage_1.ckpt").is_file()
    checkpoint = str(run / "checkpoints" / "last.ckpt")
    assert torch.load(checkpoint, weights_only=True)["callbacks"]["LabelDiscovery"]["stage"] == 1
    htt("discover", "--config", "synthetic.yaml", "--ckpt_path", checkpoint, "--out", "completed", over=once)
    assert "completed/manifest.json" in capsys.readouterr().out
    htt("fit", "--config", "synthetic.yaml", "--data.pseudo_labels", "completed", over=once)
    assert "train/depth/pseudo_label_coverage" in (run_directory() / "metrics.csv").read_text()


def test_fit_resumes_from_checkpoint(trained):
    more = SCENES | {"--data.labels": "full", "--trainer.max_epochs": "2", "--ckpt_path": trained}
    htt("fit", *DEPTH, over=more)
    assert torch.load(trained, weights_only=True)["global_step"] == 3
    assert torch.load(run_directory() / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 6


def test_warning_about_option_that_checkpoint_overrides(trained, recwarn, monkeypatch):
    monkeypatch.setattr(HTTCLI, "_run_subcommand", lambda self, name: None)
    Path("mine.yaml").write_text("model: {dropout: 0.25}")
    options = {"--model.token_dim": "16", "--model.backbone_options": "{}", "--ckpt_path": trained}
    settings = {key: value for key, value in (TINY | SCENES).items() if key != "--model.backbone"}
    main(["validate", *DEPTH, "--config", "mine.yaml", *words_of(settings | options)])
    messages = [str(warning.message) for warning in recwarn if "ignoring" in str(warning.message)]
    assert f"Using model.token_dim=8 from {trained}; ignoring 16 given on the command line." in messages
    assert any(message.endswith("ignoring 0.25 given in a config.") for message in messages)
    given = [message for message in messages if message.endswith("given on the command line.")]
    assert not any("model.backbone=" in message for message in given)  # only backbone_options was given


@pytest.mark.parametrize("words", [["test"], ["discover", "--out", "completed"]], ids=["test", "discover"])
def test_command_verifies_checkpoint_once(words, trained, monkeypatch):
    testzip, verified = ZipFile.testzip, []
    monkeypatch.setattr(ZipFile, "testzip", lambda self: verified.append(self.filename) or testzip(self))
    checkpoints._read_verified.cache_clear()
    htt(*words, *DEPTH, "--ckpt_path", trained, over=SCENES)
    assert verified == [trained]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data.labels", "one-lable"], "one-label"),
        (["--data.tasks", "dpeth"], "Did you mean 'depth'"),
        (["--data.train_images", "2"], "batch"),
        (["--model.backbone", "resnet81"], "resnet81"),
        (["--model.pretrained", "missing.pth"], "missing.pth"),
        (["--ckpt_path", "missing.ckpt"], "missing.ckpt"),
        (["--model.loss_weights", "{dpeth: 1}"], "dpeth"),
        (["--data.augment.hflip_prob", "1.5"], "augment.hflip_prob"),
    ],
)
def test_user_error_is_one_message(arguments, message):
    settings = {key: value for key, value in (TINY | SCENES).items() if key not in arguments}
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--config", "synthetic.yaml", *words_of(settings), *arguments])
    assert str(stop.value).startswith("error: ")
    assert message in str(stop.value)
    assert not list(Path("runs").glob("*/metrics.csv"))


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["fitt"], "fit"),
        (["fit", "--config", "nyd.yaml"], "nyud.yaml"),
        (["fit", "--config=loggers/wandbb.yaml"], "loggers/wandb.yaml"),
    ],
)
def test_unknown_command_or_config_has_suggestion(words, meant):
    with pytest.raises(SystemExit, match=f"error: .*Did you mean '{meant}'"):
        main(words)


def test_config_of_user_is_kept(logged_out):
    own = "data: {class_path: SyntheticDataModule}  # mine\nmodel: {lr: 0.001}\n"
    Path("config.yaml").write_text(own)
    offline = {"--trainer.logger": "WandbLogger", "--trainer.logger.offline": "true"}
    htt("fit", "--config", "config.yaml", "--data.tasks", "depth", over=SCENES | {"--data.labels": "full"} | offline)
    wandb.finish()  # the next logger of this process would continue the run
    assert Path("config.yaml").read_text() == own
    (written,) = Path("runs/lightning_logs").glob("*/config.yaml")
    assert yaml.safe_load(written.read_text())["model"]["lr"] == 1e-3
    assert (written.parent / "val_metrics.json").is_file()


def test_predict_writes_to_out_and_overwrites_on_demand(trained, capsys):
    predict = ["predict", *DEPTH, "--ckpt_path", trained, "--out", "mine"]
    htt(*predict, over=SCENES)
    assert capsys.readouterr().out.splitlines()[-1] == "mine"
    assert len(list(Path("mine").glob("*_*"))) == 9
    with pytest.raises(SystemExit, match=r"error: --out .*mine.*--overwrite"):
        htt(*predict, over=SCENES)
    htt(*predict, "--overwrite", "true", over=SCENES)


@pytest.mark.parametrize("command", ["check", "discover", "validate"])
def test_the_config_of_a_run_serves_other_commands(trained, command):
    run = Path(trained).parents[1]
    words = ["--config", str(run / "config.yaml")]
    words += ["--out", "out"] if command != "validate" else []
    main([command, *words, *([] if command == "check" else ["--ckpt_path", trained])])
    if command == "check":
        report = json.loads(Path("out/check.json").read_text())
        assert report["splits"]["train"]["images"] == 9
        assert list(report["splits"]["train"]["tasks"]) == ["depth"]
    elif command == "discover":
        assert json.loads(Path("out/manifest.json").read_text())
