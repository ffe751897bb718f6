"""The Inception network of FID in Flax: Inception-v3 of the TensorFlow graph of 2015-12-05.

It differs from torchvision's: average pools exclude the padding, the last block uses a max pool,
images are resized as in TensorFlow 1, and the last layer has 1,008 classes. `weights` loads the
published weights.

Source: Szegedy et al. 2016 (arXiv 1512.00567); Heusel et al. 2017 (arXiv 1706.08500).
"""

import functools
from collections.abc import Mapping
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, UInt8

from geomem.diffusion.sampler import to_uint8
from geomem.metrics.features import Features

__all__ = ["NAME", "TAPS", "Inception", "features"]

NAME = "inception-2015"
TAPS = ("feat_64", "feat_192", "feat_768", "feat_2048", "feat_logits_unbiased")
_SIDE = 299


class _Unit(nn.Module):
    """Convolution (with folded batch normalization) and ReLU; stride 2 uses no padding."""

    channels: int
    kernel: tuple[int, int]
    stride: int = 1
    padding: str = "SAME"

    @nn.compact
    def __call__(self, x):
        convolution = nn.Conv(
            self.channels,
            self.kernel,
            self.stride,
            self.padding if self.stride == 1 else "VALID",
            precision=jax.lax.Precision.HIGHEST,
            name="conv",
        )
        return nn.relu(convolution(x))


class Inception(nn.Module):
    """Maps uint8 images to features at five depths."""

    @nn.compact
    def __call__(
        self, images: UInt8[Array, "batch height width 3"]
    ) -> dict[str, Float[Array, "batch features"]]:
        """Return the features at each tap.

        Returns:
          Features by the names in TAPS: feat_64 and feat_192 after the two early max pools,
          feat_768 after Mixed_6e, feat_2048 (used by FID), and feat_logits_unbiased with the 1,008
          outputs of the last layer without its bias. The first four are means over positions.
        """
        taps = {}
        x = (_resize(images.astype(jnp.float32)) - 128) / 128
        x = _Unit(32, (3, 3), 2, name="Conv2d_1a_3x3")(x)
        x = _Unit(32, (3, 3), padding="VALID", name="Conv2d_2a_3x3")(x)
        x = _Unit(64, (3, 3), name="Conv2d_2b_3x3")(x)
        x = _max_pool(x, 2)
        taps["feat_64"] = x.mean(axis=(1, 2))
        x = _Unit(80, (1, 1), name="Conv2d_3b_1x1")(x)
        x = _Unit(192, (3, 3), padding="VALID", name="Conv2d_4a_3x3")(x)
        x = _max_pool(x, 2)
        taps["feat_192"] = x.mean(axis=(1, 2))
        for name, branches in _BLOCKS.items():
            x = _Mixed(branches, name=name)(x)
            if name == "Mixed_6e":
                taps["feat_768"] = x.mean(axis=(1, 2))
        taps["feat_2048"] = x.mean(axis=(1, 2))
        last = nn.Dense(1008, use_bias=False, precision=jax.lax.Precision.HIGHEST, name="fc")
        taps["feat_logits_unbiased"] = last(taps["feat_2048"])
        return taps


class _Mixed(nn.Module):
    """Parallel branches. A branch is a chain of pools, units, and tuples of parallel units.

    A unit is (name, channels, kernel height, kernel width), followed by its stride if that is not
    1.
    """

    branches: tuple

    @nn.compact
    def __call__(self, x):
        def step(x, layer: Any) -> jax.Array:
            if isinstance(layer, tuple):
                if not isinstance(layer[0], str):
                    return jnp.concatenate([step(x, unit) for unit in layer], axis=-1)
                name, channels, height, width, *stride = layer
                return _Unit(channels, (height, width), *stride, name=name)(x)
            return layer(x)

        chains = [functools.reduce(step, branch, x) for branch in self.branches]
        return jnp.concatenate(chains, axis=-1)


def _max_pool(x, stride):
    return nn.max_pool(x, (3, 3), (stride, stride), "SAME" if stride == 1 else "VALID")


def _mean_pool(x):
    return nn.avg_pool(x, (3, 3), (1, 1), "SAME", count_include_pad=False)


_shrink = functools.partial(_max_pool, stride=2)


def _chain(name, *layers):
    """Units NAME_1, NAME_2, ... of (channels, kernel height, kernel width) and maybe a stride."""
    return tuple((f"{name}_{i}", *layer) for i, layer in enumerate(layers, 1))


