"""Find all duplicates in a training set: exact ones by digest, near ones by distance.

Diffusion models memorize duplicated images first. Two images are near-duplicates if their distance
is far below the typical distance to a nearest neighbor in the set. This criterion does not depend
on the images' size, contrast or scale.
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
from jaxtyping import Float, Int, Shaped

from geomem.data import to_float
from geomem.metrics.features import check_finite
from geomem.points.exact import inner_products
from geomem.points.neighbours import two_nearest

__all__ = ["Duplicates", "scan"]

_REFERENCE = 2048  # most images that the typical distance is estimated from
_PROJECTED = 256  # most dimensions in which pairs are screened
_FEW = 4096  # for at most this many pairs, differences cost less than a second screening
_VALUES = 2**22  # float64 values computed at once (32 MB)


class Duplicates(NamedTuple):
    """The duplicates among N images.

    Attributes:
      exact: index of the first image with the same pixels; an image without an earlier copy has
        its own index.
      group: index of the first image of the group. Groups are the connected components of the graph
        of near pairs, including exact copies.
      nearest: the nearest image within `cutoff`, or -1; the first of equally near images.
      distance: the distance to that image, or infinity.
      pairs: number of pairs of different images within `cutoff`; exact copies count once.
      typical: typical distance to a nearest neighbor; 0 for fewer than 4 different images.
      cutoff: threshold * typical.
    """

    exact: Int[np.ndarray, " images"]
    group: Int[np.ndarray, " images"]
    nearest: Int[np.ndarray, " images"]
    distance: Float[np.ndarray, " images"]
    pairs: int
    typical: float
    cutoff: float

    def groups(self) -> list[np.ndarray]:
        """Return the groups of two or more images as ascending indices, largest group first."""
        order = np.argsort(self.group, kind="stable")
        starts = np.flatnonzero(np.diff(self.group[order], prepend=-1))
        parts = [part for part in np.split(order, starts[1:]) if len(part) > 1]
        return sorted(parts, key=lambda part: (-len(part), part[0]))


def scan(
    images: Shaped[np.ndarray, "images height width channels"],
    *,
    threshold: float = 1 / 3,
    tile: int = 2048,
    progress: bool = False,
) -> Duplicates:
    """Find all exact and near-duplicates in a set of images.

    x and y are near-duplicates if ||x - y|| <= threshold * t. The typical distance t is the median
    distance from an image to its nearest neighbor within a fixed random quarter of the different
    images (at most 2,048). The quarter seldom contains copies of its images, so t does not collapse
    if every image has a copy.

    Every pair is checked. Products of block means screen the pairs: scaled block means are an
    orthogonal projection P, for which ||P(x - y)|| <= ||x - y||, and the rounding error is bounded,
    so no near pair is lost. Float64 differences decide the remaining pairs. Memory holds the
    images, 256 numbers per image and one tile of pairs, but never all pairs.

    Args:
      images: uint8, or floats (in [-1, 1] for a `cutoff` in geomem's units).
      threshold: in (0, 1); 1/3 as for memorized samples. In CIFAR-10 (t = 21), 7 of 50,000 images
        have another image within t / 3; JPEG copies (quality 90) are also within it.
      tile: tiles of tile x tile pairs are screened at once.
      progress: whether to show a progress bar, in pairs of tiles.

    Raises:
      ValueError: if `threshold` is out of range, or `images` are not [N, H, W, C] or not finite.

    >>> images = np.random.default_rng(0).integers(0, 256, (16, 4, 4, 1), dtype=np.uint8)
    >>> images[5], images[9] = images[2], images[2] // 2 * 2
    >>> [group.tolist() for group in scan(images).groups()]
    [[2, 5, 9]]
    """
    if not 0 < threshold < 1:
        raise ValueError(f"threshold must be between 0 and 1, got {threshold:g}.")
    if images.ndim != 4 or len(images) == 0:
        raise ValueError(f"images must have shape [N, H, W, C] with N >= 1, got {images.shape}.")
    check_finite(images=images)
    exact = _first_with_same_bytes(images)
    different = np.flatnonzero(exact == np.arange(len(images)))
    typical = _typical_distance(images, different)
    result = Duplicates(
        exact=exact,
        group=exact.copy(),
        nearest=np.full(len(images), -1),
        distance=np.full(len(images), np.inf),
        pairs=0,
        typical=typical,
        cutoff=threshold * typical,
    )
    copies = np.flatnonzero(exact != np.arange(len(images)))
    _add_pairs(result, exact[copies], copies, np.zeros(len(copies)))
    pairs = 0
    tiles = -(-len(different) // tile)
    bar = tqdm.tqdm(
        _near_candidates(images, different, result.cutoff, tile),
        "copies",
        total=tiles * (tiles + 1) // 2,
        unit="tile",
        disable=not progress or tiles < 3,
    )
    for left, right in bar:
        distance = _distances(images, left, right)
        near = distance <= result.cutoff
        pairs += int(near.sum())
        _add_pairs(result, left[near], right[near], distance[near])
    return result._replace(pairs=pairs)


def _first_with_same_bytes(images):
    first = {}
    digests = (hashlib.blake2b(np.ascontiguousarray(row).data, digest_size=16) for row in images)
    return np.array([first.setdefault(d.digest(), i) for i, d in enumerate(digests)])


def _typical_distance(images, different):
    if len(different) < 4:
        return 0.0
    count = min(max(len(different) // 4, min(len(different), 16)), _REFERENCE)
    chosen = np.sort(np.random.default_rng(0).choice(different, count, replace=False))
    points = _flat(images[chosen]).astype(np.float32)
    return float(np.median(two_nearest(points, points).distance[:, 1]))


def _flat(images):
    """The pixels in [-1, 1] as float64 [N, d]."""
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
    """Yield, tile by tile, pairs (i, j), i < j, that include all pairs within `cutoff`."""
    blocks = [different[start : start + tile] for start in range(0, len(different), tile)]
    means = [_block_means(images[block]) for block in blocks]
    center = sum(part.sum(axis=0) for part in means) / len(different)
    means = [_padded(part - center, len(blocks[0])) for part in means]
    for row, left in enumerate(blocks):
        for column in range(row, len(blocks)):
            right, shift = blocks[column], (column - row) * tile
            near, count = _screen(means[row], means[column], shift, cutoff)
            if count > _FEW:
                x, y = (_flat(images[block]) for block in (left, right))
                x, y = (_padded(points - y.mean(axis=0), len(blocks[0])) for points in (x, y))
                near &= _screen(x, y, shift, cutoff)[0]
            # In NumPy, because JAX would compile again for each number of pairs.
            i, j = np.nonzero(np.asarray(near))
            yield left[i], right[j]


@jax.jit
def _screen(x, y, shift, cutoff):
    """Whether ||x_i - y_j|| may be <= cutoff and i < j + shift, bool [P, Q]; and the count."""
    scale = jnp.sum(x**2, axis=1)[:, None] + jnp.sum(y**2, axis=1)
    # Relative errors: at most d 2^-24 for float32 sums of d terms, and 2^-24 for the inputs.
    error = (x.shape[1] + 8) * 2.0**-23 * scale
    near = scale - 2 * inner_products(x, y) <= jnp.square(cutoff) * (1 + 1e-5) + error
    near &= jnp.arange(len(x))[:, None] < jnp.arange(len(y)) + shift
    return near, near.sum()


def _block_means(images):
    """Orthogonal projections of the images to about _PROJECTED coordinates, float64 [N, r].

    Each coordinate is the sum of s x s pixels of one channel, divided by s.
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
    """float32 [count, d] on the device, padded with NaN rows, which are never near."""
    padding = ((0, count - len(points)), (0, 0))
    return jnp.asarray(np.pad(points, padding, constant_values=np.nan), jnp.float32)


def _add_pairs(result, left, right, distance):
    """Update groups and nearest partners in `result`, in place."""
    if len(left) == 0:
        return
    total = len(result.group)
    rows = np.concatenate([left, np.arange(total)])
    columns = np.concatenate([right, result.group])
    graph = scipy.sparse.coo_array((np.ones(len(rows), bool), (rows, columns)), (total, total))
    _, component = scipy.sparse.csgraph.connected_components(graph, directed=False)
    _, first = np.unique(component, return_index=True)
    result.group[:] = first[component]

    image, partner = np.concatenate([left, right]), np.concatenate([right, left])
    distance = np.tile(distance, 2)
    order = np.lexsort((partner, distance, image))
    image, at = np.unique(image[order], return_index=True)
    partner, distance = partner[order][at], distance[order][at]
    closer = (distance < result.distance[image]) | (
        (distance == result.distance[image]) & (partner < result.nearest[image])
    )
    result.nearest[image[closer]] = partner[closer]
    result.distance[image[closer]] = distance[closer]
