"""The network of `unet.UNet` and its training step in PyTorch, to compare their speed.

Takes the parameters of the Flax network, so that a test can compare the outputs.
"""

import math
from typing import Any

import flax.traverse_util
import numpy as np
import torch
from torch.nn import functional

from geomem.data import to_float
from geomem.diffusion import preconditioning, training_step, unet


def parameters(tree: preconditioning.Params) -> dict[str, torch.Tensor]:
    """Return the Flax network's parameters in PyTorch's layout, by name."""
    flat = flax.traverse_util.flatten_dict(tree, sep="/")
    return {
        name: torch.tensor(np.moveaxis(np.asarray(leaf), (-1, -2), (0, 1)).copy())
        if leaf.ndim > 1
        else torch.tensor(np.asarray(leaf))
        for name, leaf in flat.items()
    }


def network(p: dict[str, torch.Tensor], config: unet.UNet, x: torch.Tensor, noise: torch.Tensor):
    """Return F(x; noise), [B, C, H, W], of a network with the positional embedding."""

    def layer(f, name, x, **options):
        return f(x, p[f"{name}/kernel"], p[f"{name}/bias"], **options)

    def norm(name, x):
        groups = min(32, x.shape[1] // 4)
        return functional.group_norm(x, groups, p[f"{name}/scale"], p[f"{name}/bias"], 1e-6)

    def resample(x, direction):
        if direction == "down":
            return functional.avg_pool2d(x, 2)
        return functional.interpolate(x, scale_factor=2) if direction == "up" else x

    def block(name, x, resampling=None, attention=False):
        h = functional.silu(norm(f"{name}/norm0", x))
        h = layer(functional.conv2d, f"{name}/conv0", resample(h, resampling), padding=1)
        h = h + layer(functional.linear, f"{name}/affine", embedding)[:, :, None, None]
        h = functional.silu(norm(f"{name}/norm1", h))
        h = functional.dropout(h, config.dropout) if config.dropout else h
        h = layer(functional.conv2d, f"{name}/conv1", h, padding=1)
        if f"{name}/skip/kernel" in p:
            x = layer(functional.conv2d, f"{name}/skip", resample(x, resampling))
        x = (x + h) * math.sqrt(0.5)
        if not attention:
            return x
        batch, channels, height, width = x.shape
        qkv = layer(functional.conv2d, f"{name}/qkv", norm(f"{name}/norm2", x))
        q, k, v = qkv.reshape(batch, channels, 3, height * width).unbind(2)
        weights = torch.einsum("bcq,bck->bqk", q, k / math.sqrt(channels)).softmax(2)
        h = torch.einsum("bqk,bck->bcq", weights, v).reshape(x.shape)
        return (x + layer(functional.conv2d, f"{name}/proj", h)) * math.sqrt(0.5)

    size = config.channels // 2
    angles = noise[:, None] * 1e-4 ** (torch.arange(size) / (size - 1))
    embedding = torch.cat([angles.sin(), angles.cos()], 1)
    for name in ("map_layer0", "map_layer1"):
        embedding = functional.silu(layer(functional.linear, name, embedding))

    batch, colors, height, width = x.shape
    patch = config.patch
    x = x.reshape(batch, colors, height // patch, patch, width // patch, patch)
    x = x.permute(0, 3, 5, 1, 2, 4).reshape(batch, -1, height // patch, width // patch)
    skips = []
    for level in range(len(config.multipliers)):
        if level == 0:
            x = layer(functional.conv2d, f"enc_{_size(x)}_conv", x, padding=1)
        else:
            x = block(f"enc_{x.shape[2] // 2}x{x.shape[3] // 2}_down", x, "down")
        skips.append(x)
        for i in range(config.blocks):
            attend = x.shape[2] in config.attention
            x = block(f"enc_{_size(x)}_block{i}", x, attention=attend)
            skips.append(x)
    x = block(f"dec_{_size(x)}_in0", x, attention=True)
    x = block(f"dec_{_size(x)}_in1", x)
    for level in reversed(range(len(config.multipliers))):
        if level < len(config.multipliers) - 1:
            x = block(f"dec_{x.shape[2] * 2}x{x.shape[3] * 2}_up", x, "up")
        for i in range(config.blocks + 1):
            attend = i == config.blocks and x.shape[2] in config.attention
            x = block(f"dec_{_size(x)}_block{i}", torch.cat([x, skips.pop()], 1), None, attend)
    x = functional.silu(norm(f"dec_{_size(x)}_aux_norm", x))
    x = layer(functional.conv2d, f"dec_{_size(x)}_aux_conv", x, padding=1)
    x = x.reshape(batch, patch, patch, colors, height // patch, width // patch)
    return x.permute(0, 3, 4, 1, 5, 2).reshape(batch, colors, height, width)


def trainer(
    denoiser: preconditioning.EDMDenoiser,
    recipe: training_step.Recipe,
    params: preconditioning.Params,
    pixels: np.ndarray,
):
    """Return a function that runs one training step and returns its loss."""
    p = {name: leaf.requires_grad_() for name, leaf in parameters(params).items()}
    average = {name: leaf.detach().clone() for name, leaf in p.items()}
    optimizer = torch.optim.Adam(p.values(), recipe.lr)
    images = torch.tensor(np.moveaxis(to_float(pixels), -1, 1).copy())
    config: Any = denoiser.network
    scale = denoiser.sigma_data

    def step():
        clean = images[torch.randint(len(images), (recipe.batch,))]
        sigma = torch.exp(-1.2 + 1.2 * torch.randn(recipe.batch))[:, None, None, None]
        noisy = clean + sigma * torch.randn_like(clean)
        total = sigma**2 + scale**2
        output = network(p, config, noisy / total.sqrt(), sigma.flatten().log() / 4)
        denoised = scale**2 / total * noisy + sigma * scale / total.sqrt() * output
        weight = total / (sigma * scale) ** 2
        loss = (weight * (denoised - clean) ** 2).sum((1, 2, 3)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for name, leaf in average.items():
                leaf.lerp_(p[name], 0.01)
        return float(loss.detach())

    return step


def _size(x):
    return f"{x.shape[2]}x{x.shape[3]}"
