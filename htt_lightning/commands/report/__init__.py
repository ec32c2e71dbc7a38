"""Command ``report``: compare runs as a table and a figure."""

from htt_lightning.commands.report.command import report

__all__ = ["report"]
