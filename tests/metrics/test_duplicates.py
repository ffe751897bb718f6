"""All exact and near-duplicates against a float64 loop over all pairs."""

import io
import itertools

import numpy as np
import oracles
import pytest
from PIL import Image

from geomem import data
from geomem.metrics import duplicates


def check(images, result):
    """Compare pairs, groups and nearest partners with a loop over all pairs."""
    values = data.to_float(images).reshape(len(images), -1)
    apart = np.sqrt(oracles.squared_distances(values, values))
    firsts = [
        min(j for j in range(i + 1) if (images[i] == images[j]).all()) for i in range(len(images))
    ]
    assert result.exact.tolist() == firsts
    group, pairs = list(range(len(images))), 0
    for i, j in itertools.combinations(range(len(images)), 2):
        if apart[i, j] <= result.cutoff:
            pairs += firsts[i] == i and firsts[j] == j
            old, new = max(group[i], group[j]), min(group[i], group[j])
            group = [new if g == old else g for g in group]
    assert result.pairs == pairs
    assert result.group.tolist() == group
    np.fill_diagonal(apart, np.inf)
    near = apart.min(axis=1) <= result.cutoff
    np.testing.assert_array_equal(result.nearest >= 0, near)
    np.testing.assert_allclose(result.distance[near], apart.min(axis=1)[near], rtol=1e-12)
    assert np.isinf(result.distance[~near]).all()
    partners = np.where(near, result.nearest, 0)
    np.testing.assert_allclose(apart[near, partners[near]], apart.min(axis=1)[near], rtol=1e-12)
    return pairs


def planted(rng, images, copies):
    """Return images with exact and noised copies of the first `copies`, and their positions."""
    images, places = images.copy(), rng.permutation(np.arange(copies, len(images)))[:copies]
    for source, place in enumerate(places):
        noise = rng.normal(0, 2, images.shape[1:]) * (source % 3)
        images[place] = np.clip(np.rint(images[source] + noise), 0, 255)
    return images, places


@pytest.mark.parametrize("tile", [7, 64, 2048])
def test_matches_loop_over_all_pairs(rng, tile):
    pixels = data.load().train_split.pixels[:150]
    images, places = planted(rng, pixels, 24)
    result = duplicates.scan(images, tile=tile)
    assert check(images, result) == 16  # the other 8 copies are exact
    assert {tuple(group) for group in result.groups()} == set(enumerate(places.tolist()))


@pytest.mark.parametrize("shape", [(5, 7, 1), (33, 20, 3), (1, 600, 1), (2, 2, 300)])
def test_matches_loop_for_any_shape(rng, shape):
    """Block means rule out few pairs of white noise, so products and differences must decide."""
    images, _ = planted(rng, rng.integers(0, 256, (90, *shape), dtype=np.uint8), 12)
    check(images, duplicates.scan(images, tile=32))


def test_matches_loop_at_the_cutoff(rng):
    """Distances differ from the cutoff by a few float32 steps, far from the origin."""
    base = rng.uniform(-0.1, 0.1, (64, 6, 6, 1))
    first = duplicates.scan(base)
    step = np.zeros((6, 6, 1))
    step[0, 0] = 1
    close = [base[0] + step * first.cutoff * (1 + k * 1e-7) + 0 for k in range(-6, 7)]
    images = np.concatenate([base, close]).astype(np.float32) * np.float32(0.5) + np.float32(0.4)
    check(images, duplicates.scan(images, tile=16))


def test_groups_are_components_at_any_scale(rng):
    pixels = np.float32(data.load().train[:100])
    step = rng.normal(size=pixels.shape[1:]).astype(np.float32)
    step *= 5 / np.linalg.norm(step)
    images = np.concatenate([pixels, pixels[:1] + step, pixels[:1] + 2 * step])
    result = duplicates.scan(images)
    assert [group.tolist() for group in result.groups()] == [[0, 100, 101]]  # 0 and 101: 10 apart
    assert 5 < result.cutoff < 10
    half = duplicates.scan(images / 2 + np.float32(0.1))
    np.testing.assert_array_equal(half.group, result.group)
    assert half.typical == pytest.approx(result.typical / 2, rel=1e-5)
    assert not duplicates.scan(images, threshold=0.01).groups()


def test_pairs_every_image_with_its_copy(rng):
    pixels = data.load().train_split.pixels[:200]
    noised = np.clip(pixels + rng.integers(-3, 4, pixels.shape), 0, 255).astype(np.uint8)
    result = duplicates.scan(np.concatenate([pixels, noised]))
    assert [group.tolist() for group in result.groups()] == [[i, i + 200] for i in range(200)]
    alone = duplicates.scan(pixels)
    assert result.typical == pytest.approx(alone.typical, rel=0.2)
    assert not alone.groups()


def test_finds_jpeg_copies():
    pixels = data.load().train_split.pixels[:60]
    copies = []
    for image in pixels:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "jpeg", quality=90)
        copies.append(np.asarray(Image.open(file)))
    result = duplicates.scan(np.concatenate([pixels, copies]))
    assert [group.tolist() for group in result.groups()] == [[i, i + 60] for i in range(60)]


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_accepts_few_or_identical_images(count):
    same = np.full((count, 4, 4, 1), 7, np.uint8)
    result = duplicates.scan(same)
    assert result.group.tolist() == [0] * count
    assert len(result.groups()) == (count > 1)
    different = np.arange(count * 16, dtype=np.uint8).reshape(count, 4, 4, 1)
    assert not duplicates.scan(different).groups()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_rejects_nonfinite_values(value):
    images = np.zeros((5, 4, 4, 1), "f")
    images[2:4, 0, 0] = value
    with pytest.raises(ValueError, match="images must be finite, got NaN or inf in 2 of 5"):
        duplicates.scan(images)


def test_pair_count_does_not_recompile(count_compilations):
    few, many = (data.load().train_split.pixels[:150].copy() for _ in range(2))
    for images, count in ((few, 3), (many, 40)):
        images[-count:] = images[:count] ^ 1  # near copies: the last bit of each value
    assert duplicates.scan(few, tile=64).pairs == 3
    with count_compilations() as compiled:
        assert duplicates.scan(many, tile=64).pairs == 40
    assert not compiled
