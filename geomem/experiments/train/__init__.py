"""Train an EDM denoiser, with or without a gap in its noise levels, and load what was trained."""

from geomem.experiments.train.configuration import PRESETS, Config
from geomem.experiments.train.run_folder import Result, load, run

__all__ = ["PRESETS", "Config", "Result", "load", "run"]
