import signal
from types import SimpleNamespace

import pytest
import torch.distributed as dist
from lightning.pytorch.utilities.exceptions import SIGTERMException

from htt_lightning.training.trainer import HTTTrainer


@pytest.fixture
def trainer(monkeypatch):
    """Of one process, whose exchange with others leaves the values as they are."""
    monkeypatch.setattr(dist, "all_reduce", lambda values, operation: None)
    made = HTTTrainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    before = signal.getsignal(signal.SIGTERM)
    yield made
    signal.signal(signal.SIGTERM, before)


def agree(trainer):
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor()


def test_a_noted_signal_ends_the_run_at_the_next_step_and_no_later_run(trainer):
    connector = trainer._signal_connector
    connector.register_signal_handlers()
    agree(trainer)
    signal.raise_signal(signal.SIGTERM)
    with pytest.raises(SIGTERMException):
        agree(trainer)
    connector.register_signal_handlers()
    agree(trainer)


def test_what_ends_an_evaluation_does_not_end_the_training_after_it(trainer):
    connector = trainer._signal_connector
    connector.register_signal_handlers()
    trainer.state.fn = SimpleNamespace(value="test")
    signal.raise_signal(signal.SIGTERM)
    assert connector.received_sigterm
    connector.register_signal_handlers()
    assert not connector.received_sigterm
    agree(trainer)
