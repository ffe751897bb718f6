"""Train an EDM denoiser, with or without a gap in its noise levels, and load trained denoisers."""

from geomem.experiments.train.configuration import Config
from geomem.experiments.train.loop import Result, run
from geomem.experiments.train.presets import PRESETS
from geomem.experiments.train.run_folder import load

__all__ = ["PRESETS", "Config", "Result", "load", "run"]
