"""Duplicates against float64 loops, and planted copies of photographs, flat ones included."""

import itertools

import numpy as np
import pytest
import scipy.ndimage

from geomem import data
from geomem.metrics import _detail, _flat, _texture, _texture_search, duplicates, planted
from geomem.metrics.alignment import Transform

SHAPE = (10, 9, 3)
PLANTED = {  # kind: what the finder calls it
    "noise 0.05": "near",
    "JPEG 75": "near",
    "flip": "mirrored",
    "shift 2": "shifted",
    "crop 3, enlarged": "cropped",
    "brightness x1.3": "brightened",
}


def to_uint8(images):
    return np.clip(np.rint((images + 1) * 127.5), 0, 255).astype(np.uint8)


def smooth(rng, count, shape=SHAPE):
    """Random images whose low frequencies dominate."""
    return 0.1 * rng.uniform(-1, 1, (count, *shape)).cumsum(1).cumsum(2).astype(np.float32)


def slow_texture(image, model, transform, window):
    """Mean over a fine grid of points of image times cosine, one cosine at a time."""
    flip, crop, down, right = transform if window else (False, 0, 0, 0)
    scale, fine = 1 - 2 * crop / min(model.shape), 400
    points, sizes = [], []
    for side, shift in zip(model.shape, (down, right), strict=True):
        size = side - 2 * model.margin
        t = (np.arange(fine) + 0.5) / fine
        points.append((t, np.floor(side / 2 + shift + scale * size * (t - 0.5)).astype(int)))
        sizes.append(size)
    (v, rows), (u, columns) = points
    values = image[rows][:, columns] @ model.channels.T
    texture = np.zeros(model.weight.shape)
    for k, m in np.ndindex(texture.shape[:2]):
        sign = -1 if flip and m % 2 else 1
        wave = np.cos(np.pi * k * v)[:, None, None] * np.cos(np.pi * m * u)[None, :, None]
        norm = np.sqrt(np.prod(sizes) * (1 + (k > 0)) * (1 + (m > 0)))
        texture[k, m] = sign * norm * (wave * values).mean(axis=(0, 1)) * model.weight[k, m]
    return texture.ravel()


@pytest.mark.parametrize(
    "transform",
    [Transform(False, 0, 0, 0), Transform(True, 0, 1, -1), Transform(True, 1, -1, 0)],
)
def test_match_equals_loop(rng, transform):
    images = smooth(rng, 12).astype(np.float64)
    model = _texture.fit(images)
    found = _texture.match(images[0], images[1], transform, model)
    u, v = (slow_texture(images[i], model, transform, window=i == 0) for i in (0, 1))
    assert found.correlation == pytest.approx(u @ v / np.sqrt(u @ u * (v @ v)), abs=2e-3)
    size = np.where(model.weight > 0, model.weight, np.inf).ravel()
    u, v = u / size, v / size  # without weights
    assert found.gain == pytest.approx(u @ v / (u @ u), abs=3e-3)


def changed_set(rng):
    """10 smooth images, some of them copies with noise near the cutoff."""
    images = smooth(rng, 10)
    for i in range(5):
        noise = rng.normal(size=SHAPE) * images[i].std() * 0.01 * i
        images[5 + i] = (images[i, :, ::-1] if i % 2 else np.roll(images[i], 1, 0)) + noise
    return images


def test_finds_the_pairs_of_a_loop(rng):
    images = changed_set(rng)
    result = duplicates.find(images)
    textures = _texture_search.Textures(images)
    margin = textures.model.margin
    steps = range(-margin, margin + 1)
    transforms = [
        Transform(bool(flip), crop, down, right)
        for flip in (0, 1)
        for crop in range(margin + 1)
        for down in steps
        for right in steps
    ]
    pairs = set()
    for i, j in itertools.combinations(range(len(images)), 2):
        options = [(i, j, t) for t in transforms] + [(j, i, t) for t in transforms if t.crop]
        matches = [_texture.match(images[x], images[y], t, textures.model) for x, y, t in options]
        if any(
            np.sqrt(1 - np.clip(m.correlation, 0, 1) ** 2) <= result.cutoff
            and np.arctanh(np.clip(m.correlation, 0, 1 - 1e-12)) * np.sqrt(m.parts) >= 2.6
            for m in matches
        ):
            pairs.add((i, j))
    found = {(min(p.image, p.copy), max(p.image, p.copy)) for p in result.pairs}
    assert found == pairs
    assert 2 <= len(pairs) < 10
    for pair in result.pairs:
        match = _texture.match(
            images[pair.image], images[pair.copy], pair.transform, textures.model
        )
        assert pair.distance == np.sqrt(1 - match.correlation**2) <= result.cutoff


