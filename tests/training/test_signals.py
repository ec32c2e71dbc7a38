"""SIGTERM in training runs."""

import pickle
import signal
from types import SimpleNamespace

import pytest
import torch.distributed as dist
from lightning.pytorch.utilities.exceptions import SIGTERMException

from htt_lightning.training.signals import sync_sigterm_across_ranks
from htt_lightning.training.trainer import HTTTrainer


@pytest.fixture
def trainer(monkeypatch):
    """Of one process, whose exchange with others leaves the values as they are."""
    monkeypatch.setattr(dist, "all_reduce", lambda values, operation: None)
    made = HTTTrainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    before = signal.getsignal(signal.SIGTERM)
    yield made
    signal.signal(signal.SIGTERM, before)


def before_step(trainer):
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor()


def test_sigterm_ends_run_at_next_step_and_no_later_run(trainer):
    connector = trainer._signal_connector
    connector.register_signal_handlers()
    before_step(trainer)
    signal.raise_signal(signal.SIGTERM)
    with pytest.raises(SIGTERMException):
        before_step(trainer)
    connector.register_signal_handlers()
    before_step(trainer)


def test_sigterm_in_evaluation_does_not_end_later_fit(trainer):
    connector = trainer._signal_connector
    connector.register_signal_handlers()
    trainer.state.fn = SimpleNamespace(value="test")
    signal.raise_signal(signal.SIGTERM)
    assert connector.received_sigterm
    connector.register_signal_handlers()
    assert not connector.received_sigterm
    before_step(trainer)


def test_pickled_trainer_has_its_own_handlers(trainer):
    """The strategy ``ddp_spawn`` pickles the trainer."""
    copy = pickle.loads(pickle.dumps(trainer))
    copy._signal_connector.register_signal_handlers()
    signal.raise_signal(signal.SIGTERM)
    with pytest.raises(SIGTERMException):
        before_step(copy)
    before_step(trainer)


def test_lightning_without_patched_attributes_is_left_alone():
    connector, loop = SimpleNamespace(register_signal_handlers=None), SimpleNamespace()
    trainer = SimpleNamespace(_signal_connector=connector, fit_loop=SimpleNamespace(epoch_loop=loop))
    sync_sigterm_across_ranks(trainer)
    assert connector.register_signal_handlers is None
    assert not vars(loop)
