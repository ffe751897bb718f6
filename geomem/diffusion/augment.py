"""The geometric part of EDM's non-leaking augmentation (Karras et al. 2022, app. F.2, table 6).

Each training image is transformed, and nine labels tell the network how. The labels are zero for
unchanged images and during sampling, so that the transformations do not leak into the samples.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Key

__all__ = ["LABELS", "augment"]

LABELS = 9
_SCALE = 2**0.2  # one standard deviation of the isotropic and anisotropic scaling factors
_TRANSLATE = 1 / 8  # one standard deviation of the translation, as a fraction of the image's side


def augment(
    key: Key[Array, ""],
    image: Float[Array, "height width channels"],
    probability: float = 0.12,
) -> tuple[Float[Array, "height width channels"], Float32[Array, " labels"]]:
    """Transform one image at random: flips, scale, rotation, anisotropic scale, translation.

    Each is applied independently with `probability`, except the x-flip, which always has
    probability 1/2. Works under `jit` and `vmap`. Resampling uses Keys' cubic kernel on the
    mirrored image; EDM's code resamples at twice the resolution with a wavelet. An image that is
    unchanged or only flipped keeps its pixels exactly.

    Args:
      key: a typed PRNG key.
      image: the image.
      probability: probability of each transformation.

    Returns:
      (image, labels). The labels are: x-flip and y-flip (0 or 1); a, where 2^(0.2 a) is the scale;
      cos - 1 and sin of the rotation; b cos and b sin of the axis that is stretched by 2^(0.2 b)
      (as published, so (b, axis) and (-b, axis + pi) share a label); the translation along x and y
      in eighths of the image's side.
    """
    key_gate, key_flip, key_angle, key_size = jax.random.split(key, 4)
    gate = jax.random.uniform(key_gate, (5,)) < probability
    x_flip, y_flip = jax.random.bernoulli(key_flip, shape=(2,)) & jnp.array([True, gate[0]])
    rotation, axis = jax.random.uniform(key_angle, (2,), minval=-math.pi, maxval=math.pi)
    rotation = jnp.where(gate[2], rotation, 0)
    scale, stretch, *shift = jax.random.normal(key_size, (4,)) * gate[jnp.array([1, 3, 4, 4])]
    shift = jnp.stack(shift)

    image = jnp.where(x_flip, image[:, ::-1], image)
    image = jnp.where(y_flip, image[::-1], image)
    # The inverse map: from an output pixel's offset (x, y) from the center to the input pixel's.
    matrix = _SCALE**-scale * functools.reduce(
        functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST),
        [
            _rotation(axis),
            jnp.diag(jnp.stack([_SCALE**-stretch, _SCALE**stretch])),
            _rotation(-axis - rotation),
        ],
    )
    resampled = _resample(image, matrix, shift * _TRANSLATE * jnp.array(image.shape[1::-1]))
    image = jnp.where(gate[1:].any(), resampled, image)
    labels = [x_flip, y_flip, scale, jnp.cos(rotation) - 1, jnp.sin(rotation)]
    labels += [stretch * jnp.cos(axis), stretch * jnp.sin(axis), *shift]
    return image, jnp.stack([jnp.asarray(label, jnp.float32) for label in labels])


def _rotation(angle):
    c, s = jnp.cos(angle), jnp.sin(angle)
    return jnp.array([[c, -s], [s, c]])


def _resample(image, matrix, shift):
    """Return image(center + matrix (p - center - shift)) at each pixel p, by cubic convolution."""
    height, width, _ = image.shape
    center = jnp.array([width - 1, height - 1]) / 2
    y, x = jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij")
    offset = jnp.stack([x.ravel(), y.ravel()], -1) - center - shift  # [HW, 2]
    source = center + jnp.einsum("ij,pj->pi", matrix, offset, precision=jax.lax.Precision.HIGHEST)
    columns, column_weights = _taps(source[:, 0], width)
    rows, row_weights = _taps(source[:, 1], height)
    patches = image[rows[:, :, None], columns[:, None, :]]  # [HW, 4, 4, C]
    weights = row_weights[:, :, None, None] * column_weights[:, None, :, None]
    return (patches * weights).sum((1, 2)).reshape(image.shape)


def _taps(position, side):
    """The four pixels around each position, mirrored at the border, and Keys' (1981) weights."""
    first = jnp.floor(position) - 1
    t = jnp.abs(position[:, None] - first[:, None] - jnp.arange(4))
    near, far = (1.5 * t - 2.5) * t**2 + 1, ((-0.5 * t + 2.5) * t - 4) * t + 2
    period = 2 * (side - 1)
    index = jnp.mod(first[:, None].astype(jnp.int32) + jnp.arange(4), period)
    return jnp.minimum(index, period - index), jnp.where(t <= 1, near, far)
