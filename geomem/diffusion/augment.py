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

    In this order, each independently with `probability`, except the x-flip, which always has
    probability 1/2. A y-flip follows half of its draws, and half of the anisotropic scalings
    stretch along the x-axis, the others along a random axis. Works under `jit` and `vmap`.
    Resampling uses Keys' cubic kernel on the mirrored image; EDM's code resamples at twice the
    resolution with a wavelet. An image that is unchanged or only flipped keeps its pixels exactly.

    Args:
      key: a typed PRNG key.
      image: the image.
      probability: probability of each transformation.

    Returns:
      (image, labels). The labels are: x-flip and y-flip (0 or 1); a, where 2^(0.2 a) is the scale;
      cos - 1 and sin of the rotation; b cos and b sin of the axis that is stretched by 2^(0.2 b)
      (as published, so (b, axis) and (-b, axis + pi) share a label); the translation along x and y
      in eighths of the image's side. Both angles are counterclockwise as seen on the screen.
    """
    key_gate, key_flip, key_angle, key_size = jax.random.split(key, 4)
    gate = jax.random.uniform(key_gate, (6,)) < jnp.array([*[probability] * 5, 0.5])
    x_flip, y_flip = jax.random.bernoulli(key_flip, shape=(2,)) & jnp.stack([True, gate[0]])
    angles = jax.random.uniform(key_angle, (2,), minval=-math.pi, maxval=math.pi)
    rotation, axis = jnp.where(jnp.stack([gate[2], gate[5]]), angles, 0)
    active = jnp.stack([gate[1], gate[3], gate[4], gate[4]])
    scale, stretch, *shift = jnp.where(active, jax.random.normal(key_size, (4,)), 0)
    shift = jnp.stack(shift)

    image = jnp.where(x_flip, image[:, ::-1], image)
    image = jnp.where(y_flip, image[::-1], image)
    # The inverse map: from an output pixel's offset (x, y) from the center to the input pixel's.
    matrix = _SCALE**-scale * functools.reduce(
        functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST),
        [
            _rotation(rotation - axis),
            jnp.diag(jnp.stack([_SCALE**-stretch, _SCALE**stretch])),
            _rotation(axis),
        ],
    )
    resampled = _resample(image, matrix, shift * _TRANSLATE * jnp.array(image.shape[1::-1]))
    image = jnp.where(gate[1:5].any(), resampled, image)
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
    taps = _taps(source[:, 1], height), _taps(source[:, 0], width)
    pixels = jax.lax.platform_dependent(image, *taps, tpu=_multiply_taps, default=_gather_taps)
    return pixels.reshape(image.shape)


def _gather_taps(image, rows, columns):
    """Return the weighted sum of the 4x4 pixels around each position: [HW, C]."""
    patches = image[rows[0][:, :, None], columns[0][:, None, :]]  # [HW, 4, 4, C]
    weights = rows[1][:, :, None, None] * columns[1][:, None, :, None]
    return (patches * weights).sum((1, 2))


def _multiply_taps(image, rows, columns):
    """The same by products with dense matrices [HW, side]: a TPU gathers slowly."""
    rows, columns = (
        (jax.nn.one_hot(index, side) * weights[..., None]).sum(1)
        for (index, weights), side in zip((rows, columns), image.shape[:2], strict=True)
    )
    along = jnp.einsum("pc,rcd->prd", columns, image, precision=jax.lax.Precision.HIGHEST)
    return (rows[..., None] * along).sum(1)


def _taps(position, side):
    """The four pixels around each position, mirrored at the border, and Keys' (1981) weights."""
    first = jnp.floor(position) - 1
    t = jnp.abs(position[:, None] - first[:, None] - jnp.arange(4))
    near, far = (1.5 * t - 2.5) * t**2 + 1, ((-0.5 * t + 2.5) * t - 4) * t + 2
    period = 2 * (side - 1)
    index = jnp.mod(first[:, None].astype(jnp.int32) + jnp.arange(4), period)
    return jnp.minimum(index, period - index), jnp.where(t <= 1, near, far)
