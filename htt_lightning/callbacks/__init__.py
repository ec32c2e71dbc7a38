"""What a run shows and writes besides its checkpoints."""

from htt_lightning.callbacks.panel import PredictionPanel
from htt_lightning.callbacks.prediction_writer import PredictionWriter
from htt_lightning.callbacks.results import ResultsTable

__all__ = ["PredictionPanel", "PredictionWriter", "ResultsTable"]
