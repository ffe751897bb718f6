"""The benchmark's PyTorch baseline computes the same estimate."""

import numpy as np
import pytest

from geomem.geometry import local


@pytest.mark.parametrize("side", [3, 5])
def test_baseline_is_the_equivariant_local_score(cifar, side):
    pytest.importorskip("torch")
    from geomem.experiments.benchmarks import torch_local

    images = cifar[0].reshape(-1, 32, 32, 3)[:10, 10:16, 12:17].copy()
    noise = np.random.default_rng(0).standard_normal((3, 6, 5, 3)).astype(np.float32)
    y = images[:3] + np.float32(0.8) * noise
    expected = np.asarray(local.els(images, side)(y, 0.8))
    np.testing.assert_allclose(torch_local.els(y, images, 0.8, side), expected, atol=1e-4)
