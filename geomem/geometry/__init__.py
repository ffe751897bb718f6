"""The paper: posterior, shells, curves and the danger zone of a data set, before any training."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