def test_finds_and_names_changed_copies():
    pixels = data.load().train_split.pixels[:240]
    places = np.arange(240).reshape(6, 40)[:, :20]
    copies = [
        to_uint8(planted.plant(kind, data.to_float(pixels[place])))
        for kind, place in zip(PLANTED, places, strict=True)
    ]
    result = duplicates.find(np.concatenate([pixels, *copies]))
    found = {(min(p.image, p.copy), max(p.image, p.copy)): p.kind for p in result.pairs}
    expected = list(zip(places.ravel().tolist(), range(240, 360), strict=True))
    assert set(found) <= set(expected)
    for name, i in zip(PLANTED.values(), range(0, 120, 20), strict=True):
        kinds = [found.get(pair, "") for pair in expected[i : i + 20]]
        assert sum(map(bool, kinds)) >= (19 if i == 20 else 20), name  # JPEG removes textures
        assert sum(name in kind for kind in kinds) >= 17, name


def test_groups_are_not_chained():
    """A change in steps: each image is near to the next, but the ends are unlike."""
    pixels = np.float32(data.load().train[:150])
    steps = np.linspace(0, 1, 7, dtype=np.float32)[:, None, None, None]
    chain = (1 - steps) * pixels[:1] + steps * pixels[1:2]
    result = duplicates.find(np.concatenate([chain, pixels[2:]]))
    for members in result.groups():
        head = result.group[members[0]]
        direct = {p.image + p.copy - head for p in result.pairs if head in (p.image, p.copy)}
        assert set(members) <= direct | {head}
    assert result.group[0] != result.group[6]


def test_flat_images_are_blank_or_different(rng):
    """Rounding noise on a plain background is no evidence, and exact copies are."""
    pixels = data.load().train_split.pixels[:100]
    plain = np.full((20, 32, 32, 3), 200, np.uint8) + rng.integers(0, 2, (20, 32, 32, 3), np.uint8)
    result = duplicates.find(np.concatenate([pixels, plain, plain[:1], 0 * plain[:2]]))
    assert [(p.image, p.copy, p.kind) for p in result.pairs] == [
        (100, 120, "exact"),
        (121, 122, "exact"),
    ]
    assert result.blank.tolist() == [False] * 121 + [True] * 2


def sky(rng, count, side=32):
    """Gradients of random color and direction, with a little noise."""
    place = np.linspace(-1, 1, side)
    slopes = rng.uniform(5, 12, (count, 2, 1, 1, 1)) * rng.choice([-1, 1], (count, 2, 1, 1, 1))
    colors = rng.uniform(40, 200, (count, 1, 1, 3))
    pixels = colors + slopes[:, 0] * place[:, None, None] + slopes[:, 1] * place[:, None]
    return np.clip(np.rint(pixels + rng.normal(size=pixels.shape)), 0, 255).astype(np.uint8)


def test_close_pairs_equal_a_loop(rng, monkeypatch):
    """Skies and noisy copies of them, some a little beyond each limit."""
    skies = sky(rng, 40, 8)
    copies = (
        skies[:30] + rng.normal(size=(30, 8, 8, 3)) * np.linspace(0.3, 2.5, 30)[:, None, None, None]
    )
    images = np.concatenate([skies, np.clip(np.rint(copies), 0, 255).astype(np.uint8)])
    images = np.concatenate([images, rng.integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)])
    expected = {}
    for i, j in itertools.combinations(range(len(images)), 2):
        x, y = np.float64(images[i]), np.float64(images[j])
        contrast = min(np.sqrt(a.var(axis=(0, 1)).mean()) for a in (x, y))
        gap = np.sqrt(np.mean((x - y) ** 2))
        if gap <= 1.5 and gap < contrast / 4 and contrast < 16:
            expected[i, j] = gap / contrast
    assert 5 < len(expected) < 30
    for values in (100, _flat._VALUES):
        monkeypatch.setattr(_flat, "_VALUES", values)
        found = {(x, y): distance for x, y, distance in _flat.close_pairs(images)}
        assert found == pytest.approx(expected, rel=1e-4)


def walls(rng, side):
    """Photographs, four walls with one coarse picture, and the first wall half a pixel farther."""
    factor = side // 32
    photographs = data.load().train[:51].repeat(factor, axis=1).repeat(factor, axis=2)
    noise = rng.normal(size=(4, 2 * side, 2 * side, 1))
    small, large = (
        scipy.ndimage.gaussian_filter(noise, (0, sigma * factor, sigma * factor, 0))
        for sigma in (0.8, 1.6)
    )
    details = 0.09 * (small - large) / (small - large).std()
    coarse = 0.3 * photographs[50]
    images = np.concatenate([photographs[:50], coarse + details[:, ::2, ::2]])
    return images, coarse + details[:1, 1::2, 1::2]


@pytest.mark.parametrize("side", [64, 96])
def test_walls_with_other_details_are_no_copies(rng, side, monkeypatch):
    images, farther = walls(rng, side)
    copy = farther[:, :, ::-1] + 0.02 * rng.normal(size=farther.shape)
    result = duplicates.find(to_uint8(np.concatenate([images, copy])))
    assert [pair[:2] for pair in result.pairs] == [(50, 54)]
    assert "mirrored" in result.pairs[0].kind
    assert duplicates.find(7 * images).pairs == []  # of any scale
    monkeypatch.setattr(_detail.Details, "agree", lambda *args: True)
    assert len(duplicates.find(to_uint8(images)).pairs) == 6


