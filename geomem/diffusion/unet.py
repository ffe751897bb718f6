"""EDM's "ddpmpp" U-Net in Flax: the raw network F(x; c_noise) of eq. 7.

Source: Karras et al. 2022, table 1 ("DDPM++") and appendix F; Song et al. 2021. A block computes

    h = conv1(silu(norm(conv0(silu(norm(x))) + affine(embedding)))) ,   (x' + h) / sqrt(2)

with x' = x, or a 1x1 convolution of x if the shape changes. The encoder's activations are
concatenated to the decoder's at the same resolution.

Submodules are named as in the published state dict: `enc.16x16_block0.conv0` is
`enc_16x16_block0/conv0`. So `edm_weights` only has to change the layout of the arrays.
"""

import math
import zlib
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Key

from geomem.diffusion.layers import (
    COMPUTE,
    QueriesKeysValues,
    attend,
    conv,
    dense,
    drop,
    store_gradient,
)
from geomem.diffusion.normalization import GroupNorm

__all__ = ["COMPUTE", "UNet"]


class UNet(nn.Module):
    """The raw network F(x; c_noise), before preconditioning.

    Attributes:
      channels: base channel count; the embedding has 4 times as many.
      multipliers: channels of each resolution level, in units of `channels`; every level after the
        first halves the resolution.
      blocks: residual blocks per level (one more in the decoder).
      attention: resolutions (heights) with self-attention.
      dropout: probability of dropping an activation.
      embedding: embedding of the noise level, "positional" (ddpmpp) or "fourier" (ncsnpp). With
        "positional", the network interpolates across noise levels that training left out.
      augment_dim: number of augmentation labels; 0 for a network without this input.
      adaptive_scale: whether the noise level scales each block's normalized channels in addition to
        shifting them. The network then behaves far worse at noise levels that training left out.
      patch: side of the square patches that are folded into channels first; 2 makes the network
        about four times cheaper on small machines.
      compute: a key of `COMPUTE`. "float32" is float32 in every product on every device; "tf32" is
        float32 with the device's fast products (TF32 on a GPU, bfloat16 passes on a TPU). With
        "bfloat16", meant for large networks, the backward pass computes attention again.
      remat: whether the backward pass computes each block's activations again, which takes a third
        longer and keeps only the blocks' inputs in memory.
    """

    channels: int = 128
    multipliers: tuple[int, ...] = (2, 2, 2)
    blocks: int = 4
    attention: tuple[int, ...] = (16,)
    dropout: float = 0.0
    embedding: Literal["positional", "fourier"] = "positional"
    augment_dim: int = 0
    adaptive_scale: bool = False
    patch: int = 1
    compute: str = "float32"
    remat: bool = False

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "batch height width channels"],
        noise: Float[Array, " batch"],
        augment_labels: Float[Array, "batch labels"] | None = None,
        dropout_keys: Key[Array, " batch"] | None = None,
    ) -> Float32[Array, "batch height width channels"]:
        """Evaluate the network.

        Args:
          x: noisy images, scaled to unit variance.
          noise: c_noise, a function of the noise level.
          augment_labels: as from `augment.augment`; None for all zeros.
          dropout_keys: typed PRNG keys, one per image; None turns dropout off.

        Raises:
          ValueError: channels is not a multiple of 4, a layer's channels cannot be normalized in
            groups, the images' sides cannot be folded and halved for all levels, or `attention` is
            not the default and holds a resolution that no level has.
        """
        if self.channels % 4:
            raise ValueError(f"channels must be a multiple of 4, got {self.channels}.")
        _check_sides(x.shape[1:3], self.patch, len(self.multipliers))
        levels = [x.shape[1] // self.patch // 2**level for level in range(len(self.multipliers))]
        # The default is for 32x32 images; for some other sizes no level has its resolution.
        if self.attention != UNet.attention and not {*self.attention} <= {*levels}:
            raise ValueError(
                f"attention must hold resolutions among {levels}, got {self.attention}."
            )
        _, _, _, image_channels = x.shape
        x = _fold(x.astype(COMPUTE[self.compute][0]), self.patch)
        embedding = self._embed(noise, augment_labels, len(x))
        widths = [self.channels * multiplier for multiplier in self.multipliers]

        def block(name, x, width, **options):
            keys = dropout_keys
            if keys is not None:
                keys = jax.vmap(jax.random.fold_in, (0, None))(keys, zlib.crc32(name.encode()))
            module = (nn.remat(Block) if self.remat else Block)(
                width,
                self.dropout,
                self.compute,
                self.adaptive_scale,
                remat_attention=self.compute == "bfloat16" and not self.remat,
                name=name,
                **options,
            )
            return module(x, embedding, keys)

        skips = []
        for level, width in enumerate(widths):
            if level == 0:
                x = conv(self.channels, self.compute, name=f"enc_{_size(x)}_conv")(x)
            else:
                half = f"{x.shape[1] // 2}x{x.shape[2] // 2}"
                x = block(f"enc_{half}_down", x, x.shape[-1], resample="down")
            skips.append(x)
            for i in range(self.blocks):
                attended = x.shape[1] in self.attention
                x = block(f"enc_{_size(x)}_block{i}", x, width, attention=attended)
                skips.append(x)

        for level, width in reversed(list(enumerate(widths))):
            if level == len(widths) - 1:
                x = block(f"dec_{_size(x)}_in0", x, width, attention=True)
                x = block(f"dec_{_size(x)}_in1", x, width)
            else:
                double = f"{x.shape[1] * 2}x{x.shape[2] * 2}"
                x = block(f"dec_{double}_up", x, x.shape[-1], resample="up")
            for i in range(self.blocks + 1):
                attended = i == self.blocks and x.shape[1] in self.attention
                x = jnp.concatenate([x, skips.pop()], axis=-1)
                x = block(f"dec_{_size(x)}_block{i}", x, width, attention=attended)

        x = GroupNorm(name=f"dec_{_size(x)}_aux_norm")(x)
        x = conv(
            image_channels * self.patch**2, self.compute, name=f"dec_{_size(x)}_aux_conv", gain=1e-5
        )(x)
        return _unfold(x, self.patch).astype(jnp.float32)

    def _embed(self, noise, augment_labels, batch):
        """Embed the noise level and the labels: [B] and [B, labels] -> [B, 4 channels]."""
        dtype = COMPUTE[self.compute][0]
        if self.embedding == "fourier":
            embedding = FourierEmbedding(self.channels, name="map_noise")(noise)
        else:
            embedding = _positional_embedding(noise, self.channels)
        if self.augment_dim:
            if augment_labels is None:
                augment_labels = jnp.zeros((batch, self.augment_dim))
            layer = dense(self.channels, "float32", name="map_augment", use_bias=False)
            embedding = embedding + layer(augment_labels.astype(jnp.float32))
        embedding = embedding.astype(dtype)
        for name in ("map_layer0", "map_layer1"):
            embedding = nn.silu(dense(4 * self.channels, self.compute, name=name)(embedding))
        return embedding


class Block(nn.Module):
    """A residual block with the noise embedding added in, and optional attention after it.

    Attributes:
      width: output channels.
      dropout: probability of dropping an activation.
      compute: a key of `COMPUTE`.
      adaptive_scale: as in `UNet`.
      resample: "down" averages 2x2 pixels, "up" repeats each pixel, before the first convolution.
      attention: whether single-head self-attention follows.
      remat_attention: whether the backward pass computes attention again: it is cheap, and its
        arrays are large.
    """

    width: int
    dropout: float
    compute: str
    adaptive_scale: bool = False
    resample: Literal["down", "up"] | None = None
    attention: bool = False
    remat_attention: bool = False

    @nn.compact
    def __call__(self, x, embedding, dropout_keys):
        """Map x [B, H, W, C], embedding [B, E] and keys [B] or None to [B, H', W', width]."""
        shortcut = x
        x = GroupNorm(name="norm0")(x)
        x = conv(self.width, self.compute, name="conv0")(_resample(x, self.resample))
        width = self.width * (1 + self.adaptive_scale)
        shift = dense(width, self.compute, name="affine")(embedding)
        if self.adaptive_scale:
            x = GroupNorm(name="norm1")(x, *jnp.split(shift, 2, axis=-1))
        else:
            x = GroupNorm(name="norm1")(x + shift[:, None, None])
        if dropout_keys is not None and self.dropout:
            x = drop(x, self.dropout, dropout_keys)
        x = conv(self.width, self.compute, name="conv1", gain=1e-5)(x)
        if self.resample or shortcut.shape[-1] != self.width:
            shortcut = _resample(shortcut, self.resample)
            shortcut = conv(self.width, self.compute, name="skip", kernel=1)(shortcut)
        x = store_gradient((x + shortcut) * math.sqrt(0.5))
        if not self.attention:
            return x
        attended = (nn.remat(Block._attend) if self.remat_attention else Block._attend)(self, x)
        return store_gradient((x + attended) * math.sqrt(0.5))

    def _attend(self, x):
        batch, _, _, channels = x.shape
        _, precision = COMPUTE[self.compute]
        normed = GroupNorm(activate=False, name="norm2")(x).reshape(batch, -1, channels)
        q, k, v = QueriesKeysValues(self.compute, name="qkv")(normed)
        attended = attend(q, k, v, precision)
        proj = conv(channels, self.compute, name="proj", kernel=1, gain=1e-5)
        return proj(attended.reshape(x.shape))


class FourierEmbedding(nn.Module):
    """Random Fourier features of c_noise with fixed frequencies 16 N(0, 1), first sin, then cos."""

    channels: int

    @nn.compact
    def __call__(self, noise):
        """Map c_noise [B] to float32 features [B, channels]."""
        freqs = self.param("freqs", nn.initializers.normal(16.0), (self.channels // 2,))
        return _sin_cos(noise, 2 * math.pi * jax.lax.stop_gradient(freqs))


def _positional_embedding(noise, channels):
    count = channels // 2
    return _sin_cos(noise, 1e-4 ** (jnp.arange(count, dtype=jnp.float32) / (count - 1)))


def _sin_cos(noise, frequencies):
    angles = noise.astype(jnp.float32)[:, None] * frequencies[None]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def _resample(x, direction):
    batch, height, width, channels = x.shape
    if direction == "down":
        return x.reshape(batch, height // 2, 2, width // 2, 2, channels).mean((2, 4))
    if direction == "up":
        return x.repeat(2, axis=1).repeat(2, axis=2)
    return x


def _fold(x, patch):
    """[B, H, W, C] -> [B, H/p, W/p, p p C]."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // patch, patch, width // patch, patch, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height // patch, width // patch, -1)


def _unfold(x, patch):
    """The inverse of `_fold`."""
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height, width, patch, patch, channels // patch**2)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height * patch, width * patch, -1)


def _size(x):
    return f"{x.shape[1]}x{x.shape[2]}"


def _check_sides(sides, patch, levels):
    factor = patch * 2 ** (levels - 1)
    if any(side % factor for side in sides):
        raise ValueError(
            f"images must have sides that are multiples of {factor} (patches of {patch}, halved "
            f"{levels - 1} times), got {sides[0]}x{sides[1]}."
        )
