"""Callbacks: label discovery, the non-finite guard, panels, tables and files of a run."""

from htt_lightning.callbacks.discovery_panel import DiscoveryPanel
from htt_lightning.callbacks.label_discovery import LabelDiscovery
from htt_lightning.callbacks.nonfinite_guard import NonFiniteLossGuard
from htt_lightning.callbacks.prediction_panel import PredictionPanel
from htt_lightning.callbacks.prediction_writer import PredictionWriter
from htt_lightning.callbacks.results_table import ResultsTable
from htt_lightning.callbacks.run_checkpoint import RunCheckpoint
from htt_lightning.callbacks.run_record import RunRecord

__all__ = [
    "DiscoveryPanel",
    "LabelDiscovery",
    "NonFiniteLossGuard",
    "PredictionPanel",
    "PredictionWriter",
    "ResultsTable",
    "RunCheckpoint",
    "RunRecord",
]
