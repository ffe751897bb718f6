"""Published EDM weights as Flax parameters, from plain tensors (`.npz`, `.safetensors`).

The architecture is inferred from the tensors' names and shapes. Pickles are refused, because
reading one can run code; experiments/train/README.md shows how to export one in two lines.
"""

import pathlib
import re
from collections.abc import Mapping
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from geomem import array_files
from geomem.diffusion import preconditioning, unet

__all__ = ["from_state_dict", "image_shape", "load"]

_MODULE = re.compile(r"(?:param/)?(?:module\.)?model\.(?P<path>.+)")
_SHOWN = 5  # mismatches in a message
_LEAVES = {"weight": {1: "scale", 2: "kernel", 4: "kernel"}, "bias": {1: "bias"}}


def load(
    path: str | pathlib.Path,
) -> tuple[preconditioning.EDMDenoiser, preconditioning.Params]:
    """Read an EDM state dict of the unconditional "ddpmpp" architecture.

    Args:
      path: an `.npz` or `.safetensors` file of the tensors under their state-dict names
        (`model.enc.32x32_conv.weight`, ...), with or without the prefix `param/`.

    Raises:
      ValueError: another kind of file, an unreadable file, or tensors that do not match this
        architecture (the message lists the first of them).
    """
    path = pathlib.Path(path)
    if path.suffix not in (".npz", ".safetensors"):
        raise ValueError(f"weights must be an .npz or .safetensors file, got {path}.")
    tensors = _read(path)
    try:
        network, params = from_state_dict(tensors)
    except ValueError as error:
        message = f"weights must hold an EDM ddpmpp network, got {path}: {error}."
        raise ValueError(message) from None
    return preconditioning.EDMDenoiser(network), params


def from_state_dict(
    tensors: Mapping[str, np.ndarray],
) -> tuple[unet.UNet, preconditioning.Params]:
    """Return the network that a state dict belongs to, and its parameters.

    Convolutions go from [out, in, kh, kw] to [kh, kw, in, out], dense layers from [out, in] to
    [in, out].

    Raises:
      ValueError: tensors that are missing, unexpected, of the wrong shape or not finite (the
        message lists the first of them).
    """
    tensors = {
        match["path"]: np.asarray(tensor)
        for name, tensor in tensors.items()
        if (match := _MODULE.fullmatch(name))
    }
    if empty := [name for name, tensor in tensors.items() if not tensor.size]:
        raise ValueError(f"{empty[0]} is empty")
    network, image_shape = _architecture(tensors)
    denoiser = preconditioning.EDMDenoiser(network)
    try:
        template = jax.eval_shape(lambda key: denoiser.init(key, image_shape), jax.random.key(0))
    except Exception as error:  # Flax raises errors of many types for impossible networks
        reason = str(error).partition("\n")[0]
        raise ValueError(f"the tensors describe an impossible network ({reason})") from None
    leaves = cast(dict[str, jax.ShapeDtypeStruct], traverse_util.flatten_dict(template, sep="/"))
    shapes = {name: leaf.shape for name, leaf in leaves.items()}

    params, mismatches = {}, []
    for name, tensor in tensors.items():
        if not jnp.issubdtype(tensor.dtype, jnp.floating) or not np.isfinite(tensor).all():
            mismatches.append(f"{name} does not hold finite floats")
            continue
        if name.endswith(".resample_filter"):
            if tensor.shape != (1, 1, 2, 2) or not np.allclose(tensor, 0.25):
                mismatches.append(f"{name} is not a 2x2 mean")
            continue
        flax_name = _flax_name(name, tensor.ndim)
        if flax_name not in shapes:
            mismatches.append(f"{name} is unexpected")
            continue
        value = _flax_layout(tensor)
        if value.shape != shapes[flax_name]:
            mismatches.append(
                f"{name} must have shape {shapes[flax_name]} (Flax layout), got {value.shape}"
            )
        params[flax_name] = value.astype(np.float32)
    mismatches += [f"{name} is missing" for name in shapes if name not in params]
    if mismatches:
        more = f"; and {len(mismatches) - _SHOWN} more" if len(mismatches) > _SHOWN else ""
        raise ValueError("; ".join(mismatches[:_SHOWN]) + more)
    return network, traverse_util.unflatten_dict(params, sep="/")


def image_shape(params: preconditioning.Params) -> tuple[int, int, int]:
    """Return the image shape (H, W, C) of a network without patches, from its parameters."""
    (name,) = (name for name in params if re.fullmatch(r"enc_\d+x\d+_conv", name))
    height, width = map(int, re.findall(r"\d+", name))
    return height, width, params[name]["kernel"].shape[2]


def _read(path):
    try:
        if not path.is_file():
            raise ValueError("it is not a file" if path.exists() else "no such file")
        if path.suffix == ".npz":
            return array_files.read_npz(path)
        from safetensors.numpy import load_file

        return load_file(path)
    except MemoryError:
        raise
    except Exception as error:  # the type depends on the format and the damage
        raise ValueError(f"weights must be a readable file, got {path} ({error}).") from None


def _architecture(tensors):
    """Return the UNet and the image shape (H, W, C) that fit the tensors' names and shapes."""
    stems = [re.fullmatch(r"enc\.([1-9]\d{0,4})x([1-9]\d{0,4})_conv\.weight", n) for n in tensors]
    stems = [match for match in stems if match and tensors[match.string].ndim == 4]
    if not stems:
        raise ValueError("model.enc.HEIGHTxWIDTH_conv.weight is missing")
    height, width = map(int, stems[0].groups())
    channels, image_channels = tensors[stems[0].string].shape[:2]
    levels, attention, blocks = {}, set(), 0
    for name, tensor in tensors.items():
        if match := re.fullmatch(r"enc\.(\d{1,5})x\d+_block(\d{1,5})\.(conv0|qkv)\.weight", name):
            side, block = int(match[1]), int(match[2])
            blocks = max(blocks, block + 1)
            if match[3] == "qkv":
                attention.add(side)
            elif tensor.ndim:
                levels[side] = len(tensor) // channels
    if not levels or min(levels.values()) < 1 or len(levels) * blocks > len(tensors):
        raise ValueError("the blocks of model.enc are incomplete")
    augment = tensors.get("map_augment.weight")
    network = unet.UNet(
        channels=channels,
        multipliers=tuple(levels[side] for side in sorted(levels, reverse=True)),
        blocks=blocks,
        attention=tuple(sorted(attention)),
        embedding="fourier" if "map_noise.freqs" in tensors else "positional",
        augment_dim=augment.shape[-1] if np.ndim(augment) else 0,
    )
    return network, (height, width, image_channels)


def _flax_name(name, rank):
    """Map `enc.16x16_block0.conv0.weight` of rank 4 to `enc_16x16_block0/conv0/kernel`."""
    *path, leaf = re.sub(r"^(enc|dec)\.", r"\1_", name).split(".")
    return "/".join([*path, _LEAVES.get(leaf, {}).get(rank, leaf)])


def _flax_layout(tensor):
    return tensor.transpose(*range(2, tensor.ndim), 1, 0) if tensor.ndim > 1 else tensor
