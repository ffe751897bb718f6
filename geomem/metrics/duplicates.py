"""Copies inside a training set: exact ones by digest, near ones by distance, every pair of them.

A diffusion model memorizes what it sees twice first. Two images are near-duplicates where their
distance is far below the typical distance to a nearest neighbour in the set, which is a pure
number, whatever the images' size, contrast and scale.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse
import scipy.sparse.csgraph
import tqdm

from geomem.data import to_float
from geomem.metrics.features import check_finite
from geomem.points.exact import inner_products
from geomem.points.neighbours import two_nearest

__all__ = ["Duplicates", "scan"]

_REFERENCE = 2048  # images that show the typical distance, at most
_PROJECTED = 256  # dimensions that pairs are screened in, at most
_FEW = 4096  # pairs of a tile whose differences cost less than another screening
_VALUES = 2**22  # float64 values of differences at once (32 MB)


class Duplicates(NamedTuple):
    """Which of N images are copies of which.

    Attributes:
      exact: int64 [N], the first image with the same pixels; its own index where there is none
        before it.
      group: int64 [N], the first image of its group. Groups are the connected components of the
        near pairs, exact copies included.
      nearest: int64 [N], the nearest image of those within `cutoff`, -1 where there is none; of
        equally near ones the first.
      distance: float64 [N], the distance to it, infinite where there is none.
      pairs: the number of pairs of different images within `cutoff`; exact copies count once.
      typical: the typical distance to a nearest neighbour; 0 for fewer than 4 different images.
      cutoff: threshold * typical.
    """

    exact: np.ndarray
    group: np.ndarray
    nearest: np.ndarray
    distance: np.ndarray
    pairs: int
    typical: float
    cutoff: float

    def groups(self) -> list[np.ndarray]:
        """The groups of two or more images, as ascending indices, the largest group first."""
        order = np.argsort(self.group, kind="stable")
        starts = np.flatnonzero(np.diff(self.group[order], prepend=-1))
        parts = [part for part in np.split(order, starts[1:]) if len(part) > 1]
        return sorted(parts, key=lambda part: (-len(part), part[0]))


def scan(
    images: np.ndarray, *, threshold: float = 1 / 3, tile: int = 2048, progress: bool = False
) -> Duplicates:
    """All exact and near-duplicates of a set of images.

    x and y are near-duplicates where ||x - y|| <= threshold * t. The typical distance t is the
    median distance from an image to its nearest neighbour within a random quarter of the different
    images (at most 2,048, always the same). An image's copies are seldom in it, so that t stays
    what it is where every image has a copy.

    Every pair is looked at. Products of block means screen them: means scaled to be an orthogonal
    projection P obey ||P(x - y)|| <= ||x - y||, and the rounding error is bounded, so that no near
    pair is ruled out. What remains is decided by the differences, in float64. Memory: the images,
    256 numbers for each, and a tile of pairs; never all pairs.

    Args:
      images: [N, H, W, C], uint8, or floats (in [-1, 1] if `cutoff` is to be in geomem's units).
      threshold: in (0, 1). A third is also what makes a sample a memorized one. In CIFAR-10
        (t = 21) 7 of 50,000 images have another one within t / 3; JPEG copies (quality 90) do.
      tile: images that are compared with as many others at once.
      progress: show a tqdm bar, in pairs of tiles.

    Returns:
      Duplicates.

    Raises:
      ValueError: threshold out of range, or images that are not [N, H, W, C] or not finite.

    >>> images = np.random.default_rng(0).integers(0, 256, (16, 4, 4, 1), dtype=np.uint8)
    >>> images[5], images[9] = images[2], images[2] // 2 * 2
    >>> [group.tolist() for group in scan(images).groups()]
    [[2, 5, 9]]
    """
    if not 0 < threshold < 1:
        raise ValueError(f"duplicates: threshold {threshold:g}, wanted between 0 and 1")
    if images.ndim != 4 or len(images) == 0:
        raise ValueError(f"images: shape {images.shape}, wanted [N, H, W, C] with N >= 1")
    check_finite(images=images)
    exact = _first_with_same_bytes(images)
    different = np.flatnonzero(exact == np.arange(len(images)))
    typical = _typical_distance(images, different)
    found = Duplicates(
        exact=exact,
        group=exact.copy(),
        nearest=np.full(len(images), -1),
        distance=np.full(len(images), np.inf),
        pairs=0,
        typical=typical,
        cutoff=threshold * typical,
    )
    copies = np.flatnonzero(exact != np.arange(len(images)))
    _add_pairs(found, exact[copies], copies, np.zeros(len(copies)))
    count = 0
    tiles = -(-len(different) // tile)
    bar = tqdm.tqdm(
        _near_candidates(images, different, found.cutoff, tile),
        "copies",
        total=tiles * (tiles + 1) // 2,
        unit="tile",
        disable=not progress or tiles < 3,
    )
    for left, right in bar:
        distance = _distances(images, left, right)
        near = distance <= found.cutoff
        count += int(near.sum())
        _add_pairs(found, left[near], right[near], distance[near])
    return found._replace(pairs=count)


def _first_with_same_bytes(images):
    first = {}
    digests = (hashlib.blake2b(np.ascontiguousarray(row), digest_size=16) for row in images)
    return np.array([first.setdefault(d.digest(), i) for i, d in enumerate(digests)])


def _typical_distance(images, different):
    if len(different) < 4:
        return 0.0
    count = min(max(len(different) // 4, min(len(different), 16)), _REFERENCE)
    chosen = np.sort(np.random.default_rng(0).choice(different, count, replace=False))
    points = _flat(images[chosen]).astype(np.float32)
    return float(np.median(two_nearest(points, points).distance[:, 1]))


def _flat(images):
    """float64 [N, d] of the values that geomem computes with."""
    return to_float(images).reshape(len(images), -1).astype(np.float64)


def _distances(images, left, right):
    """||x_i - x_j|| for pairs (i, j), from differences in float64."""
    size = max(1, _VALUES // int(np.prod(images.shape[1:])))
    parts = [np.zeros(0)] + [
        np.linalg.norm(
            _flat(images[left[i : i + size]]) - _flat(images[right[i : i + size]]), axis=1
        )
        for i in range(0, len(left), size)
    ]
    return np.concatenate(parts)


def _near_candidates(images, different, cutoff, tile):
    """Pairs (i, j) of indices, i < j, that hold all within `cutoff`, tile by tile."""
    blocks = [different[start : start + tile] for start in range(0, len(different), tile)]
    means = [_block_means(images[block]) for block in blocks]
    centre = sum(part.sum(axis=0) for part in means) / len(different)
    means = [_padded(part - centre, len(blocks[0])) for part in means]
    for row, left in enumerate(blocks):
        for column in range(row, len(blocks)):
            right, shift = blocks[column], (column - row) * tile
            near, count = _screen(means[row], means[column], shift, cutoff)
            if count > _FEW:
                x, y = (_flat(images[block]) for block in (left, right))
                x, y = (_padded(points - y.mean(axis=0), len(blocks[0])) for points in (x, y))
                near &= _screen(x, y, shift, cutoff)[0]
            # NumPy's own: JAX's is compiled anew for each number of pairs.
            i, j = np.nonzero(np.asarray(near))
            yield left[i], right[j]


@jax.jit
def _screen(x, y, shift, cutoff):
    """Where ||x_i - y_j|| may be <= cutoff and i < j + shift: bool [P, Q], and how often."""
    scale = jnp.sum(x**2, axis=1)[:, None] + jnp.sum(y**2, axis=1)
    # Float32 sums of d terms are off by d 2^-24 of them at most, the inputs by 2^-24 of theirs.
    error = (x.shape[1] + 8) * 2.0**-23 * scale
    near = scale - 2 * inner_products(x, y) <= jnp.square(cutoff) * (1 + 1e-5) + error
    near &= jnp.arange(len(x))[:, None] < jnp.arange(len(y)) + shift
    return near, near.sum()


def _block_means(images):
    """An orthogonal projection to at most _PROJECTED coordinates or so: float64 [N, r].

    Each coordinate is the sum over a square of s x s pixels of a channel, divided by s.
    """
    count, height, width, channels = images.shape
    side = 1
    while -(-height // side) * -(-width // side) * channels > _PROJECTED and side < max(
        height, width
    ):
        side += 1
    pixels = _flat(images).reshape(images.shape)
    pixels = np.pad(pixels, ((0, 0), (0, -height % side), (0, -width % side), (0, 0)))
    rows, columns = pixels.shape[1] // side, pixels.shape[2] // side
    split = pixels.reshape(count, rows, side, columns, side, channels)
    return split.sum(axis=(2, 4)).reshape(count, -1) / side


def _padded(points, count):
    """float32 [count, d] on the device; NaN rows, which are near nothing, fill it up."""
    padding = ((0, count - len(points)), (0, 0))
    return jnp.asarray(np.pad(points, padding, constant_values=np.nan), jnp.float32)


def _add_pairs(found, left, right, distance):
    """Join the groups of pairs and keep the nearest partner of each image, in place."""
    if len(left) == 0:
        return
    total = len(found.group)
    rows = np.concatenate([left, np.arange(total)])
    columns = np.concatenate([right, found.group])
    graph = scipy.sparse.coo_array((np.ones(len(rows), bool), (rows, columns)), (total, total))
    _, component = scipy.sparse.csgraph.connected_components(graph, directed=False)
    _, first = np.unique(component, return_index=True)
    found.group[:] = first[component]

    image, partner = np.concatenate([left, right]), np.concatenate([right, left])
    distance = np.tile(distance, 2)
    order = np.lexsort((partner, distance, image))
    image, at = np.unique(image[order], return_index=True)
    partner, distance = partner[order][at], distance[order][at]
    closer = (distance < found.distance[image]) | (
        (distance == found.distance[image]) & (partner < found.nearest[image])
    )
    found.nearest[image[closer]] = partner[closer]
    found.distance[image[closer]] = distance[closer]
