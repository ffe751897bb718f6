"""Where do diffusion models memorize? Answers from the geometry of a data set, before training.

    import geomem

    data = geomem.load("cifar10_sample")
    curves = geomem.estimate_curves(data.train, data.test)
    zone = geomem.find_danger_zone(curves)
    geomem.plots.danger_zone(curves, zone).savefig("zone.png")

`geomem.data` loads images, `geomem.geometry` computes posterior concentration, shell coverage and
the danger zone, `geomem.diffusion` trains and samples, `geomem.metrics` measures memorization, and
`geomem.experiments` holds one command for each figure and table of Dodson et al., *Two Calm Ends
and the Wild Middle: A Geometric Picture of Memorization in Diffusion Models* (ICML 2026).
"""

import lazy_loader

__version__ = "0.2.0"

# Everything is imported on first use: `import geomem` alone does not import JAX.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
