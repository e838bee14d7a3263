"""Every error a user can cause. Nothing else escapes for bad input."""

from __future__ import annotations


class PleasError(Exception):
    """Base class: one clear line that names the culprit and what would be acceptable."""


class TraceError(PleasError):
    """A model can't be traced or run on the example inputs; names the module."""


class IncompatibleModelsError(PleasError):
    """The sources are not the same graph; names the first node or shape that differs."""


class GraphError(PleasError):
    """A place of the graph can't be rewritten, not even whole; names the node."""


class CalibrationError(PleasError):
    """Calibration data is empty, mis-shaped, NaN or Inf; names the batch and the layer."""


class BudgetError(PleasError):
    """No network meets the budget; states the feasible range."""


class ExportError(PleasError):
    """The exported file disagrees with the network; carries the parity figures."""


class SourceError(PleasError):
    """A model, checkpoint or data specification can't be read, or isn't what it says."""


class ArtefactError(PleasError):
    """An artefact folder can't be written or isn't complete."""


class ResourceError(PleasError):
    """Memory ran out, or room for temporary files; names the pass."""


class OptionError(PleasError):
    """An option has a value outside its range, or two options exclude each other."""
