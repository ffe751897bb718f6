"""Features of a network in an ONNX file, such as SSCD or DINOv2; needs onnxruntime."""

from __future__ import annotations

import functools
import importlib
import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from geomem.data import to_float
from geomem.metrics.features import Features

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "load"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_SIDE = 224  # of the input, if neither the file nor the user says it
_BATCH = 32


def load(
    path: pathlib.Path,
    *,
    side: int | None = None,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> Features:
    """Return the features of a network: its output, scaled to length 1.

    Images are enlarged or reduced to the network's input (cubic), and their RGB values in [0, 1]
    are normalized. The output is the first one of shape [N, d], or else the first token of the
    first one of shape [N, tokens, d].

    Args:
      path: the ONNX file.
      side: side of the input; default: what the file says, or 224.
      mean, std: of the normalization (x - mean) / std, for each channel.

    Raises:
      ValueError: onnxruntime is missing, or the file is not such a network.
    """
    try:
        onnxruntime = importlib.import_module("onnxruntime")
    except ImportError:
        raise ValueError(
            "embedding must be left out without onnxruntime: pip install 'geomem[onnx]'."
        ) from None
    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises errors of many types
        reason = str(error).partition("\n")[0][:200]
        raise ValueError(f"embedding must be an ONNX file, got {path} ({reason}).") from None
    (entry, *others), shapes = session.get_inputs(), [o.shape for o in session.get_outputs()]
    chosen = [i for axes in (2, 3) for i, shape in enumerate(shapes) if len(shape) == axes]
    first = len(entry.shape) == 4 and entry.shape[1] == 3
    if others or not chosen or len(entry.shape) != 4 or 3 not in (entry.shape[1], entry.shape[3]):
        raise ValueError(
            "embedding must map RGB images [N, 3, H, W] or [N, H, W, 3] to features [N, d], got "
            f"{[x.shape for x in session.get_inputs()]} to {shapes} in {path}."
        )
    fixed = entry.shape[2] if isinstance(entry.shape[2], int) else None
    if side and fixed and side != fixed:
        raise ValueError(f"embedding_size must be {fixed}, as in {path}, got {side}.")
    kind = np.float16 if "float16" in entry.type else np.float32
    prepare = functools.partial(_prepared, side=side or fixed or _SIDE, channels_first=first)
    constants = np.asarray(mean, np.float32), np.asarray(std, np.float32)

    size = entry.shape[0] if isinstance(entry.shape[0], int) else None

    def extract(images):
        images = np.asarray(images)
        # A file may fix the number of images; the last batch then repeats some.
        filled = np.resize(images, (size or len(images), *images.shape[1:]))
        inputs = np.asarray(prepare(to_float(filled), *constants), kind)
        output = session.run(None, {entry.name: inputs})[chosen[0]][: len(images)]
        output = np.asarray(output if output.ndim == 2 else output[:, 0], np.float32)
        return output / np.maximum(np.linalg.norm(output, axis=1, keepdims=True), 1e-12)

    return Features(path.name, extract, size or _BATCH)


@functools.partial(jax.jit, static_argnames=("side", "channels_first"))
def _prepared(images, mean, std, *, side, channels_first):
    count, _, _, channels = images.shape
    images = images if channels == 3 else images.mean(axis=3, keepdims=True).repeat(3, axis=3)
    images = jax.image.resize((images + 1) / 2, (count, side, side, 3), "cubic")
    images = (jnp.clip(images, 0, 1) - mean) / std
    return jnp.moveaxis(images, 3, 1) if channels_first else images
