"""Audit a data set: duplicates, danger zone, training noise and advice on one HTML page."""

from geomem.experiments.audit.command import Config, Result, run

__all__ = ["Config", "Result", "run"]
