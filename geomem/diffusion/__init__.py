"""The learned denoiser: training noise, the EDM network and its training step, sampling."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
