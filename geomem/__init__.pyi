from . import data as data
from . import diffusion as diffusion
from . import experiments as experiments
from . import geometry as geometry
from . import metrics as metrics
from . import plots as plots
from . import points as points
from .data import load as load
from .geometry.curves import estimate_curves as estimate_curves
from .geometry.danger_zone import find_danger_zone as find_danger_zone
from .geometry.posterior import denoise as denoise

__version__: str
