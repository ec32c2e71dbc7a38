"""Filter of messages of other libraries that do not concern the user."""

import logging
import warnings

LIGHTNING_LOGGERS = ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero")


def silence_foreign_messages() -> None:
    """Hide Lightning's tips about other products and warnings of its own deprecated calls, for the whole process."""
    for name in LIGHTNING_LOGGERS:
        logging.getLogger(name).addFilter(_is_no_tip)
    # lightning 2.6.6 calls torch's pytree as older releases of torch had it
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"lightning\.pytorch\.utilities\._pytree")


def _is_no_tip(record: logging.LogRecord) -> bool:
    return "Tip: For seamless" not in record.getMessage()
