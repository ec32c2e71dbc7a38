"""Notices about how files are read, each said once per process."""

import logging

logger = logging.getLogger(__name__)

_given = set[str]()


def notify_once(kind: str, message: str) -> None:
    """Log a warning unless this process has logged one of its kind; it names the first file of many."""
    if kind not in _given:
        _given.add(kind)
        logger.warning("%s This is said of the first such file.", message)
