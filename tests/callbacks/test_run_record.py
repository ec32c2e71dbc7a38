import shutil
import subprocess
from importlib.metadata import version

import pytest
import yaml

from htt_lightning.callbacks import LabelDiscovery, RunRecord
from htt_lightning.callbacks.run_record import git_state
from htt_lightning.commands.info import info
from htt_lightning.io.run_directory import RUN_RECORD
from tests.tiny import tiny_data, tiny_module, tiny_trainer

GIT = shutil.which("git")


def fit(folder, images=8, callbacks=(), **options):
    data = tiny_data(tasks=["depth"], labels="full", train_images=images)
    trainer = tiny_trainer(folder, callbacks=[*callbacks, RunRecord()], limit_val_batches=0, **options)
    trainer.fit(tiny_module(data), data)
    return trainer, data


def read(folder):
    return yaml.safe_load((folder / RUN_RECORD).read_text())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return folder, *fit(folder, callbacks=[LabelDiscovery(stages=2)])


def test_run_record_holds_provenance_and_stages(run, capsys):
    folder, trainer, data = run
    record = read(folder)
    assert record["versions"]["torch"] == version("torch")
    assert record["device"].startswith("1 process on cpu")
    assert record["data"]["train"]["images"] == 8
    assert record["data"].keys() == {"train", "val"}
    assert record["labels"] == data.mask.fingerprint
    assert list(record["stages"]) == ["1", "2"]
    start = f"from epoch {trainer.current_epoch // 2}, step {trainer.global_step // 2}, "
    assert record["stages"]["2"].startswith(start)
    assert record["began"] <= record["ended"]
    (folder / "config.yaml").write_text("seed_everything: 3")
    info(str(folder))
    rows = dict(line.split(None, 1) for line in capsys.readouterr().out.splitlines())
    assert rows["labels"] == data.mask.fingerprint
    assert rows["stages.2"] == record["stages"]["2"]


def test_fingerprint_distinguishes_datasets(run, tmp_path):
    for name, images in (("same", 8), ("larger", 12)):
        fit(tmp_path / name, images, max_steps=1)
    first, same, larger = (read(folder)["data"] for folder in (run[0], tmp_path / "same", tmp_path / "larger"))
    assert first == same
    assert first["train"] != larger["train"]
    assert first["val"] == larger["val"]


def test_run_record_names_the_exception(tmp_path):
    class Failing(RunRecord):
        def on_train_batch_start(self, *_):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fit(tmp_path, callbacks=[Failing()])
    assert read(tmp_path)["ended"].endswith("by ZeroDivisionError")


def test_run_record_of_a_test_and_of_a_trial_run(run, tmp_path):
    data = run[2]
    module = tiny_module(data)
    tiny_trainer(tmp_path / "test", callbacks=[RunRecord()], limit_test_batches=1).test(module, data, verbose=False)
    assert read(tmp_path / "test")["data"].keys() == {"val"}
    tiny_trainer(tmp_path / "trial", callbacks=[RunRecord()], fast_dev_run=True).fit(module, data)
    assert not (tmp_path / "trial").exists()


@pytest.mark.skipif(GIT is None, reason="git is not installed")
def test_git_state_names_commit_branch_and_changes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_state() is None
    name = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    (tmp_path / "train.py").write_text("1")
    for words in (("init", "-q", "-b", "topic"), ("add", "."), (*name, "commit", "-q", "-m", "first")):
        subprocess.run([GIT, *words], check=True)
    state = git_state()
    assert (len(state["commit"]), state["branch"], state["changed"]) == (40, "topic", 0)
    (tmp_path / "train.py").write_text("2")
    assert git_state()["changed"] == 1
    monkeypatch.setenv("PATH", "")
    assert git_state() is None
