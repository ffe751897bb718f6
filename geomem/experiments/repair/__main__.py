"""`python -m geomem.experiments.repair --preset digits`."""

from geomem.experiments.common import command_line
from geomem.experiments.repair.study import Config, run

__all__ = []

if __name__ == "__main__":
    command_line.main(Config, run, resumes=True)
