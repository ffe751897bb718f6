"""`python -m geomem.experiments.audit DATA`."""

from geomem.experiments.audit.command import Config, run
from geomem.experiments.common import cli

__all__ = []

if __name__ == "__main__":
    cli.main(Config, run)