def _block_a(pooled):
    return (
        (("branch1x1", 64, 1, 1),),
        _chain("branch5x5", (48, 1, 1), (64, 5, 5)),
        _chain("branch3x3dbl", (64, 1, 1), (96, 3, 3), (96, 3, 3)),
        (_mean_pool, ("branch_pool", pooled, 1, 1)),
    )


_BLOCK_B = (
    (("branch3x3", 384, 3, 3, 2),),
    _chain("branch3x3dbl", (64, 1, 1), (96, 3, 3), (96, 3, 3, 2)),
    (_shrink,),
)


def _block_c(width):
    first, row, column = (width, 1, 1), (width, 1, 7), (width, 7, 1)
    return (
        (("branch1x1", 192, 1, 1),),
        _chain("branch7x7", first, row, (192, 7, 1)),
        _chain("branch7x7dbl", first, column, row, column, (192, 1, 7)),
        (_mean_pool, ("branch_pool", 192, 1, 1)),
    )


_BLOCK_D = (
    _chain("branch3x3", (192, 1, 1), (320, 3, 3, 2)),
    _chain("branch7x7x3", (192, 1, 1), (192, 1, 7), (192, 7, 1), (192, 3, 3, 2)),
    (_shrink,),
)


def _block_e(pool):
    def parallel(name):
        return (f"{name}a", 384, 1, 3), (f"{name}b", 384, 3, 1)

    double = _chain("branch3x3dbl", (448, 1, 1), (384, 3, 3))
    return (
        (("branch1x1", 320, 1, 1),),
        (*_chain("branch3x3", (384, 1, 1)), parallel("branch3x3_2")),
        (*double, parallel("branch3x3dbl_3")),
        (pool, ("branch_pool", 192, 1, 1)),
    )


_BLOCKS = {
    "Mixed_5b": _block_a(32),
    "Mixed_5c": _block_a(64),
    "Mixed_5d": _block_a(64),
    "Mixed_6a": _BLOCK_B,
    "Mixed_6b": _block_c(128),
    "Mixed_6c": _block_c(160),
    "Mixed_6d": _block_c(160),
    "Mixed_6e": _block_c(192),
    "Mixed_7a": _BLOCK_D,
    "Mixed_7b": _block_e(_mean_pool),
    "Mixed_7c": _block_e(functools.partial(_max_pool, stride=1)),
}


def _resize(images):
    """Resize to 299 x 299 bilinearly as in TensorFlow 1: output i is input i (size / 299)."""
    for axis in (2, 1):
        size = images.shape[axis]
        position = np.arange(_SIDE, dtype=np.float32) * np.float32(size / _SIDE)
        low = np.int32(position)
        shape = [1] * images.ndim
        shape[axis] = _SIDE
        before = jnp.take(images, low, axis)
        after = jnp.take(images, np.minimum(low + 1, size - 1), axis)
        images = before + (after - before) * (position - low).reshape(shape)
    return images


def features(params: Mapping, tap: str = "feat_2048", batch: int = 128) -> Features:
    """Return Inception features as a feature space, computed on all local devices.

    Args:
      params: as returned by `weights.load`.
      tap: one of TAPS; only the default gives FID.
      batch: images per call, rounded up to a multiple of the number of devices.

    Returns:
      Features of images: uint8, or float32 in [-1, 1] (converted to uint8 like EDM's samples). One
      channel is repeated three times.

    Raises:
      ValueError: if `tap` is unknown.
    """
    if tap not in TAPS:
        raise ValueError(f"tap must be one of {', '.join(TAPS)}, got {tap}.")
    devices = jax.local_devices()
    batch = -(-batch // len(devices)) * len(devices)
    mesh = jax.sharding.Mesh(np.array(devices), ("data",))
    split = NamedSharding(mesh, PartitionSpec("data"))
    params = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))

    # XLA removes all computation behind the chosen tap.
    @jax.jit
    def apply(params, images):
        outputs = Inception().apply({"params": params}, images)
        return cast(dict[str, jax.Array], outputs)[tap]

    def extract(images):
        images = np.asarray(images)
        images = images if images.dtype == np.uint8 else to_uint8(images)
        images = np.repeat(images, 3, axis=-1) if images.shape[-1] == 1 else images
        padded = np.resize(images, (batch, *images.shape[1:]))  # the same shape compiles only once
        return np.asarray(apply(params, jax.device_put(padded, split)))[: len(images)]

    return Features(NAME if tap == "feat_2048" else f"{NAME} {tap}", extract, batch)
