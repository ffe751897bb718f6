"""EDM's preconditioning: a raw network F becomes a denoiser D (Karras et al. 2022, eq. 7)."""

from __future__ import annotations

import dataclasses
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

__all__ = ["EDMDenoiser", "Params"]

Params = Any  # a nested dict of float32 arrays


@dataclasses.dataclass(frozen=True)
class EDMDenoiser:
    """D(x; sigma) = c_skip x + c_out F(c_in x, ln(sigma) / 4), its parameters kept outside.

    With s = sigma_data: c_skip = s^2 / (sigma^2 + s^2), c_out = sigma s / sqrt(sigma^2 + s^2) and
    c_in = 1 / sqrt(sigma^2 + s^2). A hashable value, static under jit; `bind` gives the function of
    (x, sigma) that samplers and metrics take.

    Attributes:
      network: the raw network, as `unet.UNet`.
      sigma_data: the standard deviation of the data's pixels.
    """

    network: nn.Module
    sigma_data: float = 0.5

    def __call__(
        self,
        params: Params,
        x: jax.Array,
        sigma: jax.Array,
        augment_labels: jax.Array | None = None,
        dropout_keys: jax.Array | None = None,
    ) -> jax.Array:
        """Denoise.

        Args:
          params: the network's parameters, as from `init`.
          x: float [B, H, W, C], images plus noise of standard deviation sigma.
          sigma: float [B] or scalar, positive.
          augment_labels: float [B, augment_dim], or None for images that were not augmented.
          dropout_keys: typed PRNG keys [B] for training, or None for evaluation.

        Returns:
          float32 [B, H, W, C], the estimate of the clean images.
        """
        chex.assert_rank(x, 4)
        x = x.astype(jnp.float32)
        sigma = jnp.broadcast_to(jnp.asarray(sigma, jnp.float32), x.shape[:1])
        s, sd = sigma[:, None, None, None], self.sigma_data
        total = s**2 + sd**2
        output = self.network.apply(
            {"params": params},
            x / jnp.sqrt(total),
            jnp.log(sigma) / 4,
            augment_labels,
            dropout_keys,
        )
        return sd**2 / total * x + s * sd / jnp.sqrt(total) * output

    def init(self, key: jax.Array, image_shape: tuple[int, int, int]) -> Params:
        """Fresh parameters for images of `image_shape` (H, W, C)."""
        images, noise = jnp.zeros((1, *image_shape)), jnp.zeros(1)
        return jax.jit(self.network.init)(key, images, noise)["params"]

    def bind(self, params: Params) -> jax.tree_util.Partial:
        """The denoiser (x, sigma) -> x0 with these parameters: a pytree, so jit may take it."""
        return jax.tree_util.Partial(self, params)
