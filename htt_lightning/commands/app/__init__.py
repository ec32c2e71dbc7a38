"""Command ``app``: a local page to look at predictions and to review discovered labels."""

from htt_lightning.commands.app.command import app

__all__ = ["app"]
