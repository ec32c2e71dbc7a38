import logging
import warnings

import pytest
from lightning.fabric.utilities.rank_zero import rank_zero_info as fabric_info
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from htt_lightning.cli.quiet import LIGHTNING_LOGGERS, _is_no_tip, silence_foreign_messages


@pytest.fixture
def silenced():
    with warnings.catch_warnings():
        silence_foreign_messages()
        yield
    for name in LIGHTNING_LOGGERS:
        logging.getLogger(name).removeFilter(_is_no_tip)


@pytest.mark.parametrize("info", [rank_zero_info, fabric_info])
def test_tips_are_hidden_and_other_messages_kept(silenced, caplog, info):
    with caplog.at_level(logging.INFO):
        info("💡 Tip: For seamless cloud logging, try installing litlogger.")
        info("GPU available: False")
    assert [record.getMessage() for record in caplog.records] == ["GPU available: False"]
