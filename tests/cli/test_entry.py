import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import wandb
import yaml

from htt_lightning import HTTModule, LabelDiscovery
from htt_lightning.cli.entry import main, packaged_config, specifies_dataset
from htt_lightning.data.datasets.synthetic import write_nyud_tree
from tests.conftest import ROOT

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
FOR_DATA = {key: value for key, value in TINY.items() if not key.endswith("max_epochs")}


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Run in an empty directory, with nothing on pytest's own command line for Lightning to worry about."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["htt"])


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    write_nyud_tree(root / "NYUDv2", train=9, val=3, size=(32, 48))
    return root


def htt(command, *arguments, **options):
    settings = TINY | options.pop("over", {})
    words = [word for pair in settings.items() for word in pair if word is not None]
    main([command, *arguments, *words])


def run_directory():
    return max(Path("runs").glob("version_*"))


def test_synthetic_config_fits_validates_tests_and_predicts(capsys):
    htt("fit", "--config", "synthetic.yaml", over=SCENES)
    printed = capsys.readouterr().out
    run = run_directory()
    for name in ("config.yaml", "label_mask.json", "val_metrics.json", "metrics.csv", "panels/epoch_000.png"):
        assert (run / name).is_file(), name
        assert name in ("config.yaml", "label_mask.json", "metrics.csv") or str(run / name) in printed
    checkpoint = run / "checkpoints" / "last.ckpt"
    results = json.loads((run / "val_metrics.json").read_text())
    assert len(results) == 6
    for command in ("validate", "test", "predict"):
        htt(command, "--config", "synthetic.yaml", "--ckpt_path", str(checkpoint), over=SCENES)
    assert "test/depth/abs_err" in capsys.readouterr().out
    assert len(list(Path("runs").glob("*/test_metrics.*"))) == 2
    assert len(list((run_directory() / "predictions").glob("*_depth.png"))) == 3
    assert [task.name for task in HTTModule.load_from_checkpoint(checkpoint).tasks][-1] == "depth"


def test_nyud_config_fits_validates_tests_and_predicts_on_a_tree(tree, capsys):
    both = {"--discovery.stages": str(LabelDiscovery().stages)}  # the default, which these tests otherwise change
    torch.save({"labels_weights": torch.eye(3).repeat(3, 1)}, "onelabel.pth")  # the published format
    both["--data.labels"] = "onelabel.pth"
    htt("fit", "--config", "nyud.yaml", "--data.root", str(tree), "--data.augment.crop", "[32, 48]", over=both)
    checkpoint = run_directory() / "checkpoints" / "last.ckpt"
    stored = torch.load(checkpoint, weights_only=True)
    assert stored["callbacks"]["LabelDiscovery"]["stage"] == 1
    assert [task["init_args"]["name"] for task in stored["hyper_parameters"]["tasks"]] == ["semseg", "depth", "normals"]
    for command in ("validate", "test", "predict"):
        htt(command, "--config", "nyud.yaml", "--data.root", str(tree), "--ckpt_path", str(checkpoint))
    assert "test/normals/mean" in capsys.readouterr().out


def test_another_augmentation_is_put_on_top_of_a_dataset_config(capsys):
    with pytest.raises(SystemExit):
        main(["fit", "--config", "cityscapes.yaml", "--config", "mtan.yaml", "--data.root", ".", "--print_config"])
    augment = yaml.safe_load(capsys.readouterr().out)["data"]["init_args"]["augment"]
    assert (
        augment | {"scale_values": [1, 1.2, 1.5], "max_crop_attempts": 1, "hflip_prob": 0, "photometric_prob": 0}
        == augment
    )


