"""Compile a program without having its TPU or GPU; see `geomem.experiments.compile_check`."""

from geomem.experiments.common import command_line
from geomem.experiments.compile_check import Config, run

__all__ = ["Config", "run"]

if __name__ == "__main__":
    command_line.main(Config, run)
