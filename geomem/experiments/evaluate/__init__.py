"""Find copies of training images among generated images, and measure the images' quality."""

from geomem.experiments.evaluate.evaluation import Config, Result, run

__all__ = ["Config", "Result", "run"]
