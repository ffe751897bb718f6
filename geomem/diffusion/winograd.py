"""3x3 convolutions on CPUs with a quarter of the multiplications: Winograd's F(4x4, 3x3).

In one dimension, computing 4 outputs of a filter g with 3 taps is the transpose of a product of two
polynomials, which 6 values determine. From 6 inputs d,

    y = A [(G g) * (B d)] ,

with the matrices of `toom_cook` and an elementwise product. In two dimensions, the matrices act on
the rows and columns of tiles of 6x6 inputs. The elementwise products, summed over the channels, are
36 matrix products.

Source: Lavin and Gray 2016. They evaluate at 0, 1, -1, 2, -2 and infinity. With 3/4 and 3/2 instead
of 1 and 2, the rounding error is half as large: two to three times that of a plain convolution.
"""

import contextlib
import contextvars
import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.xla_metadata import set_xla_metadata
from jaxtyping import Array, Float

__all__ = ["convolve", "disabled", "is_faster", "outlined", "toom_cook"]

_TILE = 4  # outputs of a tile, in each dimension
_POINTS = (0, 3 / 4, -3 / 4, 3 / 2, -3 / 2)


def toom_cook(points: tuple[float, ...], taps: int = 3) -> tuple[np.ndarray, ...]:
    """Return A [M, N], G [N, taps] and B [N, N], N = M + taps - 1, for N - 1 points and infinity.

    >>> A, G, B = toom_cook((0, 1, -1))
    >>> float((A @ ((G @ [1, 2, 3]) * (B @ [4, 5, 6, 7])))[0])  # 1 * 4 + 2 * 5 + 3 * 6
    32.0
    """
    values = np.asarray(points, float)
    size = len(values) + 1
    outputs = size - taps + 1
    a, g, b = np.zeros((outputs, size)), np.zeros((size, taps)), np.zeros((size, size))
    a[:, :-1] = values ** np.arange(outputs)[:, None]
    a[-1, -1] = g[-1, -1] = 1
    for i, point in enumerate(values):
        others = np.delete(values, i)
        g[i] = point ** np.arange(taps) / np.prod(point - others)
        b[i, :-1] = np.poly(others)[::-1]
    b[-1] = np.poly(values)[::-1]
    return a, g, b


_A, _G, _B = toom_cook(_POINTS)


def outlined(function):
    """Make XLA's CPU compiler compile `function` on its own: it stores what it returns, once.

    Otherwise, the compiler may compute its results again for each use.
    """
    compiled = jax.jit(function)

    @functools.wraps(function)
    def call(*arguments):
        with set_xla_metadata(inlineable="false"):
            return compiled(*arguments)

    return call


_disabled = contextvars.ContextVar("disabled", default=False)


@contextlib.contextmanager
def disabled() -> Iterator[None]:
    """Trace networks without this algorithm, so that XLA counts the operations of the model."""
    token = _disabled.set(True)
    try:
        yield
    finally:
        _disabled.reset(token)


def is_faster(x: Array, kernel: Array) -> bool:
    """Whether `convolve` takes these arrays, and is faster on a CPU than XLA's convolution."""
    batch, height, width, _ = x.shape
    fits = kernel.shape[:2] == (3, 3) and height % _TILE == width % _TILE == 0
    if _disabled.get() or not fits or x.dtype != jnp.float32:
        return False
    # Measured. The kernel is transformed for each batch, so there must be many tiles.
    channels, tiles = min(kernel.shape[2:]), batch * height * width // _TILE**2
    return channels >= 32 and tiles >= 64 and channels * tiles >= 4096


def convolve(
    x: Float[Array, "batch height width channels"],
    kernel: Float[Array, "3 3 channels outputs"],
    precision: jax.lax.Precision,
) -> Float[Array, "batch height width outputs"]:
    """Convolve with stride 1 and zero padding that keeps the size; sides are multiples of 4.

    For the backward pass, XLA keeps the transformed tiles (2.25 times x) and kernel.
    """
    # Other devices' programs share the trace; for them, only x and the kernel are kept.
    run = jax.checkpoint(functools.partial(_convolve, precision=precision), prevent_cse=False)
    return run(x, kernel)


def _convolve(x, kernel, precision):
    tiles = _columns(_rows(x))
    product = jnp.einsum("jinhwc,jicd->jinhwd", tiles, _kernel(kernel), precision=precision)
    return _output_rows(_output_columns(product))


@outlined
def _rows(x):
    return _combine(_B, _windows(x, 1))  # [I, B, H/4, W, C]


@outlined
def _columns(x):
    return _combine(_B, _windows(x, 3))  # [J, I, B, H/4, W/4, C]


@outlined
def _kernel(kernel):
    return _combine(_G, _unstack(_combine(_G, _unstack(kernel, 0)), 1))  # [J, I, C, D]


@outlined
def _output_columns(products):
    return _combine(_A, _unstack(products, 0), 4)  # [I, B, H/4, W/4, 4, D]


@outlined
def _output_rows(x):
    y = _combine(_A, _unstack(x, 0), 2)  # [B, H/4, 4, W/4, 4, D]
    batch, height, _, width, _, channels = y.shape
    return y.reshape(batch, _TILE * height, _TILE * width, channels)


def _combine(matrix, parts, axis=0):
    """Return the products of the matrix's rows with the list of parts, stacked along an axis."""
    rows = ([(float(c), part) for c, part in zip(row, parts, strict=True) if c] for row in matrix)
    return jnp.stack([sum(part if c == 1 else c * part for c, part in row) for row in rows], axis)


def _windows(x, axis):
    """Return the 6 inputs of each tile of 4 outputs: the axis has one entry per tile."""
    *before, size = x.shape[: axis + 1]
    tiled = x.reshape(*before, size // _TILE, _TILE, *x.shape[axis + 1 :])
    parts = _unstack(tiled, axis + 1)
    return [_shift(parts[-1], 1, axis), *parts, _shift(parts[0], -1, axis)]


def _shift(x, by, axis):
    """Shift along an axis, and fill with zeros."""
    padding = [(0, 0, 0)] * x.ndim
    padding[axis] = (by, -by, 0)
    return jax.lax.pad(x, jnp.zeros((), x.dtype), padding)


def _unstack(x, axis):
    # Not by indexing: the gradient of `split` is a concatenation, that of indices a sum.
    parts = jax.lax.split(x, (1,) * x.shape[axis], axis)
    return [jax.lax.squeeze(part, (axis,)) for part in parts]
