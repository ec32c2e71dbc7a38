"""Command line: `htt`, `lightning` and `python -m htt_lightning`."""

from htt_lightning.cli.entry import main

__all__ = ["main"]
