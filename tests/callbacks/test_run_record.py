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


def trained(folder, images=8, **options):
    data = tiny_data(tasks=["depth"], labels="full", train_images=images)
    callbacks = [LabelDiscovery(stages=2), RunRecord()]
    trainer = tiny_trainer(folder, callbacks=callbacks, limit_val_batches=0, **options)
    module = tiny_module(data)
    trainer.fit(module, data)
    return trainer, module, data, yaml.safe_load((folder / RUN_RECORD).read_text())


def test_a_run_says_where_it_has_come_from_and_when_its_stages_began(tmp_path, capsys):
    trainer, _, data, record = trained(tmp_path / "run")
    assert record["versions"]["torch"] == version("torch")
    assert record["device"].startswith("1 process on cpu")
    assert record["data"]["train"]["images"] == 8
    assert record["data"].keys() == {"train", "val"}
    assert record["labels"] == data.mask.fingerprint
    assert list(record["stages"]) == ["1", "2"]
    border = f"from epoch {trainer.current_epoch // 2}, step {trainer.global_step // 2}, "
    assert record["stages"]["2"].startswith(border)
    assert record["began"] <= record["ended"]
    (tmp_path / "run" / "config.yaml").write_text("seed_everything: 3")
    info(str(tmp_path / "run"))
    rows = dict(line.split(None, 1) for line in capsys.readouterr().out.splitlines())
    assert rows["labels"] == data.mask.fingerprint
    assert rows["stages.2"] == record["stages"]["2"]


def test_the_fingerprint_tells_data_apart(tmp_path):
    records = [trained(tmp_path / str(k), images)[-1]["data"] for k, images in enumerate((8, 8, 12))]
    assert records[0] == records[1]
    assert records[0]["train"] != records[2]["train"]
    assert records[0]["val"] == records[2]["val"]


def test_a_run_that_fails_says_by_what(tmp_path):
    class Failing(RunRecord):
        def on_train_batch_start(self, *_):
            raise ZeroDivisionError

    data = tiny_data(tasks=["depth"], labels="full")
    with pytest.raises(ZeroDivisionError):
        tiny_trainer(tmp_path, callbacks=[Failing()]).fit(tiny_module(data), data)
    assert yaml.safe_load((tmp_path / RUN_RECORD).read_text())["ended"].endswith("by ZeroDivisionError")


def test_a_test_has_a_record_and_a_trial_run_none(tmp_path):
    _, module, data, _ = trained(tmp_path / "run")
    tiny_trainer(tmp_path / "test", callbacks=[RunRecord()]).test(module, data, verbose=False)
    assert yaml.safe_load((tmp_path / "test" / RUN_RECORD).read_text())["data"].keys() == {"val"}
    tiny_trainer(tmp_path / "trial", callbacks=[RunRecord()], fast_dev_run=True).fit(module, data)
    assert not (tmp_path / "trial").exists()


GIT = shutil.which("git")


@pytest.mark.skipif(GIT is None, reason="git is not installed")
def test_the_commit_is_named_and_what_differs_from_it_is_counted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_state() is None
    name = ("-c", "user.name=a", "-c", "user.email=a@example.org")
    (tmp_path / "train.py").write_text("1")
    for words in (("init", "-q", "-b", "topic"), ("add", "."), (*name, "commit", "-q", "-m", "first")):
        subprocess.run([GIT, *words], check=True)
    found = git_state()
    assert (len(found["commit"]), found["branch"], found["changed"]) == (40, "topic", 0)
    (tmp_path / "train.py").write_text("2")
    assert git_state()["changed"] == 1
    monkeypatch.setenv("PATH", "")
    assert git_state() is None
