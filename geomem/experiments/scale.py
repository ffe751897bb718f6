"""Time streaming points from disk; see `geomem.experiments.benchmarks.streaming_speed`."""

from geomem.experiments.benchmarks.streaming_speed import Config, run
from geomem.experiments.common import command_line

__all__ = ["Config", "run"]

if __name__ == "__main__":
    command_line.main(Config, run)
