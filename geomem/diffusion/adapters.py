"""Networks trained elsewhere as denoisers: their prediction and their noise, translated.

With x = x_0 + sigma eps, a network sees x_t = a x = a x_0 + b eps, with b = a sigma, and a time t:

- DDPM and DDIM: a = sqrt(abar) = 1 / sqrt(1 + sigma^2), t is a timestep (`ddpm_input`).
- Flow matching: a = 1 - t, so t = sigma / (1 + sigma), data at t = 0 (`flow_input`).
- EDM's preconditioned denoiser: a = 1, t = sigma (`edm_input`).

It predicts out = p eps + q x_0, so x_0 = (p x_t - b out) / (p a - q b) (`PREDICTIONS`).
"""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from geomem import paths
from geomem.diffusion.sampler import Denoiser

__all__ = [
    "PREDICTIONS",
    "NetworkInput",
    "adapt",
    "ddpm_input",
    "edm_input",
    "flow_input",
    "from_diffusers",
    "from_torch",
    "load",
]

# What a network predicts: (a, b) -> (p, q) of out = p eps + q x_0.
PREDICTIONS: dict[str, Callable[[Any, Any], tuple[Any, Any]]] = {
    "sample": lambda a, b: (0.0, 1.0),
    "epsilon": lambda a, b: (1.0, 0.0),
    "v_prediction": lambda a, b: (a, -b),
    "velocity": lambda a, b: (1.0, -1.0),
}


class NetworkInput(NamedTuple):
    """What a network sees at noise level sigma.

    Attributes:
      scale: maps sigma to a, the factor of x = x_0 + sigma eps.
      time: maps sigma to the network's time argument.
    """

    scale: Callable[[jax.Array], jax.Array]
    time: Callable[[jax.Array], jax.Array]


def ddpm_input(alphas_cumprod: Float[np.ndarray, " timesteps"]) -> NetworkInput:
    """Return the input of a DDPM with these products abar_t of 1 - beta.

    Timesteps between two of the schedule's are fractional, interpolated in ln sigma. Beyond its
    noise levels the network sees the nearest timestep. Timesteps with abar = 0 are left out.

    Raises:
      ValueError: fewer than two values, or values that do not descend from 1 to 0.
    """
    abar = np.asarray(alphas_cumprod, np.float64)
    descends = abar.ndim == 1 and len(abar) > 1 and bool((np.diff(abar) < 0).all())
    if not descends or not (abar[-1] >= 0 and abar[0] < 1):
        raise ValueError(
            "alphas_cumprod must be a 1D array that descends between 1 and 0, got "
            f"{np.array2string(abar, threshold=6, edgeitems=2, separator=', ')}."
        )
    abar = abar[abar > 0]
    log_sigmas = np.log((1 - abar) / abar) / 2
    return NetworkInput(
        lambda sigma: 1 / jnp.sqrt(1 + sigma**2),
        lambda sigma: jnp.interp(jnp.log(sigma), log_sigmas, np.arange(len(abar))),
    )


def flow_input(times: float = 1.0) -> NetworkInput:
    """Return the input of flow matching with data at t = 0; the network sees `times` t."""
    return NetworkInput(lambda sigma: 1 / (1 + sigma), lambda sigma: times * sigma / (1 + sigma))


def edm_input() -> NetworkInput:
    """Return the input of EDM's denoiser D(x; sigma); it goes with the prediction "sample"."""
    return NetworkInput(jnp.ones_like, lambda sigma: sigma)


def adapt(
    network: Callable[[jax.Array, jax.Array], jax.Array], prediction: str, given: NetworkInput
) -> Denoiser:
    """Return a network of (x_t [B, ...], t [B]) as a denoiser of (x [B, ...], sigma).

    Args:
      network: a JAX function, or a PyTorch module from `from_torch`.
      prediction: "sample" (x_0), "epsilon", "v_prediction" (a eps - b x_0) or "velocity"
        (eps - x_0).
      given: what the network sees, as from `ddpm_input`.

    Raises:
      ValueError: an unknown prediction.

    >>> gaussian = adapt(lambda x, t: x * 0.6, "epsilon", edm_input())
    >>> gaussian(np.float32([[2.0]]), 0.5)
    Array([[1.4]], dtype=float32)
    """
    if prediction not in PREDICTIONS:
        raise ValueError(f"prediction must be one of {', '.join(PREDICTIONS)}, got {prediction!r}.")

    def denoiser(x: Float[Array, "batch ..."], sigma) -> Float[Array, "batch ..."]:
        x = jnp.asarray(x)
        sigma = jnp.broadcast_to(jnp.asarray(sigma, x.dtype), x.shape[:1])
        a = jnp.reshape(given.scale(sigma), (-1, *[1] * (x.ndim - 1)))
        b = a * sigma.reshape(a.shape)
        p, q = PREDICTIONS[prediction](a, b)
        out = network(a * x, given.time(sigma).astype(x.dtype))
        return (p * a * x - b * out) / (p * a - q * b)

    return denoiser


