from types import SimpleNamespace

import pytest
from lightning.pytorch.loggers import CSVLogger, WandbLogger

from htt_lightning.errors import HTTError
from htt_lightning.io.files import atomic_path
from htt_lightning.io.run_directory import run_directory
from tests.tiny import tiny_trainer


def names(folder):
    return [path.name for path in folder.iterdir()]


def interrupt(partial, error):
    partial.write_text("half")
    raise error


def test_a_file_appears_only_when_it_is_whole(tmp_path):
    path = tmp_path / "deep" / "down" / "file.txt"
    with atomic_path(path) as partial:
        partial.write_text("half")
        assert not path.exists()
        assert partial.parent == path.parent  # a move between file systems is not atomic
        with partial.open("a") as file:
            file.write(" whole")
    assert path.read_text() == "half whole"
    assert names(path.parent) == ["file.txt"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "file.txt"
    path.write_text("old")
    with pytest.raises(error, match="stop"), atomic_path(path) as partial:
        interrupt(partial, error("stop"))
    assert path.read_text() == "old"
    assert names(tmp_path) == ["file.txt"]


def test_a_failed_first_write_leaves_no_file(tmp_path):
    with pytest.raises(RuntimeError), atomic_path(tmp_path / "file.txt") as partial:
        interrupt(partial, RuntimeError())
    assert names(tmp_path) == []


def test_an_error_of_the_system_names_the_file(tmp_path):
    (tmp_path / "occupied").write_text("a file where a folder should be")
    path = tmp_path / "occupied" / "file.txt"
    with pytest.raises(HTTError, match=rf"Cannot write {path}: "), atomic_path(path) as partial:
        partial.write_text("never")
    with pytest.raises(HTTError, match=r"file\.txt: No space left"), atomic_path(tmp_path / "file.txt") as partial:
        interrupt(partial, OSError(28, "No space left on device"))
    assert names(tmp_path) == ["occupied"]


def test_the_run_directory_is_the_loggers(tmp_path):
    logger = CSVLogger(tmp_path / "runs", name="")
    assert run_directory(tiny_trainer(tmp_path, logger=logger)) == tmp_path / "runs" / "version_0"


def test_the_run_directory_of_a_logger_without_one_is_named_by_the_run(tmp_path, logged_out):
    logger = WandbLogger(project="mine", offline=True, save_dir=tmp_path)
    folder = run_directory(tiny_trainer(tmp_path, logger=logger))
    assert folder == tmp_path / "mine" / logger.version
    logger.experiment.finish()


def test_the_run_directory_without_a_logger_is_the_default_root(tmp_path):
    assert run_directory(tiny_trainer(tmp_path)) == tmp_path


def test_a_trial_run_has_no_directory(tmp_path):
    assert run_directory(tiny_trainer(tmp_path, fast_dev_run=True)) is None


def test_every_process_asks_for_the_logging_directory_even_in_a_trial_run():
    """Asking is a broadcast: a process that does not ask leaves the others waiting."""
    asked = []

    class Trainer(SimpleNamespace):
        logger = None

        @property
        def log_dir(self):
            asked.append(True)

    assert run_directory(Trainer(fast_dev_run=True, default_root_dir="here")) is None
    assert asked
