"""The aligned search against loops over all transforms and images, in float64."""

import numpy as np
import pytest

from geomem import data
from geomem.metrics import aligned
from geomem.metrics.alignment import Alignment, Transform, shrink, squared_distances

SMOOTH = (12, 10, 3)
CASES = [
    ((8, 8, 1), Alignment(shift=1)),
    (SMOOTH, Alignment(shift=2, crop=1, gain=2.0)),
]


def smooth(rng, count, shape):
    """Random images whose low frequencies dominate."""
    return 0.1 * rng.uniform(-1, 1, (count, *shape)).cumsum(1).cumsum(2).astype(np.float32)


def slow_distance(sample, image, transform, gain):
    """One pair, pixel by pixel; the best gain by a fine grid around the closed form's range."""
    flip, crop, down, right = transform
    height, width, channels = image.shape
    y = np.float64(sample)
    y = y[:, ::-1] if flip else y
    if crop:
        y = np.stack(
            [shrink(height, crop) @ y[..., c] @ shrink(width, crop).T for c in range(channels)], -1
        )
    pairs = [
        (y[i - crop - down, j - crop - right], np.float64(image[i, j]))
        for i in range(height)
        for j in range(width)
        if 0 <= i - crop - down < y.shape[0] and 0 <= j - crop - right < y.shape[1]
    ]
    a, b = np.concatenate([p[0] for p in pairs]), np.concatenate([p[1] for p in pairs])
    scale = image.size / len(a)
    if gain == 1:
        return scale * ((a - b) ** 2).sum()
    gains = np.geomspace(1 / gain, gain, 2001)[:, None]
    residual = gains * (a - a.mean()) - (b - b.mean())
    return scale * (residual**2).sum(axis=1).min()


def loop(samples, train, alignment):
    """All aligned distances [Q, N], and their transforms."""
    pairs = np.repeat(samples, len(train), axis=0), np.tile(train, (len(samples), 1, 1, 1))
    squares = np.stack(
        [squared_distances(*pairs, t, alignment.gain) for t in alignment.transforms()]
    ).reshape(-1, len(samples), len(train))
    return np.sqrt(squares.min(axis=0)), squares.argmin(axis=0)


@pytest.mark.parametrize("gain", [1.0, 1.5])
@pytest.mark.parametrize(
    "transform",
    [
        Transform(False, 0, 0, 0),
        Transform(True, 0, 2, -1),
        Transform(False, 1, -2, 2),
        Transform(True, 2, 0, 1),
    ],
)
def test_definition_matches_pixel_loop(rng, transform, gain):
    samples, images = smooth(rng, 3, SMOOTH), smooth(rng, 3, SMOOTH)
    squares = squared_distances(samples, images, transform, gain)
    slow = [slow_distance(y, x, transform, gain) for y, x in zip(samples, images, strict=True)]
    np.testing.assert_allclose(squares, slow, rtol=1e-12 if gain == 1 else 1e-6)


@pytest.fixture(scope="module", params=CASES, ids=["gray", "wide"])
def case(request):
    """Copies near the threshold and other images: (samples, train, alignment, all distances)."""
    shape, alignment = request.param
    rng = np.random.default_rng(0)
    train, other = smooth(rng, 150, shape), smooth(rng, 12, shape)
    train[7] = train[3]  # exact duplicates
    train[11] = np.roll(train[12], 1, axis=2)
    samples = [train[:8], np.flip(train[8:16], 2), 1.1 * train[16:20] + 0.1, other]
    samples = np.concatenate(samples).astype(np.float32)
    # Moved towards another image until d1 / d2 is about a half.
    between = train[20:28] + 0.34 * (train[30:38] - train[20:28])
    samples = np.concatenate([samples, between])
    return samples, train, alignment, loop(samples, train, alignment)