def from_torch(
    module: Callable[..., Any], device: str = "cpu", *, channels_first: bool = True
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Return a PyTorch module of (x_t, t) as a function of JAX arrays, also under `jit`.

    Args:
      module: maps x [B, C, H, W] and t [B] to a tensor like x, or to an object with such a tensor
        as `.sample`, like diffusers' networks.
      device: the PyTorch device of the module.
      channels_first: whether the module takes images as [B, C, H, W]; x here is [B, H, W, C].
    """
    torch = _require("torch")

    def run(x, t):
        with torch.inference_mode():
            x, t = (torch.tensor(np.asarray(a), device=device) for a in (x, t))
            swap = channels_first and x.ndim > 2
            out = module(x.movedim(-1, 1).contiguous() if swap else x, t)
            out = getattr(out, "sample", out)
            return (out.movedim(1, -1) if swap else out).float().cpu().numpy()

    def call(x, t):
        shape = jax.ShapeDtypeStruct(x.shape, np.float32)
        x, t = x.astype(np.float32), t.astype(np.float32)
        return jax.pure_callback(run, shape, x, t, vmap_method="sequential")

    return call


def from_diffusers(folder: str | os.PathLike[str], device: str = "cpu") -> Denoiser:
    """Return the denoiser of a diffusers pipeline that was saved to a folder.

    Reads unet/ (a UNet2DModel with safetensors weights) and scheduler/ (a DDPM, DDIM or other
    scheduler with betas, or a flow-matching scheduler). Works offline.

    Raises:
      ValueError: the folder does not hold such a pipeline, or diffusers is not installed.
    """
    diffusers = _require("diffusers")
    folder = paths.as_path(folder)
    log = logging.getLogger("diffusers")
    level = log.level
    log.setLevel(logging.CRITICAL)  # it logs what is checked here
    try:
        scheduler = paths.read_json(folder / "scheduler" / "scheduler_config.json")
        network, loaded = diffusers.UNet2DModel.from_pretrained(
            str(folder / "unet"),
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
        if missing := loaded["missing_keys"]:  # diffusers would draw them at random
            raise ValueError(f"unet/ lacks {len(missing)} of the weights, such as {min(missing)}")
        name, kind = scheduler.get("_class_name", ""), scheduler.get("prediction_type", "epsilon")
        times = float(scheduler.get("num_train_timesteps", 1000))
        if "FlowMatch" in name:
            given, kind = flow_input(times), "velocity"
        else:
            steps = diffusers.DDPMScheduler.from_config(scheduler)
            given = ddpm_input(steps.alphas_cumprod.numpy())
    except MemoryError:
        raise
    except Exception as error:  # diffusers and safetensors raise errors of many types
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ValueError(
            f"denoiser must be package.module:name or a saved diffusers pipeline, got {folder} "
            f"({reason})."
        ) from None
    finally:
        log.setLevel(level)
    network = from_torch(network.to(device).eval(), device)
    return adapt(network, kind, given)


def load(name: str, device: str = "cpu") -> Denoiser:
    """Return the denoiser "package.module:name" from Python's path, or a diffusers folder's.

    Raises:
      ValueError: it cannot be imported or called, or as in `from_diffusers`.
    """
    module, _, attribute = name.partition(":")
    if not attribute or paths.as_path(name).exists():
        return from_diffusers(name, device)
    try:
        denoiser = getattr(importlib.import_module(module), attribute)
    except (Exception, SystemExit) as error:  # a module may raise anything when it is imported
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise ValueError(f"denoiser must be package.module:name, got {name} ({reason}).") from None
    if not callable(denoiser):
        raise ValueError(f"denoiser must be a function of (x, sigma), got {name}: {denoiser!r}.")
    return cast(Denoiser, denoiser)


def _require(package):
    try:
        return importlib.import_module(package)
    except ImportError:
        raise ValueError(f"{package} must be installed: pip install 'geomem[torch]'.") from None
