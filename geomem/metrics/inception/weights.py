"""The published weights of the FID's Inception: found, or fetched on request, and converted.

They are those of the file pt_inception-2015-12-05-6726825d.pth, which geomem does not ship.
"""

from __future__ import annotations

import functools
import hashlib
import os
import pathlib
import urllib.request
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from geomem.metrics.inception.network import Inception
from geomem.metrics.inception.torch_file import load_tensors

__all__ = ["cache_path", "download", "find", "from_tensors", "load"]

_FILE = "pt_inception-2015-12-05-6726825d.pth"
_URL = f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{_FILE}"
_SHA256 = "6726825d"  # of the file, its first digits
_EPSILON = 1e-3  # of the batch normalization


def load(path: str | os.PathLike | None = None) -> dict:
    """The published weights, from a file that the user has.

    Args:
      path: a `.pth`, `.npz` or `.safetensors` file under the published names; default
        what `find` finds.

    Returns:
      The parameters of `Inception`.

    Raises:
      ValueError: no such file, or not this network.
    """
    path = pathlib.Path(path or find() or cache_path()).expanduser()
    if not path.is_file():
        raise ValueError(
            f"inception: no weights at {path}, wanted {_FILE} there or at GEOMEM_INCEPTION "
            "(geomem.metrics.inception.weights.download() fetches it)"
        )
    try:
        return from_tensors(load_tensors(path))
    except ValueError as error:
        raise ValueError(f"inception: {error}") from None


def find() -> pathlib.Path | None:
    """The file that GEOMEM_INCEPTION names, or else the cache's, if it is there."""
    if named := os.environ.get("GEOMEM_INCEPTION"):
        return pathlib.Path(named).expanduser()
    return cache_path() if cache_path().is_file() else None


def cache_path() -> pathlib.Path:
    """Where `download` puts the weights: below XDG_CACHE_HOME, or ~/.cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return pathlib.Path(cache).expanduser() / "geomem" / _FILE


def download(url: str = _URL) -> pathlib.Path:
    """Fetch the published weights (92 MB) to `cache_path()`; nothing else here uses the network.

    Raises:
      ValueError: the file's SHA-256 is not the published one's.
      OSError: it cannot be fetched or written.
    """
    path = cache_path()
    with urllib.request.urlopen(url) as response:
        content = response.read()
    digest = hashlib.sha256(content).hexdigest()
    if not digest.startswith(_SHA256):
        raise ValueError(f"inception: {url} has SHA-256 {digest[:8]}, wanted {_SHA256}")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".part")
    partial.write_bytes(content)
    return partial.replace(path)


def from_tensors(tensors: Mapping[str, np.ndarray]) -> dict:
    """The parameters of `Inception` from tensors in PyTorch's names and layout.

    Each batch normalization becomes part of its convolution: w gamma / sqrt(var + 1e-3), and
    beta - mean gamma / sqrt(var + 1e-3), in float64.

    Raises:
      ValueError: tensors missing, or of another shape (the first few named).
    """
    wanted = traverse_util.flatten_dict(_shapes()["params"])
    params, wrong = {}, []

    def tensor(path, shape):
        name = ".".join(path)
        found = tensors.get(name)
        if found is None or found.shape != shape:
            wrong.append(f"{name} is {'missing' if found is None else found.shape}, wanted {shape}")
            return np.ones(shape)
        return np.float64(found)

    for (*module, layer, leaf), value in wanted.items():
        if layer == "fc":
            params["fc", "kernel"] = tensor(("fc", "weight"), value.shape[::-1]).T
        elif leaf == "kernel":
            height, width, inputs, outputs = value.shape
            weight = tensor((*module, layer, "weight"), (outputs, inputs, height, width))
            scale, shift, mean, variance = (
                tensor((*module, "bn", name), (outputs,))
                for name in ("weight", "bias", "running_mean", "running_var")
            )
            scale = scale / np.sqrt(variance + _EPSILON)
            params[*module, layer, "kernel"] = weight.transpose(2, 3, 1, 0) * scale
            params[*module, layer, "bias"] = shift - mean * scale
    if wrong:
        more = f" (and {len(wrong) - 3} more)" if len(wrong) > 3 else ""
        raise ValueError(f"not the network of 2015-12-05: {'; '.join(wrong[:3])}{more}")
    return traverse_util.unflatten_dict({k: np.float32(v) for k, v in params.items()})


@functools.cache
def _shapes():
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.uint8)
    return jax.eval_shape(Inception().init, jax.random.key(0), images)
