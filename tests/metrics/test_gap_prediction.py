"""The predicted memorization against the two denoisers' own flows."""

import numpy as np
import pytest

from geomem import data
from geomem.diffusion import grids
from geomem.metrics import gap_prediction

GRID = grids.edm_grid(12)
SEEDS = range(48)
HIGHS = (90.0, 1.0, 0.003)


@pytest.fixture(scope="module")
def digits():
    dataset = data.load("digits")
    return dataset.train[:32], np.concatenate([dataset.train[:32], dataset.test])


@pytest.fixture(scope="module")
def prediction(digits):
    """At HIGHS, and at two more edges between the same two levels."""
    high, low = GRID[5:7]
    return gap_prediction.predict(
        *digits, (*HIGHS, low, low + 0.9 * (high - low)), GRID, seeds=SEEDS
    )


def test_lower_edges_decide_more_samples(prediction):
    rates = [rate.rate for rate in prediction.rate[:3]]
    # With the highest edge, the flow is the pool's, which ends on each image equally often.
    assert rates[0] < 0.25
    assert rates[0] <= rates[1] <= rates[2] == 1
    assert prediction.chance == prediction.rate[0]
    np.testing.assert_allclose(prediction.decided[[0, 2]], (0, 1))
    assert prediction.memorized.shape == (5, len(SEEDS))


def test_subtracts_copies_by_chance(digits, prediction):
    """Half of a small pool is training images, so its own flow often ends on them."""
    train, pool = digits
    small = gap_prediction.predict(train, pool[:64], HIGHS, GRID, seeds=SEEDS)
    assert small.chance.rate > 0.3
    np.testing.assert_allclose(small.decided[[0, 2]], (0, 1))
    assert abs(small.decided[1] - prediction.decided[1]) < 0.3


def test_edges_between_the_same_levels_share_a_flow(prediction):
    assert (prediction.memorized[3] == prediction.memorized[4]).all()


def test_rejects_a_pool_of_training_images_only(digits):
    train, _ = digits
    message = "pool must hold many images beside the training images, got 32 images"
    with pytest.raises(ValueError, match=message):
        gap_prediction.predict(train, train, (0.5,), GRID, seeds=SEEDS)


def test_rejects_bad_input(digits):
    with pytest.raises(ValueError, match="highs must not be empty"):
        gap_prediction.predict(*digits, (), GRID)
    with pytest.raises(ValueError, match="pool must be images of shape"):
        gap_prediction.predict(digits[0], digits[1][:, :4], (1.0,), GRID)
