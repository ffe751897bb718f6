"""`python -m geomem.experiments.train PRESET`."""

from geomem.experiments.common import cli
from geomem.experiments.train.configuration import ABOUT, PRESETS, Config
from geomem.experiments.train.run_folder import run

__all__ = []

if __name__ == "__main__":
    cli.main(Config, run, presets=PRESETS, about=ABOUT, resumes=True)
