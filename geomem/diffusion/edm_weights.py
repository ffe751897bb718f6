"""Published EDM weights -> Flax parameters, from plain tensors (`.npz`, `.safetensors`).

The architecture is read off the tensors' names and shapes. Pickles are not read: they run code.
experiments/train/README.md has the two lines that export one.
"""

from __future__ import annotations

import pathlib
import re
from collections.abc import Mapping

import jax
import numpy as np
from flax import traverse_util

from geomem.diffusion import preconditioning, unet

__all__ = ["from_state_dict", "image_shape", "load"]

_MODULE = re.compile(r"(?:param/)?(?:module\.)?model\.(?P<path>.+)")
_LEAVES = {"weight": {1: "scale", 2: "kernel", 4: "kernel"}, "bias": {1: "bias"}}


def load(
    path: str | pathlib.Path, *, sigma_data: float = 0.5, compute: str = "float32"
) -> tuple[preconditioning.EDMDenoiser, preconditioning.Params]:
    """Read an EDM state dict of the unconditional "ddpmpp" architecture.

    Args:
      path: an `.npz` or `.safetensors` file of the tensors, under their state-dict names
        (`model.enc.32x32_conv.weight`, ...), with or without the prefix `param/`.
      sigma_data: the preconditioning's, which no tensor holds.
      compute: a key of `unet.COMPUTE`.

    Returns:
      (denoiser, params): `denoiser(params, x, sigma)` on NHWC images.

    Raises:
      ValueError: another kind of file, one that cannot be read, or tensors that are not of this
        architecture (all named).
    """
    path = pathlib.Path(path)
    if path.suffix not in (".npz", ".safetensors"):
        raise ValueError(f"weights: {path}, wanted an .npz or .safetensors file of an EDM network")
    tensors = _read(path)
    try:
        network, params = from_state_dict(tensors, compute=compute)
    except ValueError as error:
        raise ValueError(f"weights: {path}: {error}") from None
    return preconditioning.EDMDenoiser(network, sigma_data), params


def from_state_dict(
    tensors: Mapping[str, np.ndarray], *, compute: str = "float32"
) -> tuple[unet.UNet, preconditioning.Params]:
    """The network that a state dict's tensors belong to, and its parameters.

    Convolutions go from [out, in, kh, kw] to [kh, kw, in, out], dense layers from [out, in] to
    [in, out].

    Raises:
      ValueError: no EDM network, or tensors missing, unexpected or of another shape (all named).
    """
    tensors = {
        match["path"]: np.asarray(tensor)
        for name, tensor in tensors.items()
        if (match := _MODULE.fullmatch(name))
    }
    network, image_shape = _architecture(tensors, compute)
    denoiser = preconditioning.EDMDenoiser(network)
    wanted = jax.eval_shape(lambda key: denoiser.init(key, image_shape), jax.random.key(0))
    wanted = {
        name: leaf.shape for name, leaf in traverse_util.flatten_dict(wanted, sep="/").items()
    }

    params, mismatches = {}, []
    for name, tensor in tensors.items():
        if name.endswith(".resample_filter"):
            if tensor.shape != (1, 1, 2, 2) or not np.allclose(tensor, 0.25):
                mismatches.append(f"{name} is not a 2x2 mean")
            continue
        flax_name = _flax_name(name, tensor.ndim)
        if flax_name not in wanted:
            mismatches.append(f"{name} is unexpected")
            continue
        value = _flax_layout(tensor)
        if value.shape != wanted[flax_name]:
            mismatches.append(f"{name} is {value.shape}, wanted {wanted[flax_name]} (Flax layout)")
        params[flax_name] = value.astype(np.float32)
    mismatches += [f"{name} is missing" for name in wanted if name not in params]
    if mismatches:
        raise ValueError(f"not an EDM ddpmpp network: {'; '.join(mismatches)}")
    return network, traverse_util.unflatten_dict(params, sep="/")


def image_shape(params: preconditioning.Params) -> tuple[int, int, int]:
    """The (H, W, C) that a network's parameters are for, of a network without patches."""
    (name,) = (name for name in params if re.fullmatch(r"enc_\d+x\d+_conv", name))
    height, width = map(int, re.findall(r"\d+", name))
    return height, width, params[name]["kernel"].shape[2]


def _read(path):
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as archive:
                return {name: archive[name] for name in archive.files}
        from safetensors.numpy import load_file

        return load_file(path)
    except Exception as error:  # what damage raises depends on the format
        reason = "no such file" if isinstance(error, FileNotFoundError) else error
        raise ValueError(f"weights: cannot read {path}: {reason}") from None


def _architecture(tensors, compute):
    """The UNet and image shape [H, W, C] that the tensors' names and shapes spell out."""
    stems = [re.fullmatch(r"enc\.(\d+)x(\d+)_conv\.weight", name) for name in tensors]
    stems = [match for match in stems if match]
    if not stems:
        raise ValueError("no tensor model.enc.SIDExSIDE_conv.weight, wanted an EDM state dict")
    height, width = map(int, stems[0].groups())
    channels, image_channels = tensors[stems[0].string].shape[:2]
    levels, attention, blocks = {}, set(), 0
    for name, tensor in tensors.items():
        if match := re.fullmatch(r"enc\.(\d+)x\d+_block(\d+)\.(conv0|qkv)\.weight", name):
            side, block = int(match[1]), int(match[2])
            blocks = max(blocks, block + 1)
            if match[3] == "qkv":
                attention.add(side)
            else:
                levels[side] = len(tensor) // channels
    augment = tensors.get("map_augment.weight")
    network = unet.UNet(
        channels=channels,
        multipliers=tuple(levels[side] for side in sorted(levels, reverse=True)),
        blocks=blocks,
        attention=tuple(sorted(attention)),
        embedding="fourier" if "map_noise.freqs" in tensors else "positional",
        augment_dim=0 if augment is None else augment.shape[-1],
        compute=compute,
    )
    return network, (height, width, image_channels)


def _flax_name(name, rank):
    """`enc.16x16_block0.conv0.weight` of rank 4 -> `enc_16x16_block0/conv0/kernel`."""
    *path, leaf = re.sub(r"^(enc|dec)\.", r"\1_", name).split(".")
    return "/".join([*path, _LEAVES.get(leaf, {}).get(rank, leaf)])


def _flax_layout(tensor):
    return tensor.transpose(*range(2, tensor.ndim), 1, 0) if tensor.ndim > 1 else tensor
