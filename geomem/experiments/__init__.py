"""One command per figure or table: `geomem NAME`, or its `run(Config())` in Python."""

import os
import sys

import lazy_loader

from geomem.experiments.common import interruption

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

# Started as a command: `python -m geomem...`, whose module is being looked up now, or `geomem`.
if sys.argv[:1] == ["-m"] or os.path.basename(sys.argv[0]) == "geomem":
    interruption.install()