def test_the_published_recipe_is_what_nyud_config_says(capsys):
    with pytest.raises(SystemExit):
        main(["fit", "--config", "nyud.yaml", "--data.root", ".", "--print_config"])
    config = yaml.safe_load(capsys.readouterr().out)
    recipe = {
        "backbone": "resnet18", "pretrained": True, "token_dim": 256, "lr": 2e-5, "weight_decay": 1e-6,
        "poly_power": 0.9,
    }  # fmt: skip
    assert config["model"] | recipe == config["model"]
    assert config["trainer"]["gradient_clip_val"] == 10
    assert config["trainer"]["max_epochs"] == 100
    assert config["data"]["init_args"]["batch_size"] == 6
    assert config["data"]["init_args"]["labels"] == "one-label"
    assert config["data"]["init_args"]["image_size"] is None
    assert config["data"]["init_args"]["augment"]["scale_range"] == [0.5, 2.0]
    discovery = config["discovery"]
    assert (discovery["stages"], discovery["student"], discovery["targets"]) == (2, "fresh", "hard")
    assert discovery["terms"] == {"prediction": 1, "feature_labeled": 1, "feature_unlabeled": 1}


def test_the_embedded_scenes_train_in_two_stages(capsys):
    with pytest.raises(SystemExit):
        main(["fit", "--config", "synthetic.yaml", "--print_config"])
    discovery = yaml.safe_load(capsys.readouterr().out)["discovery"]
    assert (discovery["stages"], discovery["student_init"], discovery["target_type"]) == (2, "teacher", "soft_tta")


@pytest.mark.parametrize(
    "words",
    [
        pytest.param([str(Path(sys.executable).with_name("htt"))], id="htt"),
        pytest.param([str(Path(sys.executable).with_name("lightning"))], id="lightning", marks=pytest.mark.slow),
        pytest.param([sys.executable, "-m", "htt_lightning"], id="module", marks=pytest.mark.slow),
    ],
)
def test_all_three_names_are_the_same_program(words, tmp_path):
    settings = [word for pair in (TINY | SCENES).items() for word in pair]
    command = [*words, "fit", "--config=synthetic.yaml", *settings, "--trainer.fast_dev_run", "1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("Labels of 9 training images (random-label, seed 0): semseg ") == 1
    assert not (tmp_path / "runs").exists()


def test_a_seventh_task_trains_from_a_config(tmp_path):
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
    assert set(results) == {"val/depth/abs_err", "val/height/abs_err"}
    loaded = HTTModule.load_from_checkpoint(run_directory() / "checkpoints" / "last.ckpt")
    assert loaded.tasks[1].reach == 5.0
    assert loaded.net.heads["height"].classify.out_channels == 1


def test_everything_a_study_varies_is_a_config_value():
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
    assert config["data"]["init_args"]["tasks"][0]["init_args"]["num_bins"] == 9
    assert config["data"]["init_args"]["augment"]["photometric_prob"] == 0
    assert config["model"]["loss_weights"] == {"depth": 0.45}
    stored = torch.load(run_directory() / "checkpoints" / "last.ckpt", weights_only=True)["hyper_parameters"]
    assert (stored["network"], stored["lr"], stored["tasks"][0]["init_args"]["num_bins"]) == ("multitask", 3e-4, 9)


def test_two_stages_then_discover_then_train_on_what_was_discovered(capsys):
    once = SCENES | {"--trainer.limit_val_batches": "1"}
    htt("fit", "--config", "synthetic.yaml", over=once | {"--discovery.stages": "2", "--data.labels": "one-label"})
    run = run_directory()
    rows = (run / "metrics.csv").read_text()
    assert "train/depth/pseudo_label_coverage" in rows
    assert (run / "checkpoints" / "stage_1.ckpt").is_file()
    checkpoint = str(run / "checkpoints" / "last.ckpt")
    assert torch.load(checkpoint, weights_only=True)["callbacks"]["LabelDiscovery"]["stage"] == 1
    data = FOR_DATA | SCENES | {"--data.labels": "one-label"}
    words = ["--ckpt_path", checkpoint, "--out", "completed"]
    main(["discover", "--config", "synthetic.yaml", *words, *(word for pair in data.items() for word in pair)])
    assert "completed/manifest.json" in capsys.readouterr().out
    htt(
        "fit",
        *("--config", "synthetic.yaml", "--data.pseudo_labels", "completed"),
        over=once | {"--data.labels": "one-label"},
    )
    rows = (run_directory() / "metrics.csv").read_text()
    assert "train/depth/pseudo_label_coverage" in rows


def test_augmentation_can_be_switched_off():
    htt("fit", "--config", "synthetic.yaml", "--data.augment", "null", "--trainer.fast_dev_run", "1", over=SCENES)


def test_a_resumed_command_continues():
    htt("fit", "--config", "synthetic.yaml", "--data.tasks", "depth", over=SCENES | {"--data.labels": "full"})
    checkpoint = str(run_directory() / "checkpoints" / "last.ckpt")
    more = SCENES | {"--data.labels": "full", "--trainer.max_epochs": "2", "--ckpt_path": checkpoint}
    htt("fit", "--config", "synthetic.yaml", "--data.tasks", "depth", over=more)
    assert torch.load(checkpoint, weights_only=True)["global_step"] == 3
    assert torch.load(run_directory() / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 6


def test_a_checkpoint_that_overrides_the_command_line_says_so():
    htt("fit", "--config", "synthetic.yaml", "--data.tasks", "depth", over=SCENES | {"--data.labels": "full"})
    checkpoint = str(run_directory() / "checkpoints" / "last.ckpt")
    with pytest.warns(
        UserWarning, match=r"Using model\.token_dim=8 from .*last\.ckpt; ignoring 16 given on the command line"
    ):
        htt(
            "validate", "--config", "synthetic.yaml", "--data.tasks", "depth", "--ckpt_path", checkpoint,
            over=SCENES | {"--model.token_dim": "16"},
        )  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data.labels", "one-lable"], "one-label"),
        (["--data.tasks", "dpeth"], "Did you mean 'depth'"),
        (["--data.train_images", "2"], "do not fill one batch"),
        (["--model.backbone", "resnet81"], "Unknown backbone 'resnet81'"),
        (["--model.pretrained", "missing.pth"], "missing.pth"),
        (["--ckpt_path", "missing.ckpt"], "missing.ckpt"),
        (["--model.loss_weights", "{dpeth: 1}"], "loss_weights names 'dpeth'"),
        (["--data.augment.hflip_prob", "1.5"], "augment.hflip_prob"),
    ],
)
def test_bad_input_ends_with_one_message(arguments, message, capsys):
    overridden = {arguments[k]: None for k in range(0, len(arguments), 2)}
    settings = {key: value for key, value in (TINY | SCENES).items() if key not in overridden}
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--config", "synthetic.yaml", *[w for pair in settings.items() for w in pair], *arguments])
    assert str(stop.value).startswith("error: ")
    assert message in str(stop.value)
    assert not list(Path("runs").glob("*/metrics.csv"))


