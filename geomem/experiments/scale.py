"""Time streaming points from disk; see `geomem.experiments.benchmarks.streaming_speed`."""

from geomem.experiments.benchmarks.streaming_speed import Config, run
from geomem.experiments.common import cli

__all__ = ["Config", "run"]

if __name__ == "__main__":
    cli.main(Config, run)
