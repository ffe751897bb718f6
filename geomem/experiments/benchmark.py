"""Time the geometry against baselines; see `geomem.experiments.benchmarks.geometry_speed`."""

from geomem.experiments.benchmarks.geometry_speed import Config, run
from geomem.experiments.common import command_line

__all__ = ["Config", "run"]

if __name__ == "__main__":
    command_line.main(Config, run)