def test_a_missing_tree_prints_what_is_expected():
    with pytest.raises(SystemExit, match=r"error: [\s\S]*train/"):
        htt("fit", "--config", "nyud.yaml", "--data.root", "nowhere")


def test_a_users_own_config_is_left_alone(logged_out):
    own = f"data: {{class_path: SyntheticDataModule}}  # mine\nmodel: {{lr: {1e-3}}}\n"
    Path("config.yaml").write_text(own)
    offline = {"--trainer.logger": "WandbLogger", "--trainer.logger.offline": "true"}
    htt("fit", "--config", "config.yaml", "--data.tasks", "depth", over=SCENES | {"--data.labels": "full"} | offline)
    wandb.finish()  # the next logger of this process would go on with the run
    assert Path("config.yaml").read_text() == own
    (written,) = Path("runs/lightning_logs").glob("*/config.yaml")
    assert yaml.safe_load(written.read_text())["model"]["lr"] == 1e-3
    assert (written.parent / "val_metrics.json").is_file()


def test_predictions_go_where_asked_and_are_replaced_only_on_demand(capsys):
    depth = ["--config", "synthetic.yaml", "--data.tasks", "depth"]
    htt("fit", *depth, over=SCENES | {"--data.labels": "full"})
    predict = ["predict", *depth, "--ckpt_path", str(run_directory() / "checkpoints" / "last.ckpt"), "--out", "mine"]
    htt(*predict, over=SCENES)
    assert capsys.readouterr().out.splitlines()[-1] == "mine"
    assert len(list(Path("mine").glob("*_*"))) == 9
    with pytest.raises(SystemExit, match=r"error: --out .*mine.*--overwrite"):
        htt(*predict, over=SCENES)
    htt(*predict, "--overwrite", "true", over=SCENES)


