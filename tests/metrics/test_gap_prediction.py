"""What a gap can remove, against the two denoisers' own flows."""

import numpy as np
import pytest

from geomem import data
from geomem.diffusion import grids
from geomem.metrics import gap_prediction

GRID = grids.edm_grid(12)
SEEDS = range(48)


@pytest.fixture(scope="module")
def digits():
    dataset = data.load("digits")
    return dataset.train[:32], np.concatenate([dataset.train[:32], dataset.test])


def test_what_is_decided_grows_as_the_edge_falls(digits):
    found = gap_prediction.predict(*digits, (90.0, 1.0, 0.003), GRID, seeds=SEEDS)
    rates = [rate.rate for rate in found.rate]
    # From the start on the pool's own flow: a copy of each of its images is as likely as another.
    assert rates[0] < 0.25
    assert rates[0] <= rates[1] <= rates[2] == 1
    assert found.chance == found.rate[0]
    np.testing.assert_allclose(found.decided[[0, 2]], (0, 1))
    assert found.memorized.shape == (3, len(SEEDS))


def test_copies_by_chance_are_taken_out(digits):
    """Half of a small pool are training images: its own flow ends on them as often."""
    train, pool = digits
    found = gap_prediction.predict(train, pool[:64], (90.0, 1.0, 0.003), GRID, seeds=SEEDS)
    assert found.chance.rate > 0.3
    np.testing.assert_allclose(found.decided[[0, 2]], (0, 1))
    large = gap_prediction.predict(train, pool, (1.0,), GRID, seeds=SEEDS)
    assert abs(found.decided[1] - large.decided[0]) < 0.3


def test_a_pool_of_the_training_images_is_refused(digits):
    train, _ = digits
    with pytest.raises(ValueError, match="pool: 32 images, whose own flow always ends on training"):
        gap_prediction.predict(train, train, (0.5,), GRID, seeds=SEEDS)


def test_edges_between_the_same_levels_share_a_flow(digits):
    high, low = GRID[5:7]
    found = gap_prediction.predict(*digits, (low, low + 0.9 * (high - low)), GRID, seeds=SEEDS)
    assert (found.memorized[0] == found.memorized[1]).all()


def test_bad_input_is_named(digits):
    with pytest.raises(ValueError, match="highs: none"):
        gap_prediction.predict(*digits, (), GRID)
    with pytest.raises(ValueError, match="pool: images of"):
        gap_prediction.predict(digits[0], digits[1][:, :4], (1.0,), GRID)