def test_details_agree_up_to_noise_compression_and_fractions_of_a_pixel():
    pixels = data.load().train_split.pixels[:200]
    images = data.to_float(pixels)
    half = (images[:, :, :-1] + images[:, :, 1:]) / 2  # half a pixel to the right
    half = np.concatenate([half, half[:, :, -1:]], axis=2)
    for copies in (planted.plant("noise 0.05", images), planted.plant("JPEG 75", images), half):
        details = _detail.Details(np.concatenate([pixels, to_uint8(copies)]), np.arange(400), 32)
        same = Transform(False, 0, 0, 0)
        assert sum(details.agree(i, 200 + i, same) for i in range(200)) >= 198
        assert sum(details.agree(i, 200 + (i + 1) % 200, same) for i in range(200)) <= 1


def test_finds_compressed_skies():
    """JPEG leaves only a gradient of a sky; skies of other colors are no copies."""
    photographs = data.load().train_split.pixels[:100].repeat(3, axis=1).repeat(3, axis=2)
    skies = sky(np.random.default_rng(0), 20, 96)
    copies = to_uint8(planted.plant("JPEG 75", data.to_float(skies)))
    result = duplicates.find(np.concatenate([photographs, skies, copies]))
    found = {pair[:3] for pair in result.pairs}
    assert found <= {(i, i + 20, "near") for i in range(100, 120)}
    assert len(found) >= 19


def test_leaks_come_with_the_training_image():
    train, heldout = data.load().train_split.pixels[:150], data.load().test_split.pixels[:60].copy()
    heldout[5], heldout[6] = train[3], train[4, :, ::-1]
    heldout[7] = heldout[6]  # has no pair but the exact one
    result = duplicates.find(train, heldout)
    assert {(p.image, p.copy, p.kind) for p in result.leaks()} == {
        (3, 155, "exact"),
        (4, 156, "mirrored"),
    }
    assert result.train == 150
    np.testing.assert_array_equal(result.leaked(), [155, 156, 157])
    kept = result.keep()
    assert {3, 4} <= set(kept)
    assert not {155, 156, 157} & set(kept)
    assert len(kept) == 207


def test_larger_images_are_reduced(rng):
    small = data.load().train_split.pixels[:60]
    large = small.repeat(3, axis=1).repeat(3, axis=2)
    large[50] = np.roll(large[0], 4, axis=1)
    result = duplicates.find(large)
    assert [(p.image, p.copy, p.kind) for p in result.pairs] == [(0, 50, "shifted")]
    whole = duplicates.find(small)
    assert whole.typical == pytest.approx(result.typical, rel=0.1)
    # Averaging removes noise, so larger images must agree more closely.
    assert result.cutoff / whole.cutoff == pytest.approx(
        0.8 * min(1, result.typical / 0.9) ** 4 / min(1, whole.typical / 0.9) ** 4
    )


def test_latents_and_vectors_of_any_scale(rng):
    latents = 5 * rng.normal(size=(80, 8, 8, 4)).astype(np.float32)
    latents[70] = latents[1] + rng.normal(size=(8, 8, 4))
    vectors = latents.reshape(80, -1)
    for values in (latents, vectors, vectors[:, :7] * 1e3):
        assert [g.tolist() for g in duplicates.find(values).groups()] in ([[1, 70]], [])
    assert [g.tolist() for g in duplicates.find(vectors).groups()] == [[1, 70]]


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_accepts_few_or_identical_images(count):
    same = np.full((count, 4, 4, 1), 7, np.uint8)
    result = duplicates.find(same)
    assert result.group.tolist() == [0] * count
    assert len(result.pairs) == count - 1
    different = np.random.default_rng(0).integers(0, 256, (count, 9, 9, 3), dtype=np.uint8)
    assert not duplicates.find(different).pairs


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"images": np.zeros((5, 4, 4))}, r"images must have shape \[N, H, W, C\] or \[N, d\]"),
        ({"heldout": np.zeros((5, 4, 5, 1))}, r"heldout must have shape \(4, 4, 1\) like images"),
        ({"images": np.full((5, 4, 4, 1), np.nan)}, "images must be finite, got NaN or inf in 5"),
        ({"threshold": 1.0}, "threshold must be between 0 and 1, got 1."),
    ],
)
def test_rejects_bad_input(changes, message):
    arguments = {"images": np.zeros((5, 4, 4, 1), np.float32), "heldout": None, "threshold": 0.5}
    arguments |= changes
    with pytest.raises(ValueError, match=message):
        duplicates.find(arguments.pop("images"), arguments.pop("heldout"), **arguments)


def test_one_coordinate_has_no_texture(rng):
    """Up to its sign, it is always the same."""
    vectors = rng.normal(size=(40, 1)).astype(np.float32)
    vectors[7] = vectors[3]
    result = duplicates.find(vectors)
    assert [(pair.image, pair.copy, pair.kind) for pair in result.pairs] == [(3, 7, "exact")]
