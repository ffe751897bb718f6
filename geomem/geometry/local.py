"""Local denoisers: they compare patches, not whole images, and so mix many images.

For a pixel p, let patch(x) be the side x side patch of x around p, zero outside the image. The
local score (LS) weights the training images x_i by

    w_i = softmax_i(-||patch(y) - patch(x_i)||^2 / (2 sigma^2))

and returns the weighted mean of their pixels at p. The equivariant local score (ELS) does the same
over the training patches at all positions. These are the denoisers of a network with limited
receptive fields, without and with sharing of weights (Kamb and Ganguli, "An analytic theory of
creativity in convolutional diffusion models"). `plain_ls` and `plain_els` are the definitions; `ls`
and `els` compute the same values within 1e-5 and visit the images in chunks, wherever they are.
`pca` compares patches by their leading principal components, and `wiener` is the linear denoiser of
a stationary Gaussian.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.tree_util import Partial
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Key, Shaped

from geomem.geometry import _patch_passes
from geomem.geometry.posterior import check_sigma
from geomem.points.exact import check_image_shape
from geomem.points.visit import PlacedPoints, Points, as_points

__all__ = ["calibrate_patch", "els", "ls", "pca", "plain_els", "plain_ls", "wiener"]

Denoiser = Callable[[jax.Array, jax.Array], jax.Array]
Images = Shaped[ArrayLike, "images height width channels"] | PlacedPoints
Patch = int | Mapping[float, int]  # the side, or the side at some noise levels

_BLOCK = 1024  # images at once when a denoiser is fitted
_ELS = {
    border: functools.partial(_patch_passes.all_positions, same_border=border == "same")
    for border in ("zero", "same")
}


def plain_ls(
    y: Float[ArrayLike, "queries height width channels"],
    images: Float[ArrayLike, "images height width channels"],
    sigma: float,
    patch: int,
) -> Float[Array, "queries height width channels"]:
    """Return the LS estimate by definition: weights of images at each pixel, [Q, H, W, C]."""
    y, images = jnp.asarray(y), jnp.asarray(images)
    ours, theirs = (_patch_passes.patches(a, patch) for a in (y, images))
    squared_distances = jnp.sum((ours[:, None] - theirs) ** 2, axis=4)  # [Q, N, H, W]
    weights = jax.nn.softmax(-squared_distances / (2 * sigma**2), axis=1)
    return jnp.einsum("qnhw,nhwc->qhwc", weights, images, precision=lax.Precision.HIGHEST)


def plain_els(
    y: Float[ArrayLike, "queries height width channels"],
    images: Float[ArrayLike, "images height width channels"],
    sigma: float,
    patch: int,
) -> Float[Array, "queries height width channels"]:
    """Return the ELS estimate by definition: weights of all patches at each pixel, [Q, H, W, C]."""
    y, images = jnp.asarray(y), jnp.asarray(images)
    ours, theirs = (_patch_passes.patches(a, patch) for a in (y, images))
    theirs, centers = (a.reshape(-1, a.shape[3]) for a in (theirs, images))
    squared_distances = jnp.sum((ours[..., None, :] - theirs) ** 2, axis=4)  # [Q, H, W, N H W]
    weights = jax.nn.softmax(-squared_distances / (2 * sigma**2), axis=3)
    return jnp.matmul(weights, centers, precision=lax.Precision.HIGHEST)


def ls(images: Images, patch: Patch) -> Denoiser:
    """Return the local score (LS) denoiser of `images`: patches at the same position.

    If patches cover the image from every pixel (side >= 2 max(H, W) - 1), it is the empirical
    denoiser.

    Args:
      images: [N, H, W, C], floats or uint8 as stored, or placed points.
      patch: the odd side of the patches in pixels; or {sigma: side}, of which the entry nearest in
        log(sigma) holds.

    Returns:
      A function of (x [B, H, W, C], sigma scalar or [B]) that returns [B, H, W, C], within 1e-5 of
      the exact mean for images in [-1, 1] and patches of up to about 1,000 values.

    Raises:
      ValueError: a side that is not odd and positive; when called, images of other shapes.
    """
    return _denoiser(images, _patch_passes.same_position, patch, everywhere=False)


def els(images: Images, patch: Patch, *, border: Literal["zero", "same"] = "zero") -> Denoiser:
    """Return the equivariant local score (ELS) denoiser of `images`: patches at all positions.

    Args:
      images, patch: as in `ls`.
      border: "zero" compares all patches, padded with zeros, as a convolution sees them; "same"
        only those that are cut off equally by the image's border.

    Returns:
      As in `ls`. Time grows with the product of both numbers of pixels.

    Raises:
      ValueError: as in `ls`, or an unknown border.
    """
    if border not in ("zero", "same"):
        raise ValueError(f"border must be 'zero' or 'same', got {border!r}.")
    return _denoiser(images, _ELS[border], patch, everywhere=True)


def pca(
    images: Images, patch: int, rank: int, *, shape: tuple[int, int, int] | None = None
) -> Denoiser:
    """Return the LS denoiser whose patch distances use only leading principal components.

    At each position, patches are compared by their coordinates along the `rank` leading
    eigenvectors of the covariance of the training patches there. The eigenvectors take
    H W (side side C)^2 values of memory while they are computed.

    Args:
      images, patch: as in `ls`, with one side for all noise levels.
      rank: number of components; with all side * side * C of them, this is `ls`.
      shape: (H, W, C), needed for placed points.

    Raises:
      ValueError: as in `ls`, or a rank that is not 1 to side * side * C.
    """
    shape = _image_shape(images, shape)
    ((_, side),) = _check_patch(patch)
    if not 1 <= rank <= side**2 * shape[2]:
        raise ValueError(f"rank must be 1 to {side**2 * shape[2]}, got {rank}.")
    covariance = functools.partial(_patch_covariance, side=side)
    _, vectors = jnp.linalg.eigh(_second_moments(images, shape, covariance)[1])
    basis = vectors[..., ::-1][..., :rank]
    return _bind(_pca_function(side), images, basis)


def wiener(images: Images, *, shape: tuple[int, int, int] | None = None) -> Denoiser:
    """Return the Wiener filter: the denoiser of a stationary Gaussian fitted to `images`.

    It has the mean color of the images and their mean power spectrum, with periodic borders. So it
    is the Gaussian denoiser of the images together with all their cyclic shifts.

    Args:
      images: as in `ls`.
      shape: (H, W, C), needed for placed points.

    Raises:
      ValueError: as in `ls`.
    """
    mean, spectrum = _second_moments(images, _image_shape(images, shape), _spectrum)
    mean = mean.mean(axis=(0, 1))
    power, colors = jnp.linalg.eigh(spectrum)
    return Partial(_wiener, mean, jnp.maximum(power, 0), colors)


def calibrate_patch(
    key: Key[Array, ""],
    make: Callable[[int], Denoiser],
    images: Float[ArrayLike, "images height width channels"],
    sigmas: Sequence[float],
    sides: Sequence[int],
    *,
    target: Denoiser | None = None,
) -> dict[float, int]:
    """Return the patch side with the smallest error at each noise level, {sigma: side}.

    Args:
      key: PRNG key of the noise.
      make: returns the denoiser with a given side, for example `lambda side: els(train, side)`.
      images: held-out images [M, H, W, C] in [-1, 1].
      sigmas: noise levels.
      sides: the sides to choose from.
      target: a denoiser, such as a trained network, whose output the estimates are compared with;
        default: they are compared with the clean images.
    """
    images, denoisers, table = jnp.asarray(images), {side: make(side) for side in sides}, {}
    for level, sigma in zip(jax.random.split(key, len(sigmas)), map(float, sigmas), strict=True):
        noised = images + sigma * jax.random.normal(level, images.shape)
        expected = images if target is None else target(noised, jnp.full(len(images), sigma))
        errors = {
            side: float(jnp.mean((denoiser(noised, jnp.full(len(images), sigma)) - expected) ** 2))
            for side, denoiser in denoisers.items()
        }
        table[sigma] = min(errors, key=errors.__getitem__)
    return table


def _denoiser(images, make_pass, patch, everywhere):
    if not isinstance(images, PlacedPoints):
        _image_shape(images, None)
    return _bind(_function(make_pass, _check_patch(patch), everywhere), images)


def _bind(function, images, *arrays):
    """The denoiser function(images, *arrays, x, sigma); a pytree unless images are a stream."""
    if isinstance(images, PlacedPoints) and not isinstance(images, Points):
        return functools.partial(function, images, *arrays)
    placed = isinstance(images, Points)
    return Partial(function, images if placed else jnp.asarray(images), *arrays)


@functools.cache  # so that denoisers of the same kind share compiled programs
def _function(make_pass, table, everywhere):
    """The function (images, x, sigma) of LS or ELS with the sides of `table`."""
    levels, sides = (np.array(column) for column in zip(*table, strict=True))

    def denoise(images, x, sigma):
        sigma = jnp.broadcast_to(jnp.asarray(check_sigma(sigma), jnp.float32), (len(x),))

        def with_side(side):
            return _run(make_pass(x.shape[1:], int(side)), images, x, sigma, everywhere)

        if len(set(sides)) == 1:
            return with_side(sides[0])
        apart = jnp.abs(jnp.log(sigma)[:, None] - np.log(levels))
        chosen, result = jnp.asarray(sides)[apart.argmin(axis=1)], jnp.zeros(x.shape)
        for side in sorted(set(sides)):
            here = chosen == side
            if isinstance(here, Tracer):
                part = lax.cond(
                    here.any(), lambda side=side: with_side(side), lambda: jnp.zeros(x.shape)
                )
            elif here.any():
                part = with_side(side)
            else:
                continue
            result = jnp.where(here[:, None, None, None], part, result)
        return result

    return denoise


@functools.cache
def _pca_function(side):
    def denoise(images, basis, x, sigma):
        sigma = jnp.broadcast_to(jnp.asarray(check_sigma(sigma), jnp.float32), (len(x),))
        passed = _patch_passes.same_subspace(x.shape[1:], side)
        return _run(passed, images, x, sigma, False, basis)

    return denoise


def _run(search, images, x, sigma, everywhere, context=None):
    """The result of a pass over the images, [B, H, W, C]."""
    placed = as_points(images)
    shape = (
        np.shape(images) if not isinstance(images, PlacedPoints) else (len(placed), *x.shape[1:])
    )
    check_image_shape(x, shape, "x", "the images")
    if math.prod(x.shape[1:]) != placed.shape[1]:
        raise ValueError(f"x must be images of {placed.shape[1]} values, got shape {x.shape}.")
    chunk = _patch_passes.images_at_once(len(x), x.shape[1:], everywhere)
    queries = jnp.asarray(x, jnp.float32).reshape(len(x), -1), sigma
    return placed.run(search, queries, context, chunk=chunk).reshape(x.shape)


def _check_patch(patch):
    """The (noise level, side) pairs of a side, or of a table {sigma: side}."""
    table = tuple(sorted(patch.items())) if isinstance(patch, Mapping) else ((1.0, patch),)
    for sigma, side in table:
        check_sigma(sigma, "the noise levels of patch")
        if not isinstance(side, int | np.integer) or side < 1 or side % 2 == 0:
            raise ValueError(f"patch must be odd and positive, got {side}.")
    if not table:
        raise ValueError("patch must be a side or a table {sigma: side}, got an empty table.")
    return tuple((float(sigma), int(side)) for sigma, side in table)


def _image_shape(images, shape) -> tuple[int, int, int]:
    """(H, W, C) of images [N, H, W, C], or `shape` for placed points."""
    if isinstance(images, PlacedPoints):
        if shape is None or math.prod(shape) != images.shape[1]:
            raise ValueError(f"shape must be (height, width, channels) of the points, got {shape}.")
        return shape
    if np.ndim(images) != 4 or np.size(images) == 0:
        raise ValueError(f"images must be [N, H, W, C], got shape {np.shape(images)}.")
    height, width, channels = np.shape(images)[1:]
    return height, width, channels


def _second_moments(images, shape, moment):
    """The mean image, and the mean of `moment`(images less the mean image), block by block."""
    placed = as_points(images)
    starts = range(0, len(placed), _BLOCK)

    def blocks():
        for start in starts:
            rows = placed.take(jnp.arange(start, min(start + _BLOCK, len(placed))))
            yield rows.reshape(-1, *shape)

    mean = jnp.asarray(sum(block.sum(axis=0) for block in blocks())) / len(placed)
    return mean, sum(moment(block, mean) for block in blocks()) / len(placed)


def _patch_covariance(images, mean, side):
    """Sums over images of the outer product of each patch with itself, [H, W, K, K]."""
    values = _patch_passes.patches(images - mean, side)
    return jnp.einsum("nhwk,nhwl->hwkl", values, values, precision=lax.Precision.HIGHEST)


def _spectrum(images, mean):
    """Sums over images of the power spectrum between channels, [H, W, C, C]."""
    frequencies = jnp.fft.fft2(images - mean.mean(axis=(0, 1)), axes=(1, 2), norm="ortho")
    return jnp.einsum(
        "nhwc,nhwd->hwcd", frequencies, frequencies.conj(), precision=lax.Precision.HIGHEST
    )


def _wiener(mean, power, colors, x, sigma):
    variance = jnp.broadcast_to(jnp.asarray(check_sigma(sigma), jnp.float32), (len(x),)) ** 2
    frequencies = jnp.fft.fft2(x - mean, axes=(1, 2), norm="ortho")
    precision = lax.Precision.HIGHEST
    coordinates = jnp.einsum("hwdc,nhwd->nhwc", colors.conj(), frequencies, precision=precision)
    shrunk = coordinates * (power / (power + variance[:, None, None, None]))
    frequencies = jnp.einsum("hwdc,nhwc->nhwd", colors, shrunk, precision=precision)
    return mean + jnp.fft.ifft2(frequencies, axes=(1, 2), norm="ortho").real
