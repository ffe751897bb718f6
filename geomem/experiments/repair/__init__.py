"""Replace a trained network in the danger zone while sampling, and measure what that repairs."""

from geomem.experiments.repair.study import Config, Result, run

__all__ = ["Config", "Result", "run"]
