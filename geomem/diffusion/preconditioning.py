"""EDM's preconditioning turns a raw network F into a denoiser D (Karras et al. 2022, eq. 7).

    D(x; sigma) = c_skip x + c_out F(c_in x; c_noise)

With s = sigma_data (table 1, "Network and preconditioning"):

    c_skip = s^2 / (sigma^2 + s^2)          c_out = sigma s / sqrt(sigma^2 + s^2)
    c_in = 1 / sqrt(sigma^2 + s^2)          c_noise = ln(sigma) / 4
"""

import dataclasses
import functools
from typing import Any

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Key

__all__ = ["EDMDenoiser", "Params"]

Params = Any  # a nested dict of float32 arrays


@dataclasses.dataclass(frozen=True)
class EDMDenoiser:
    """The denoiser D(x; sigma); its parameters are kept outside.

    Hashable and static under jit. `bind` returns the function of (x, sigma) that samplers and
    metrics take.

    Attributes:
      network: the raw network, for example a `unet.UNet`.
      sigma_data: standard deviation of the data's pixels.
    """

    network: nn.Module
    sigma_data: float = 0.5

    def __call__(
        self,
        params: Params,
        x: Float[Array, "batch height width channels"],
        sigma: Float[Array, " batch"] | float,
        augment_labels: Float[Array, "batch labels"] | None = None,
        dropout_keys: Key[Array, " batch"] | None = None,
    ) -> Float32[Array, "batch height width channels"]:
        """Return the estimate of the clean images.

        Args:
          params: the network's parameters, as from `init`.
          x: images plus noise of standard deviation sigma.
          sigma: positive noise levels, one per image or one for all.
          augment_labels: labels from `augment.augment`; None for images that are not augmented.
          dropout_keys: typed PRNG keys for training; None turns dropout off.
        """
        chex.assert_rank(x, 4)
        x = x.astype(jnp.float32)
        sigma = jnp.broadcast_to(jnp.asarray(sigma, jnp.float32), x.shape[:1])
        sigma_column, sigma_data = sigma[:, None, None, None], self.sigma_data
        total = sigma_column**2 + sigma_data**2
        c_skip = sigma_data**2 / total
        c_out = sigma_column * sigma_data / jnp.sqrt(total)
        c_noise = jnp.log(sigma) / 4
        output = self.network.apply(
            {"params": params}, x / jnp.sqrt(total), c_noise, augment_labels, dropout_keys
        )
        return c_skip * x + c_out * jnp.asarray(output)

    def init(self, key: Key[Array, ""], image_shape: tuple[int, int, int]) -> Params:
        """Return initial parameters for images of shape (height, width, channels)."""
        images, noise = jnp.zeros((1, *image_shape)), jnp.zeros(1)
        return _init(self.network, key, images, noise)["params"]

    def bind(self, params: Params) -> jax.tree_util.Partial:
        """Return the denoiser (x, sigma) -> x_0 with these parameters, a pytree."""
        return jax.tree_util.Partial(self, params)


@functools.partial(jax.jit, static_argnums=0)  # compiled once for each network
def _init(network, key, images, noise):
    return network.init(key, images, noise)
