"""Options of the trainer: callbacks, loggers, limits and intervals of Lightning."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from htt_lightning.cli.entry import main
from tests.tiny import BACKBONE, SCENES

DEPTH = ["--data=SyntheticDataModule", "--data.tasks=depth", "--data.labels=full", f"--model.backbone={BACKBONE}"]
SMALL = ["--data.image_size=[32,48]", "--data.train_images=2", "--data.val_images=1", "--data.batch_size=1"]
SMALL += ["--data.num_workers=0", f"--data.cache={SCENES.name}", "--model.token_dim=8", "--discovery.stages=1"]
SMALL += ["--trainer.accelerator=cpu", "--trainer.max_epochs=1", "--trainer.enable_progress_bar=false"]

pytestmark = pytest.mark.usefixtures("in_empty_folder")


def failing(*words):
    with pytest.raises(SystemExit) as stop:
        main([*words, *DEPTH])
    assert "\n" not in str(stop.value)
    assert not Path("runs").exists()
    return str(stop.value)


@pytest.mark.parametrize(
    ("command", "option"),
    [("fit", "limit_train_batches"), ("validate", "limit_val_batches"), ("test", "limit_test_batches"),
     ("predict", "limit_predict_batches"), ("fit", "check_val_every_n_epoch"), ("fit", "val_check_interval")],
)  # fmt: skip
def test_limit_or_interval_of_zero_is_refused(command, option):
    assert f"error: trainer.{option} must be above 0" in failing(command, f"--trainer.{option}=0")


def test_wandb_offline_with_models_is_refused():
    words = ["--trainer.logger=WandbLogger", "--trainer.logger.offline=true", "--trainer.logger.log_model=all"]
    rule = "trainer.logger.log_model must be false with trainer.logger.offline true"
    assert failing("fit", *words) == f"error: {rule}, as nothing is uploaded, got all."


@pytest.mark.skipif(find_spec("mlflow") is not None, reason="mlflow is installed")
def test_mlflow_logger_names_its_package():
    message = failing("fit", "--trainer.logger=MLFlowLogger")
    assert message == "error: trainer: needs mlflow>=1.0.0, which is not installed: pip install 'mlflow>=1.0.0'."


@pytest.mark.parametrize(
    ("strategy", "need"),
    [("fsdp", "requires a GPU"), ("deepspeed", "deepspeed")],
)
def test_strategy_names_what_it_needs(strategy, need):
    if strategy == "deepspeed" and find_spec("deepspeed"):
        pytest.skip("deepspeed is installed")
    message = failing("fit", "--trainer.accelerator=cpu", "--trainer.devices=2", f"--trainer.strategy={strategy}")
    assert message.startswith("error: trainer: ")
    assert need in message


def test_timer_limits_training_and_is_in_the_config():
    words = ["--trainer.callbacks+=Timer", "--trainer.callbacks.duration=00:00:00:00"]
    main(["fit", *DEPTH, *SMALL, *words])
    (run,) = Path("runs").iterdir()
    callbacks = yaml.safe_load((run / "config.yaml").read_text())["trainer"]["callbacks"]
    timer = next(callback for callback in callbacks if callback["class_path"].endswith(".Timer"))
    assert timer["init_args"] == {"duration": "00:00:00:00", "interval": "step", "verbose": True}


@pytest.mark.slow
def test_ddp_spawn_trains():
    spawn = ["--trainer.strategy=ddp_spawn", "--trainer.devices=2"]
    main(["fit", *DEPTH, *SMALL, *spawn])
    (results,) = Path("runs").glob("*/val_metrics.json")
    assert yaml.safe_load(results.read_text())["val/depth/abs_err"]["epoch"] == 0
