"""The engine: visit all points, exactly, wherever they are; nearest neighbors, softmax search."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
