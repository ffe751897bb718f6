"""Data sets: `load(name) -> Dataset`, float32 NHWC images in [-1, 1], with exact provenance.

Pixels are read lazily: `Dataset.subset` moves indices only, and what is decoded is what is used.
"""

from geomem.data.datasets import Dataset, Split, count_duplicates, count_shared, to_float
from geomem.data.loading import load

__all__ = ["Dataset", "Split", "count_duplicates", "count_shared", "load", "to_float"]
