"""Where do diffusion models memorize? The geometry of a data set answers before any training.

`geomem.data` loads images, `geomem.geometry` computes posterior concentration, shell coverage and
the danger zone, `geomem.experiments` holds one command for each figure and table. Reimplements
Dodson et al., *Two Calm Ends and the Wild Middle: A Geometric Picture of Memorization in
Diffusion Models* (ICML 2026).
"""

__version__ = "0.1.0"
