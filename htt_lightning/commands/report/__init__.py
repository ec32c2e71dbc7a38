"""Runs side by side, as a table and a figure; the command ``report``."""

from htt_lightning.commands.report.command import report

__all__ = ["report"]
