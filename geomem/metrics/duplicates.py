"""Duplicates in a data set: exact, near, mirrored, shifted, cropped and brightened copies.

Diffusion models memorize duplicated images first, and a held-out image that is also a training
image spoils every comparison. Exact copies have the same values. For other copies the evidence is
the texture (`metrics._texture`): the distance of a pair is

    d(x, y) = sqrt(1 - r^2),    r the correlation of the aligned textures,

the part of one texture that the other does not explain: 0 for the same picture at any brightness
and contrast, near 1 for unrelated pictures, however flat. With t the typical distance of an image
to its nearest neighbor, 0.9 or more for photographs, a pair is reported if
d <= 0.7 min(1, t / 0.9)^4: images that all look alike (digits, faces) need more agreement. Images
of 64 pixels or more are averaged, which removes noise and compression, so 0.8 of this is the
limit. And the fewer parts have texture, the closer it must agree: arctanh(r) sqrt(parts) >= 2.6.
Where images have finer details, these must agree too (`metrics._detail`).
Flat images are compared by their pixels too (`metrics._flat`).
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import numpy as np
import scipy.sparse
import scipy.sparse.csgraph
from jaxtyping import Array, Bool, Int, Shaped

from geomem.data import to_float
from geomem.metrics import _detail, _flat, _texture, _texture_search
from geomem.metrics._reduction import reduced
from geomem.metrics.alignment import Transform
from geomem.metrics.features import check_finite

__all__ = ["Duplicates", "Pair", "find"]

_SIDE = 32  # larger images are reduced until their shorter side is this long
_CLEAR = 0.15  # closer pairs need no agreement of details
_REFERENCE = 2048  # most images that the typical distance is estimated from
_FEW, _RANK = 32, 3  # with fewer images, the distance to the third after the nearest is typical
_PHOTOGRAPHS = 0.9  # a usual typical distance
_LEAST_CUTOFF = 1e-9
_AVERAGED = 0.8  # of the cutoff, for images of twice _SIDE or more
_PROPOSED = 8  # candidates for each image
_PROMISING = 0.7  # of the correlation at the cutoff, for a pair to be aligned finely
_ALIGNED_ERROR = 1e-4  # far above the error of a correlation in float32
_EVIDENCE = 2.6  # Fisher's z by its standard deviation; see `_texture.Match.parts`
_SIMPLER = 0.05  # a simpler transform is named if its distance is at most this much larger
_CHANGED = 0.15  # of contrast or, in standard deviations of the data, of brightness
_SAME = Transform(False, 0, 0, 0)


class Pair(NamedTuple):
    """An image and its copy.

    Positions count the training images first, then the held-out images.

    Attributes:
      image: position of the image.
      copy: position of the copy. Of two images of which neither is cropped, the later one.
      kind: "exact", "near", or what was done: "mirrored", "shifted", "cropped", "brightened", or
        several of them, with commas.
      transform: from the image to the copy, in pixels of images whose shorter side is at most 32.
      distance: between 0 and 1.
    """

    image: int
    copy: int
    kind: str
    transform: Transform
    distance: float


class Duplicates(NamedTuple):
    """The duplicates among N training and M held-out images, in this order.

    Attributes:
      pairs: the pairs that were found, by distance. An image has one pair with an exact copy, the
        first one.
      group: position of the image that represents each image's group. Each image of a group is
        within `cutoff` of this image, so unlike images are never chained together.
      exact: position of the first image with the same values.
      blank: whether an image has no texture beyond rounding; only its exact copies are found.
      train: N.
      typical: typical distance of an image to its nearest neighbor; 1 for fewer than 4 images.
      cutoff: threshold * min(1, typical / 0.9)^4, times 0.8 for images of 64 pixels or more.
    """

    pairs: list[Pair]
    group: Int[np.ndarray, " images"]
    exact: Int[np.ndarray, " images"]
    blank: Bool[np.ndarray, " images"]
    train: int
    typical: float
    cutoff: float

    def groups(self) -> list[Int[np.ndarray, " members"]]:
        """Return the groups of two or more images, ascending, the largest group first."""
        order = np.argsort(self.group, kind="stable")
        starts = np.flatnonzero(np.diff(self.group[order], prepend=-1))
        parts = [part for part in np.split(order, starts[1:]) if len(part) > 1]
        return sorted(parts, key=lambda part: (-len(part), part[0]))

    def leaking_first(self) -> list[Int[np.ndarray, " members"]]:
        """Return `groups`, those with both training and held-out images first."""
        return sorted(self.groups(), key=lambda part: not part[0] < self.train <= part[-1])

    def leaks(self) -> list[Pair]:
        """Return the pairs of a training and a held-out image."""
        return [p for p in self.pairs if (p.image < self.train) != (p.copy < self.train)]

    def leaked(self) -> Int[np.ndarray, " leaked"]:
        """Return the positions of the held-out images that copy training images."""
        copies = [max(pair.image, pair.copy) for pair in self.leaks()]
        heldout = np.arange(self.train, len(self.group))
        # An exact copy of another held-out image has no other pair.
        return heldout[np.isin(heldout, copies) | np.isin(self.exact[heldout], copies)]

    def keep(self) -> Int[np.ndarray, " kept"]:
        """Return the positions of one image of each group, a training image if there is one."""
        return np.unique(self.group)


def find(
    images: Shaped[Array | np.ndarray, "train ..."],
    heldout: Shaped[Array | np.ndarray, "heldout ..."] | None = None,
    *,
    threshold: float = 0.7,
    progress: bool = False,
) -> Duplicates:
    """Find the duplicates among training images, and between them and held-out images.

    Copies may be mirrored left to right, shifted by up to an eighth of the shorter side, cropped by
    up to an eighth at each border and enlarged again, brighter, with another contrast, noisy or
    compressed. For each image, correlations of coarse textures propose 8 candidates, on a coarse
    grid of transforms; all transforms are tried for the promising ones, and float64 decides. So a
    copy can be missed if more than 8 images look more alike at low resolution. Nothing of size
    N x N is stored.

    Args:
      images: training images [N, H, W, C], uint8 or floats of any scale (latents); or vectors
        [N, d], of which only near copies are found.
      heldout: held-out images of the same shape.
      threshold: in (0, 1); larger values report more pairs.
      progress: whether to show a progress bar.

    Returns:
      Duplicates. Larger images are compared at a shorter side of 32 pixels.

    Raises:
      ValueError: arrays that are empty, of another shape or not finite, or `threshold` out of
        range.

    >>> images = np.random.default_rng(0).integers(0, 256, (16, 8, 8, 1), dtype=np.uint8)
    >>> images[5], images[9] = images[2], images[2, :, ::-1]
    >>> result = find(images)
    >>> [group.tolist() for group in result.groups()], result.pairs[1].kind
    ([[2, 5, 9]], 'mirrored')
    """
    if not 0 < threshold < 1:
        raise ValueError(f"threshold must be between 0 and 1, got {threshold:g}.")
    whole = _joined(images, heldout)
    exact = _first_with_same_values(whole)
    different = np.flatnonzero(exact == np.arange(len(whole)))
    textures = _texture_search.Textures(_prepared(whole, different))
    typical = _typical_distance(textures)
    cutoff = threshold * min(1.0, typical / _PHOTOGRAPHS) ** 4
    if whole.ndim == 4 and min(whole.shape[1:3]) >= 2 * _SIDE:
        cutoff *= _AVERAGED
    search = _Search(textures, _detail.Details(whole, different, _SIDE), cutoff)
    # If all textures are the same, as those of vectors with one coordinate, they tell nothing.
    found = _near_pairs(search, progress) if cutoff > _LEAST_CUTOFF else []
    if whole.ndim == 4 and whole.dtype == np.uint8:
        known = {tuple(sorted(pair[:2])) for pair in found}
        flat = [pair for pair in _flat.close_pairs(textures.images) if pair[:2] not in known]
        found += [Pair(x, y, "near", _SAME, distance) for x, y, distance in flat]
    group, found = _stars(found, different < len(images), search)
    repeated = np.flatnonzero(exact != np.arange(len(whole)))
    pairs = [Pair(int(exact[i]), int(i), "exact", _SAME, 0.0) for i in repeated]
    pairs += [p._replace(image=int(different[p.image]), copy=int(different[p.copy])) for p in found]
    blank = np.zeros(len(whole), bool)
    blank[different] = textures.blank
    full = exact.copy()
    full[different] = different[group]
    return Duplicates(
        pairs=sorted(pairs, key=lambda pair: pair.distance),
        group=full[exact],
        exact=exact,
        blank=blank[exact],
        train=len(images),
        typical=typical,
        cutoff=cutoff,
    )


def _joined(images, heldout):
    parts = [np.asarray(part) for part in (images, heldout) if part is not None]
    for name, part in zip(("images", "heldout"), parts, strict=False):
        if part.ndim not in (2, 4) or part.size == 0:
            raise ValueError(f"{name} must have shape [N, H, W, C] or [N, d], got {part.shape}.")
        if part.shape[1:] != parts[0].shape[1:]:
            raise ValueError(
                f"{name} must have shape {parts[0].shape[1:]} like images, got {part.shape[1:]}."
            )
        check_finite(**{name: part})
    if len({part.dtype for part in parts}) > 1:
        parts = [to_float(part) for part in parts]
    return parts[0] if heldout is None else np.concatenate(parts)


def _first_with_same_values(images):
    first = {}
    digests = (hashlib.blake2b(np.ascontiguousarray(row).data, digest_size=16) for row in images)
    return np.array([first.setdefault(d.digest(), i) for i, d in enumerate(digests)])


def _prepared(images, chosen):
    if images.ndim == 2:  # vectors have no constant part, so their mean is taken off instead
        return (images[chosen] - images.mean(axis=0, dtype=np.float64)[None])[:, None, None]
    return reduced(images, chosen, _SIDE)


def _typical_distance(textures):
    """The median distance to the nearest image within a random quarter of the images.

    It seldom contains the copies of its images, so it is the same if every image has a copy.
    """
    count = len(textures.images)
    if count < 4:
        return 1.0
    chosen = np.arange(count)
    if count >= _FEW:
        size = min(max(_FEW // 2, count // 4), _REFERENCE)
        chosen = np.sort(np.random.default_rng(0).choice(count, size, replace=False))
    x, y = _texture_search.candidates(textures, chosen, chosen, _PROPOSED)
    value = _texture_search.align(textures, x, y, _coarse_crops(textures)).value.max(axis=1)
    rank = 0 if count >= _FEW else _RANK
    best = [np.sort(np.append(value[x == i], 0))[::-1] for i in chosen]
    return float(np.median([_distance(r[min(rank, len(r) - 1)]) for r in best]))


def _coarse_crops(textures):
    return sorted({0, _texture_search.coarse_step(textures.model)})


def _distance(correlation):
    return np.sqrt(np.clip(1 - np.clip(correlation, 0, 1) ** 2, 0, 1))


class _Search(NamedTuple):
    textures: _texture_search.Textures
    details: _detail.Details
    cutoff: float


def _near_pairs(search, progress):
    """The pairs of different images within the cutoff that the search finds."""
    textures, _, cutoff = search
    everything = np.arange(len(textures.images))
    x, y = _texture_search.candidates(textures, everything, everything, _PROPOSED, progress)
    coarse = _texture_search.align(textures, x, y, _coarse_crops(textures)).value.max(axis=1)
    promising = coarse >= _PROMISING * np.sqrt(1 - cutoff**2)
    x, y = x[promising], y[promising]
    count = len(textures.images)
    low, high = np.divmod(np.unique(np.minimum(x, y) * count + np.maximum(x, y)), count)
    return _decide(search, low, high)


def _decide(search, low, high):
    """The pairs within the cutoff, by the best transform in float64, or one about as good."""
    if len(low) == 0:
        return []
    textures, details, cutoff = search
    crops = list(range(textures.model.margin + 1))
    both = [_texture_search.align(textures, *ends, crops) for ends in ((low, high), (high, low))]
    best = np.maximum(*(found.value.max(axis=1) for found in both))
    likely = _distance(best + _ALIGNED_ERROR) <= cutoff
    low, high = low[likely], high[likely]
    options = [[(0, 0, 0, 0, 0)] * len(low), [(0, 1, 0, 0, 0)] * len(low)]
    for backward, found in enumerate(both):
        found = _texture_search.Agreement(*(field[likely] for field in found))
        for part in (slice(0, 1), slice(1, None)):
            if crops[part] and not (backward and part.start == 0):
                best = found.value[:, part].argmax(axis=1)
                fields = (np.asarray(field)[:, part] for field in found[1:])
                flip, down, right = (f[np.arange(len(low)), best] for f in fields)
                crop = np.asarray(crops)[part][best]
                columns = np.full(len(low), backward), flip, crop, down, right
                options.append(np.stack(columns, axis=1).tolist())
    pairs = []
    for i, (first, second) in enumerate(zip(low.tolist(), high.tolist(), strict=True)):
        best = None
        for backward, flip, *rest in (option[i] for option in options):
            image, copy = (second, first) if backward else (first, second)
            crop, down, right = rest
            transform = Transform(bool(flip), crop, down, right)
            x, y = textures.images[image], textures.images[copy]
            match = _texture.match(x, y, transform, textures.model)
            distance = float(_distance(match.correlation))
            better = best is None or distance < best.distance - _SIMPLER
            if better and distance <= cutoff and _evidence(match) >= _EVIDENCE:
                best = Pair(image, copy, _kind(transform, match), transform, distance)
        if best is not None and (
            best.distance <= _CLEAR or details.agree(*best[:2], best.transform)
        ):
            pairs.append(best)
    return pairs


def _evidence(match):
    """Fisher's z of the correlation, times the square root of the number of parts."""
    return np.arctanh(np.clip(match.correlation, 0, 1 - 1e-12)) * np.sqrt(match.parts)


