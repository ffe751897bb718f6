"""`python -m geomem.experiments.audit DATA`."""

from geomem.experiments.audit.command import Config, run
from geomem.experiments.common import command_line

__all__ = []

if __name__ == "__main__":
    command_line.main(Config, run)
