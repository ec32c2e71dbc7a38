"""Teachers from outside: models that others trained, and maps that another program wrote."""

from htt_lightning.discovery.outside.alignment import Alignment, fit_alignment
from htt_lightning.discovery.outside.options import TeacherOptions

__all__ = ["Alignment", "TeacherOptions", "fit_alignment"]
