"""The command line: `htt`, `lightning` and `python -m htt_lightning`."""

from htt_lightning.cli.main import main

__all__ = ["main"]
