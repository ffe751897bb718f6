"""Find, download and convert the published weights of FID's Inception network.

geomem does not include them. Their file is pt_inception-2015-12-05-6726825d.pth.
"""

import functools
import hashlib
import os
import pathlib
import urllib.request
from collections.abc import Mapping
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from geomem import paths
from geomem.metrics.inception.network import Inception
from geomem.metrics.inception.torch_file import load_tensors

__all__ = ["cache_path", "download", "find", "from_tensors", "load"]

_FILE = "pt_inception-2015-12-05-6726825d.pth"
_URL = f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{_FILE}"
_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
_SIZE, _SECONDS = 2**28, 60  # limits of the download: bytes, and seconds without an answer
_EPSILON = 1e-3  # of the batch normalization


def load(path: str | os.PathLike | None = None) -> dict:
    """Load the published weights from a local file.

    Args:
      path: the published `.pth` file, which is checked against its SHA-256, or an `.npz` or
        `.safetensors` file with the published names; default: the file that `find` returns.

    Returns:
      The parameters of `Inception`.

    Raises:
      ValueError: if there is no such file, or it holds another network or values that are not
        finite.
    """
    path = pathlib.Path(path or find() or cache_path()).expanduser()
    if not path.is_file():
        raise ValueError(
            f"inception must be a file of weights, got {path}, where there is none. Call "
            "geomem.metrics.inception.weights.download(), or set GEOMEM_INCEPTION to the path of "
            f"{_FILE}."
        )
    if path.suffix not in (".npz", ".safetensors"):
        with path.open("rb") as file:
            _check(hashlib.file_digest(file, "sha256").hexdigest(), path)
    try:
        return from_tensors(load_tensors(path))
    except ValueError as error:
        raise ValueError(f"inception must be a file of weights, got {path}: {error}") from None


def find() -> pathlib.Path | None:
    """Return the path in GEOMEM_INCEPTION, else the file in the cache, else None."""
    if named := os.environ.get("GEOMEM_INCEPTION"):
        return pathlib.Path(named).expanduser()
    return cache_path() if cache_path().is_file() else None


def cache_path() -> pathlib.Path:
    """Return where `download` puts the weights: under XDG_CACHE_HOME, or ~/.cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return pathlib.Path(cache).expanduser() / "geomem" / _FILE


def download(url: str = _URL) -> pathlib.Path:
    """Download the published weights (92 MB) to `cache_path()`.

    No other function of this package uses the network.

    Raises:
      ValueError: if the SHA-256 differs from that of the published file.
      OSError: if the file cannot be downloaded or written.
    """
    path = cache_path()
    with urllib.request.urlopen(url, timeout=_SECONDS) as response:
        content = response.read(_SIZE)
    _check(hashlib.sha256(content).hexdigest(), url)
    path.parent.mkdir(parents=True, exist_ok=True)
    with paths.open_whole(path) as file:
        file.write(content)
    return path


def _check(digest, source):
    if digest != _SHA256:
        raise ValueError(
            f"inception must be the published file (SHA-256 {_SHA256[:8]}...) or an .npz or "
            f".safetensors file, got {source} (SHA-256 {digest[:8]}...)."
        )


def from_tensors(tensors: Mapping[str, np.ndarray]) -> dict:
    """Convert tensors with PyTorch's names and layout to the parameters of `Inception`.

    Each batch normalization is folded into its convolution in float64: the kernel becomes
    w gamma / sqrt(var + 1e-3) and the bias beta - mean gamma / sqrt(var + 1e-3).

    Raises:
      ValueError: if tensors are missing or have another shape; the message names the first three.
    """
    flat = traverse_util.flatten_dict(_shapes()["params"])
    expected = cast(dict[tuple[str, ...], jax.ShapeDtypeStruct], flat)
    params, wrong = {}, []

    def tensor(path, shape):
        name = ".".join(path)
        value = tensors.get(name)
        if value is None or value.shape != shape:
            wrong.append(
                f"{name} is missing"
                if value is None
                else f"{name} must have shape {shape}, got {value.shape}"
            )
            return np.ones(shape)
        if not jnp.issubdtype(value.dtype, jnp.floating) or not np.isfinite(value).all():
            wrong.append(f"{name} does not hold finite floats")
            return np.ones(shape)
        return np.asarray(value, np.float64)

    for (*module, layer, leaf), value in expected.items():
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
        raise ValueError(f"it must be the network of 2015-12-05: {'; '.join(wrong[:3])}{more}.")
    return traverse_util.unflatten_dict({k: np.float32(v) for k, v in params.items()})


@functools.cache
def _shapes():
    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.uint8)
    return jax.eval_shape(Inception().init, jax.random.key(0), images)