def _kind(transform, match):
    brightened = abs(np.log(max(match.gain, 1e-3))) > _CHANGED or abs(match.offset) > _CHANGED
    names = {
        "mirrored": transform.flip,
        "shifted": (transform.down or transform.right) and not transform.crop,
        "cropped": transform.crop,
        "brightened": brightened,
    }
    return ", ".join(name for name, present in names.items() if present) or "near"


def _stars(pairs, is_train, search):
    """Groups in which every image is within the cutoff of the group's representative."""
    count = len(search.textures.images)
    near = {}
    for pair in pairs:
        near.setdefault(pair.image, set()).add(pair.copy)
        near.setdefault(pair.copy, set()).add(pair.image)
    ends = np.array([(pair.image, pair.copy) for pair in pairs]).reshape(-1, 2)
    graph = scipy.sparse.coo_array((np.ones(len(ends)), ends.T), (count, count))
    _, component = scipy.sparse.csgraph.connected_components(graph, directed=False)
    group, pairs = np.arange(count), list(pairs)
    order = np.argsort(component, kind="stable")
    for members in np.split(order, np.flatnonzero(np.diff(component[order])) + 1):
        rest = set(members.tolist())
        while linked := {i: len(near[i] & rest) for i in rest if near.get(i, set()) & rest}:
            head = min(linked, key=lambda i: (not is_train[i], -linked[i], i))
            unknown = np.array(sorted(rest - near[head] - {head}), int)
            fixed = np.full(len(unknown), head)
            new = _decide(search, np.minimum(fixed, unknown), np.maximum(fixed, unknown))
            pairs += new
            near[head] |= {p.copy if p.image == head else p.image for p in new}
            group[sorted(near[head] & rest)] = head
            rest -= near[head] | {head}
    return group, pairs
