"""The PyTorch network of the benchmark computes what the Flax network computes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from geomem.diffusion import preconditioning, schedules, training_step, unet


def test_outputs_match_the_flax_network():
    torch = pytest.importorskip("torch")
    from geomem.experiments.benchmarks import torch_training

    network = unet.UNet(16, (1, 2), 1, (4,), patch=2)
    rng = np.random.default_rng(0)
    x, noise = rng.normal(size=(2, 8, 8, 3)).astype(np.float32), np.float32([0.3, -0.7])
    params = jax.eval_shape(lambda: network.init(jax.random.key(0), x, noise))["params"]
    # Initial output weights are nearly zero; these are not.
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32) * 0.2, params)
    expected = jax.jit(network.apply)({"params": params}, x, noise)
    with torch.no_grad():
        p = torch_training.parameters(params)
        output = torch_training.network(
            p, network, torch.tensor(x.transpose(0, 3, 1, 2).copy()), torch.tensor(noise)
        )
    error = np.abs(output.numpy().transpose(0, 2, 3, 1) - expected).max()
    assert error <= 1e-4 * np.abs(expected).max()

    denoiser = preconditioning.EDMDenoiser(network)
    recipe = training_step.Recipe(schedules.lognormal(), batch=4, augment=0)
    pixels = rng.integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    step = torch_training.trainer(denoiser, recipe, jax.tree.map(jnp.asarray, params), pixels)
    first = step()
    assert min(step() for _ in range(5)) < first
