"""Time the training command; see `geomem.experiments.benchmarks.training_speed`."""

from geomem import memory
from geomem.experiments.benchmarks.training_speed import Config, run
from geomem.experiments.common import command_line

__all__ = ["Config", "run"]

if __name__ == "__main__":
    memory.keep_freed_without_accelerator()  # before JAX starts its threads, as `geomem train` does
    command_line.main(Config, run)
