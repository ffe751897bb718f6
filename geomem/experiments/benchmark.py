"""Time the geometry against baselines; see `geomem.experiments.benchmarks.geometry_speed`."""

from geomem.experiments.benchmarks.geometry_speed import Config, run
from geomem.experiments.common import cli

__all__ = ["Config", "run"]

if __name__ == "__main__":
    cli.main(Config, run)
