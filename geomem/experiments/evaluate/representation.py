"""The features in which quality is measured and, on request, copies are looked for."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from geomem import array_files, paths
from geomem.experiments.evaluate.generated import Inputs
from geomem.metrics import onnx_features
from geomem.metrics.features import PIXELS, Features, check_finite
from geomem.metrics.inception import network, weights

_MAX_PIXEL_FEATURES = 1024  # with more, quality measures are slow and mean little
KINDS = ("auto", "inception", "pixels", "none")

FeatureRows = Float[np.ndarray, "images features"]


class Representation(NamedTuple):
    """Features of all images.

    Attributes:
      name: of the features.
      samples, train: features of the images.
      heldout: those of the held-out images, or None if there are none.
      extract: computes features of other images; None for features from a file.
      is_detector: whether copies are also looked for in these features.
    """

    name: str
    samples: FeatureRows
    train: FeatureRows
    heldout: FeatureRows | None
    extract: Features | None
    is_detector: bool


def choose(config, inputs: Inputs) -> tuple[Representation | None, str]:
    """Return the features that a configuration asks for, or None and the reason.

    Raises:
      ValueError: unknown features, or a file that does not hold them.
    """
    shape = inputs.samples.shape[1:]
    if config.features not in KINDS:
        return _from_file(config, inputs), ""
    if config.embedding is not None:
        extract = onnx_features.load(
            paths.as_path(config.embedding),
            side=config.embedding_size,
            mean=config.embedding_mean,
            std=config.embedding_std,
        )
        if not inputs.dataset.is_images or len(shape) != 3:
            raise ValueError("embedding must be left out for latents and vectors.")
        return _extracted(extract, inputs, is_detector=True), ""
    extract = extractor(config.features, shape)
    if extract is not None:
        return _extracted(extract, inputs, is_detector=False), ""
    reason = {
        "auto": "more than 1,024 values are too many for pixel features, and Inception needs its "
        "weights and RGB images of 32 pixels or more",
        "none": "--features none",
    }[config.features]
    return None, f"Quality was not measured ({reason})."


def extractor(kind: str, shape: tuple[int, ...]) -> Features | None:
    """Return the features of a kind in KINDS for images of this shape, or None without any."""
    if kind == "auto":
        kind = "pixels" if np.prod(shape) <= _MAX_PIXEL_FEATURES else "none"
        if len(shape) == 3 and shape[2] == 3 and min(shape[:2]) >= 32 and weights.find():
            kind = "inception"
    if kind == "inception":
        return network.features(weights.load())
    return PIXELS if kind == "pixels" else None


def _extracted(extract, inputs, is_detector):
    dataset = inputs.dataset
    heldout = extract(dataset.test) if len(dataset.test_split) else None
    return Representation(
        extract.name, extract(inputs.samples), extract(dataset.train), heldout, extract, is_detector
    )


def _from_file(config, inputs):
    path = paths.as_path(config.features)
    try:
        if path.suffix != ".npz":
            raise ValueError("it is not an .npz file")
        arrays = array_files.read_npz(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(
            f"features must be {', '.join(KINDS)} or a readable .npz file, got {path} ({reason})."
        ) from None
    counts = {"samples": len(inputs.samples), "train": len(inputs.dataset.train_split)}
    if heldout := len(inputs.dataset.test_split):
        counts["heldout"] = heldout
    for name, count in counts.items():
        if name not in arrays:
            raise ValueError(f"features must hold {', '.join(counts)}, got {list(arrays)}.")
        rows = arrays[name]
        if rows.ndim != 2 or len(rows) != count or rows.dtype.kind != "f":
            raise ValueError(
                f"features must hold {count} rows of floats in {name}, got {rows.dtype} "
                f"{rows.shape}."
            )
        if rows.shape[1] != arrays["samples"].shape[1]:
            raise ValueError(
                f"features must have as many columns in {name} as in samples, got {rows.shape[1]} "
                f"and {arrays['samples'].shape[1]}."
            )
        check_finite(features=rows)
    samples, train, heldout = (
        np.asarray(arrays[name], np.float32) if name in counts else None
        for name in ("samples", "train", "heldout")
    )
    return Representation(path.name, samples, train, heldout, None, True)
