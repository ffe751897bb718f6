"""`python -m geomem.experiments.train PRESET`."""

from geomem.experiments.common import cli
from geomem.experiments.train.configuration import ABOUT, PRESETS
from geomem.experiments.train.run_folder import run

__all__ = []

if __name__ == "__main__":
    import tyro

    cli.main(tyro.extras.subcommand_type_from_defaults(PRESETS, ABOUT), run)
