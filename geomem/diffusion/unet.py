"""EDM's "ddpmpp" U-Net in Flax: the raw network F(x; c_noise) of eq. 7.

Source: Karras et al. 2022, table 1 ("DDPM++") and appendix F; Song et al. 2021. A block computes

    h = conv1(silu(norm(conv0(silu(norm(x))) + affine(embedding)))) ,   (x' + h) / sqrt(2)

with x' = x, or a 1x1 convolution of x if the shape changes. The encoder's activations are
concatenated to the decoder's at the same resolution.

Submodules are named as in the published state dict: `enc.16x16_block0.conv0` is
`enc_16x16_block0/conv0`. So `edm_weights` only has to change the layout of the arrays.
"""

import functools
import math
import zlib
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Float32, Key

from geomem.diffusion.normalization import GroupNorm

__all__ = ["COMPUTE", "UNet"]

# The dtype of activations, and the precision of matrix products and convolutions. Parameters,
# the softmax and the normalization statistics are always float32.
COMPUTE = {
    "float32": (jnp.float32, jax.lax.Precision.HIGHEST),
    "tf32": (jnp.float32, jax.lax.Precision.DEFAULT),
    "bfloat16": (jnp.bfloat16, jax.lax.Precision.DEFAULT),
}


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
      compute: a key of `COMPUTE`. "float32" is exact float32 on every device; "tf32" is float32
        with the device's fast products (TF32 on a GPU, bfloat16 passes on a TPU).
      remat: whether the backward pass computes each block's activations again, which takes a third
        longer and keeps only the blocks' inputs. In bfloat16, all but products is repeated anyway.
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
        levels = [x.shape[1] // self.patch // 2**i for i in range(len(self.multipliers))]
        # The default is for 32x32 images; for some other sizes no level has its resolution.
        if self.attention != UNet.attention and not {*self.attention} <= {*levels}:
            raise ValueError(
                f"attention must hold resolutions among {levels}, got {self.attention}."
            )
        _, _, _, image_channels = x.shape
        x = _fold(x.astype(COMPUTE[self.compute][0]), self.patch)
        embedding = self._embed(noise, augment_labels, len(x))
        widths = [self.channels * multiplier for multiplier in self.multipliers]

        module = Block
        if self.remat or self.compute == "bfloat16":
            module = nn.remat(Block, policy=None if self.remat else _is_kept)
        skips = []

        def block(name, x, width, **options):
            keys = dropout_keys
            if keys is not None:
                keys = jax.vmap(jax.random.fold_in, (0, None))(keys, zlib.crc32(name.encode()))
            options |= {"dropout": self.dropout, "adaptive_scale": self.adaptive_scale}
            return module(width, compute=self.compute, name=name, **options)(x, embedding, keys)

        for level, width in enumerate(widths):
            if level == 0:
                x = _conv(self.channels, self.compute, name=f"enc_{_size(x)}_conv")(x)
            else:
                x = block(f"enc_{_size(x, 0.5)}_down", x, x.shape[-1], resample="down")
            skips.append(x)
            attend = x.shape[1] in self.attention
            for i in range(self.blocks):
                x = block(f"enc_{_size(x)}_block{i}", x, width, attention=attend)
                skips.append(x)

        for level, width in reversed(list(enumerate(widths))):
            if level == len(widths) - 1:
                x = block(f"dec_{_size(x)}_in0", x, width, attention=True)
                x = block(f"dec_{_size(x)}_in1", x, width)
            else:
                x = block(f"dec_{_size(x, 2)}_up", x, x.shape[-1], resample="up")
            for i in range(self.blocks + 1):
                attend = i == self.blocks and x.shape[1] in self.attention
                name = f"dec_{_size(x)}_block{i}"
                x = block(name, (x, skips.pop()), width, attention=attend)

        x = GroupNorm(name=f"dec_{_size(x)}_aux_norm")(x)
        width = image_channels * self.patch**2
        x = _conv(width, self.compute, name=f"dec_{_size(x)}_aux_conv", gain=1e-5)(x)
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
            dense = _dense(self.channels, "float32", name="map_augment", use_bias=False)
            embedding = embedding + dense(augment_labels.astype(jnp.float32))
        embedding = embedding.astype(dtype)
        for name in ("map_layer0", "map_layer1"):
            embedding = nn.silu(_dense(4 * self.channels, self.compute, name=name)(embedding))
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
    """

    width: int
    dropout: float
    compute: str
    adaptive_scale: bool = False
    resample: Literal["down", "up"] | None = None
    attention: bool = False

    @nn.compact
    def __call__(self, x, embedding, dropout_keys):
        """Map x [B, H, W, C] or several, embedding [B, E] and keys [B] to [B, H', W', width]."""
        shortcut = x = jnp.concatenate(x, axis=-1) if isinstance(x, tuple) else x
        x = GroupNorm(name="norm0")(x)
        x = _conv(self.width, self.compute, name="conv0")(_resample(x, self.resample))
        width = self.width * (1 + self.adaptive_scale)
        shift = _dense(width, self.compute, name="affine")(embedding)
        if self.adaptive_scale:
            x = GroupNorm(name="norm1")(x, *jnp.split(shift, 2, axis=-1))
        else:
            x = GroupNorm(name="norm1")(x + shift[:, None, None])
        if dropout_keys is not None and self.dropout:
            # One key per image, so that the mask does not depend on how the batch is sharded.
            keep, size = 1 - self.dropout, math.prod(x.shape[1:])
            mask = jax.vmap(lambda key: jax.random.bernoulli(key, keep, (size,)))(dropout_keys)
            kept = checkpoint_name(mask.reshape(x.shape), "mask")
            x = jnp.where(kept, x / keep, 0).astype(x.dtype)
        x = _conv(self.width, self.compute, name="conv1", gain=1e-5)(x)
        if self.resample or shortcut.shape[-1] != self.width:
            shortcut = _resample(shortcut, self.resample)
            shortcut = _conv(self.width, self.compute, name="skip", kernel=1)(shortcut)
        x = (x + shortcut) * math.sqrt(0.5)
        return (x + self._attend(x)) * math.sqrt(0.5) if self.attention else x

    def _attend(self, x):
        batch, height, width, channels = x.shape
        _, precision = COMPUTE[self.compute]
        normed = GroupNorm(activate=False, name="norm2")(x)
        qkv = _conv(3 * channels, self.compute, name="qkv", kernel=1, gain=math.sqrt(0.2))(normed)
        # The published weights interleave q, k and v channel by channel.
        q, k, v = jnp.moveaxis(qkv.reshape(batch, height * width, channels, 3), -1, 0)
        logits = _inner_products(q, k / math.sqrt(channels), precision)
        weights = nn.softmax(logits).astype(x.dtype)
        x = jnp.einsum("bqk,bkc->bqc", weights, v, precision=precision)
        x = x.reshape(batch, height, width, channels)
        return _conv(channels, self.compute, name="proj", kernel=1, gain=1e-5)(x)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _inner_products(q, k, precision):
    """Return float32 <q_i, k_j>, [B, Q, C] and [B, K, C] -> [B, Q, K]."""
    return jnp.einsum("bqc,bkc->bqk", q, k, precision=precision, preferred_element_type=jnp.float32)


@_inner_products.defjvp
def _inner_products_derivative(precision, primals, tangents):
    (q, k), (dq, dk) = primals, tangents
    product = functools.partial(jnp.einsum, "bqc,bkc->bqk", precision=precision)
    # The products of the backward pass then take the type of q and k.
    return _inner_products(q, k, precision), (product(dq, k) + product(q, dk)).astype(jnp.float32)


def _is_kept(primitive, *_, **__):
    """Whether the backward pass fetches a result. On accelerators, others are computed faster."""
    return primitive.name in ("conv_general_dilated", "dot_general", "name")


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


def _initializer(gain):
    """Xavier-uniform times `gain`."""

    def init(key, shape, dtype=jnp.float32):
        receptive_field = math.prod(shape[:-2])
        limit = gain * math.sqrt(6 / (receptive_field * (shape[-2] + shape[-1])))
        # Drawn flat, because XLA's CPU compiler takes five times longer for a draw with four axes.
        return jax.random.uniform(key, (math.prod(shape),), dtype, -limit, limit).reshape(shape)

    return init


def _conv(width, compute, *, name, kernel=3, gain=1.0):
    dtype, precision = COMPUTE[compute]
    return nn.Conv(
        width,
        (kernel, kernel),
        dtype=dtype,
        precision=precision,
        kernel_init=_initializer(gain),
        conv_general_dilated=_convolve,
        name=name,
    )


def _convolve(x, kernel, *arguments, precision, **options):
    """Convolve [B, H, W, C] with [K, K, C, D]; as a matrix product if K covers the image.

    On a CPU, XLA's convolution of a 2x2 image with a 3x3 kernel takes ten times as long.
    """
    _, height, width, _ = x.shape
    reach = (kernel.shape[0] + 1) // 2
    if max(height, width) > reach:
        return jax.lax.conv_general_dilated(x, kernel, *arguments, precision=precision, **options)
    # The output at (i, j) multiplies the whole image by these taps of the kernel.
    taps = jnp.stack(
        [
            kernel[reach - 1 - i :][:height, reach - 1 - j :][:, :width]
            for i in range(height)
            for j in range(width)
        ]
    )
    products = jnp.einsum("bhwc,phwcd->bpd", x, taps, precision=precision)
    return products.reshape(len(x), height, width, -1)


def _dense(width, compute, *, name, use_bias=True):
    dtype, precision = COMPUTE[compute]
    return nn.Dense(
        width, use_bias, dtype=dtype, precision=precision, kernel_init=_initializer(1.0), name=name
    )


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


def _size(x, factor: float = 1):
    return "x".join(str(int(side * factor)) for side in x.shape[1:3])


def _check_sides(sides, patch, levels):
    factor = patch * 2 ** (levels - 1)
    if any(side % factor for side in sides):
        raise ValueError(
            f"images must have sides that are multiples of {factor} (patches of {patch}, halved "
            f"{levels - 1} times), got {sides[0]}x{sides[1]}."
        )
