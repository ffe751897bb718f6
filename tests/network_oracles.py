"""The stored outputs of the reference implementation, in geomem's NHWC layout."""

import pathlib

import numpy as np

DATA = pathlib.Path(__file__).parent / "data"


def load_oracle(name):
    """Return the inputs and outputs of the oracle; images as [B, H, W, C]."""
    with np.load(DATA / f"songunet_{name}.npz") as archive:
        arrays = {key: archive[key] for key in archive.files if not key.startswith("param/")}
    return {
        key: value.transpose(0, 2, 3, 1) if value.ndim == 4 else value
        for key, value in arrays.items()
    }