def test_single_task_figures_may_come_after_training(capsys):
    depth = ["--config", "synthetic.yaml", "--data.tasks", "depth", "--model.single_task_baselines", "{depth: 2.0}"]
    htt("fit", *depth[:-2], over=SCENES | {"--data.labels": "full"})
    checkpoint = str(run_directory() / "checkpoints" / "last.ckpt")
    htt("test", *depth, "--ckpt_path", checkpoint, over=SCENES)
    assert "test/delta_m" in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"", b"not a checkpoint"])
def test_a_damaged_checkpoint_is_named(content):
    Path("broken.ckpt").write_bytes(content)
    with pytest.raises(SystemExit, match=r"error: --ckpt_path: broken\.ckpt is corrupt"):
        htt("validate", "--config", "synthetic.yaml", "--ckpt_path", "broken.ckpt", over=SCENES)


def test_an_error_in_a_loader_process_is_as_short(tree, tmp_path):
    write_nyud_tree(tmp_path / "tree", train=6, val=2, size=(32, 48))
    # The header of a file is checked before training, the values of a normal map as they are read.
    path = tmp_path / "tree" / "train" / "normal" / "3.npy"
    np.save(path, 300 * np.ones_like(np.load(path)))
    with pytest.raises(SystemExit) as stop:
        htt(
            "fit", "--config", "nyud.yaml", "--data.root", str(tmp_path / "tree"), "--data.labels", "full",
            over={"--data.num_workers": "1"},
        )  # fmt: skip
    assert str(stop.value).startswith("error: ")
    assert "3.npy" in str(stop.value)
    assert "Traceback" not in str(stop.value)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--trainer.max_epochs", "1"], False),
        (["--data.batch_size", "2"], False),
        (["--data", "NYUDDataModule"], True),
        (["--data.class_path=NYUDDataModule"], True),
        (["--config", "with.yaml"], True),
        (["--config=with.yaml"], True),
        (["-c", "short.yaml"], True),
        (["--config", "without.yaml"], False),
        (["--config", "empty.yaml"], False),
        (["--config", "missing.yaml"], False),
        (["--config"], False),
    ],
)
def test_the_scenes_are_used_where_no_other_data_is_named(words, named):
    Path("with.yaml").write_text("data: {class_path: NYUDDataModule}")
    Path("short.yaml").write_text("data: NYUDDataModule")
    Path("without.yaml").write_text("data: {init_args: {batch_size: 2}}")
    Path("empty.yaml").write_text("")
    assert specifies_dataset(words) is named


def test_a_config_in_the_working_directory_wins_over_the_packaged_one():
    assert packaged_config("synthetic.yaml") == str(ROOT / "configs" / "synthetic.yaml")
    Path("synthetic.yaml").write_text("{}")
    assert packaged_config("synthetic.yaml") == "synthetic.yaml"
    assert packaged_config("unknown.yaml") == "unknown.yaml"


def test_every_config_of_the_package_parses():
    for path in (ROOT / "configs").glob("*.yaml"):
        root = ["--data.root", "."] if path.name != "synthetic.yaml" else []
        alone = "class_path" in yaml.safe_load(path.read_text())["data"]
        below = [] if alone else ["--config", "nyud.yaml"]  # goes on top of any dataset's
        with pytest.raises(SystemExit) as stop:
            main(["fit", *below, "--config", path.name, *root, "--print_config"])
        assert stop.value.code == 0, path
