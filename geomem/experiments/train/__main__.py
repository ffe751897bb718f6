"""`python -m geomem.experiments.train PRESET`."""

from geomem import memory
from geomem.experiments.common import command_line
from geomem.experiments.train.configuration import Config
from geomem.experiments.train.loop import run
from geomem.experiments.train.presets import ABOUT, PRESETS

if __name__ == "__main__":
    memory.keep_freed_without_accelerator()  # before JAX starts its threads
    needs = {"watch_samples": ("watch",)}
    command_line.main(Config, run, presets=PRESETS, about=ABOUT, resumes=True, needs=needs)