@pytest.fixture(params=[0, 64], ids=["screened", "all compared"])
def ways(request, monkeypatch):
    """The last open samples are screened again, or compared with all images in blocks."""
    monkeypatch.setattr(aligned, "_FEW", request.param)
    monkeypatch.setattr(aligned, "_TOGETHER", 64)


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.usefixtures("ways")
def test_search_equals_loop(case, grouped):
    samples, train, alignment, (distance, transform) = case
    group = np.arange(150) // 2 if grouped else None
    result = aligned.nearest(samples, train, alignment, group=group, exact_below=1.0)
    own = np.arange(150) if group is None else group
    first = distance.argmin(axis=1)
    rows = np.arange(len(samples))
    second = np.where(own == own[first][:, None], np.inf, distance).argmin(axis=1)
    index = np.stack([first, second], axis=1)
    assert result.exact.all()
    np.testing.assert_array_equal(result.index, index)
    np.testing.assert_array_equal(result.distance, distance[rows[:, None], index])
    np.testing.assert_array_equal(result.transform, transform[rows[:, None], index])


@pytest.mark.usefixtures("ways")
def test_all_small_ratios_are_exact(case):
    """Without proof of all rows, the ratios below the limit are still all those of the loop."""
    samples, train, alignment, (distance, _) = case
    ratio = np.divide(*np.sort(distance, axis=1).T[:2])
    result = aligned.nearest(samples, train, alignment, exact_below=0.6)
    low = ratio < 0.6
    assert 0.2 < low.mean() < 0.9
    np.testing.assert_array_equal(result.ratio < 0.6, low)
    np.testing.assert_array_equal(result.ratio[low], ratio[low])
    assert (result.ratio[~low] >= 0.6).all()


def test_finds_transformed_photographs():
    """Flips, shifts, crops and brightness of CIFAR-10 images, each with its transform."""
    train = data.load().train[:64]
    alignment = Alignment.wide(32)
    cubic = np.linalg.pinv(shrink(32, 3))
    cropped = np.einsum("ah,nhwc,bw->nabc", cubic, train[30:40, 3:29, 3:29], cubic)
    samples = np.concatenate(
        [
            np.flip(train[:10], 2),
            np.roll(train[10:20], (2, -1), (1, 2)),
            0.7 * train[20:30] - 0.2,
            cropped,
        ]
    ).astype(np.float32)
    result = aligned.nearest(samples, train, alignment)
    np.testing.assert_array_equal(result.index[:, 0], np.arange(40))
    assert result.ratio.max() < 0.05
    names = [str(alignment.transforms()[i]) for i in result.transform[:, 0]]
    assert names == 10 * ["flip"] + 10 * ["shift -2 +1"] + 10 * ["none"] + 10 * ["crop 3"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"samples": np.zeros((2, 8, 8), "f")}, r"samples must be floats \[N, H, W, C\]"),
        ({"samples": np.zeros((2, 8, 8, 3), "f")}, r"samples must be images of shape \(8, 8, 1\)"),
        ({"train": np.full((3, 8, 8, 1), np.nan, "f")}, "train must be finite"),
        ({"alignment": Alignment(shift=4)}, "train must have sides of 10 or more"),
        ({"group": np.zeros(3, int)}, "train must hold images of 2 or more groups, got 1"),
        ({"group": np.zeros(2, int)}, r"group must have shape \(3,\)"),
        ({"exact_below": 0}, r"exact_below must be in \(0, 1\], got 0"),
    ],
)
def test_rejects_bad_input(changes, message):
    arguments = {"samples": np.zeros((2, 8, 8, 1), "f"), "train": np.zeros((3, 8, 8, 1), "f")}
    with pytest.raises(ValueError, match=message):
        aligned.nearest(**{**arguments, **changes})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"shift": -1}, "shift must be 0 or more, got -1"),
        ({"crop": -2}, "crop must be 0 or more, got -2"),
        ({"gain": 0.5}, "gain must be 1 or more, got 0.5"),
    ],
)
def test_rejects_bad_alignment(values, message):
    with pytest.raises(ValueError, match=message):
        Alignment(**values)
