"""Data sets: `load(name)` returns training and held-out images [N, H, W, C] in [-1, 1].

Pixels are read lazily: `Dataset.subset` selects indices, and only the images in use are decoded.
"""

from geomem.data.datasets import Dataset, Split, count_duplicates, count_shared, to_float
from geomem.data.loading import load

__all__ = ["Dataset", "Split", "count_duplicates", "count_shared", "load", "to_float"]
