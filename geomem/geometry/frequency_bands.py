"""Orthonormal coordinates for linear subspaces of image space.

The orthonormal coordinates of isotropic noise are themselves isotropic noise, of fewer dimensions.
So every function in `geomem.geometry` works on coordinates as it does on pixels.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

__all__ = ["Subspace", "fourier_band"]


class Subspace(NamedTuple):
    """A subspace of image space, the same in each channel.

    Attributes:
      basis: orthonormal columns.
    """

    basis: Float[Array, "height*width rank"]

    def coordinates(
        self, images: Float[ArrayLike, "images height width channels"]
    ) -> Float[Array, "images rank*channels"]:
        """Return the orthonormal coordinates of images."""
        images = jnp.asarray(images)
        pixels = images.reshape(len(images), -1, images.shape[-1])
        projected = jnp.einsum(
            "npc,pk->nkc", pixels, self.basis, precision=jax.lax.Precision.HIGHEST
        )
        return projected.reshape(len(images), -1)

    def images(
        self, coordinates: Float[ArrayLike, "images rank*channels"], shape: tuple[int, int, int]
    ) -> Float[Array, "images height width channels"]:
        """Return the images of shape (H, W, C) with these coordinates."""
        coordinates = jnp.asarray(coordinates)
        split = coordinates.reshape(len(coordinates), -1, shape[-1])
        pixels = jnp.einsum("nkc,pk->npc", split, self.basis, precision=jax.lax.Precision.HIGHEST)
        return pixels.reshape(-1, *shape)


def fourier_band(height: int, width: int, radius: float, band: str) -> Subspace:
    """Return the subspace of images whose discrete Fourier transform is zero outside a band.

    Args:
      height, width: image size.
      radius: in cycles per image; the low band holds (u, v) with u^2 + v^2 <= radius^2.
      band: "low", or "high" for all other frequencies.

    Returns:
      Subspace. For 32x32 images and radius 4, 49 dimensions per channel (low) or 975 (high).

    Raises:
      ValueError: the band is unknown or holds no frequency.
    """
    if band not in ("low", "high"):
        raise ValueError(f"band must be 'low' or 'high', got {band!r}.")
    u, v = (np.fft.fftfreq(size, 1 / size) for size in (height, width))
    u, v = (grid.ravel() for grid in np.meshgrid(u, v, indexing="ij"))
    inside = np.hypot(u, v) <= radius
    selected = inside if band == "low" else ~inside
    if not selected.any():
        raise ValueError(f"radius must leave a frequency in the {band} band, got {radius:g}.")
    # Of a frequency and its negative, the first gets the cosine and the second the sine.
    row, column = np.divmod(np.arange(height * width), width)
    mirror = (-row % height) * width + (-column % width)
    own = np.arange(height * width)
    phase = 2 * np.pi * (np.outer(row, u) / height + np.outer(column, v) / width)
    basis = np.where(own <= mirror, np.cos(phase), np.sin(phase))
    basis *= np.where(own == mirror, 1, np.sqrt(2)) / np.sqrt(height * width)
    return Subspace(jnp.asarray(basis[:, selected], jnp.float32))
