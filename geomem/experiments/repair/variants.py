"""The ways of sampling from a trained network that the repair experiment compares."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from geomem import data
from geomem.diffusion import replacement, sampler
from geomem.experiments.common import replacements
from geomem.geometry import local, posterior

CALIBRATED = "calibrated"  # a patch side per noise level, by the error on held-out images

_SIDES = (1, 3, 5, 7)  # to choose from
_CALIBRATION_IMAGES = 256
_RANGE = (0.05, 20.0)  # noise levels that the sliding windows cover
_WIDTHS = (1, 2, 4)  # steps of the sliding windows


class Replacement(NamedTuple):
    """A denoiser that takes the network's place.

    Attributes:
      kind: ls, els, wiener or gaussian.
      patch: side of the patches, CALIBRATED, or None for denoisers without patches.
      mix: "blend", "guide" or "gate" to mix the network in, or "" for the denoiser alone.
      amount: the weight or ratio of the mix.
    """

    kind: str
    patch: int | str | None = None
    mix: str = ""
    amount: float = 1.0

    def __str__(self) -> str:
        """Return for example "ls 3" or "ls 3, gate 0.5"."""
        name = self.kind if self.patch is None else f"{self.kind} {self.patch}"
        return f"{name}, {self.mix} {self.amount:g}" if self.mix else name


class Variant(NamedTuple):
    """One way of sampling: a replacement on the steps `first` to `last`, or none if last < first.

    Attributes:
      name: unique among the variants, such as "zone: ls 3".
      finer: whether each replaced step is split into two.
    """

    name: str
    first: int
    last: int
    replacement: Replacement | None = None
    finer: bool = False


NONE = Variant("none", 0, -1)


def make_variants(
    grid: np.ndarray, zone: tuple[float, float], chosen: Replacement, *, quick: bool = False
) -> list[Variant]:
    """Return the variants, the unrepaired one first.

    Args:
      grid: [S + 1] sampling levels, descending; step i starts at level i.
      zone: edges of the danger zone.
      chosen: the replacement fixed before the runs, which the controls and the mixtures use.
      quick: whether to leave out mixtures, other patch sides and sliding windows.
    """
    inside = replacement.steps_inside(grid, zone)
    first, last = inside[0], inside[-1]
    width, other = len(inside), {"ls": "els", "els": "ls"}[chosen.kind]
    sides = dict.fromkeys((chosen.patch, 3, 5, CALIBRATED))
    kinds = [Replacement(kind, side) for kind in (chosen.kind, other) for side in sides]
    linear = [Replacement("wiener"), Replacement("gaussian")]
    mixes = ("blend", 0.5), ("blend", 0.75), ("guide", 0.5), ("guide", 1.0), ("gate", 0.5)
    kinds += [chosen._replace(mix=mix, amount=amount) for mix, amount in (*mixes, ("gate", 0.7))]
    kinds = [chosen, *linear] if quick else [*kinds, *linear]
    variants = [NONE, *(Variant(f"zone: {kind}", first, last, kind) for kind in kinds)]
    if not quick:
        variants.append(Variant(f"zone, finer: {chosen}", first, last, chosen, finer=True))
    for kind in (chosen, Replacement("gaussian")):
        variants += [
            Variant(f"above: {kind}", max(0, first - width), first - 1, kind),
            Variant(f"below: {kind}", last + 1, min(len(grid) - 2, last + width), kind),
        ]
    starts = np.asarray(grid[:-1])
    covered = np.flatnonzero((starts >= _RANGE[0]) & (starts <= _RANGE[1]))
    for count in () if quick else _WIDTHS:
        for start in covered[: max(0, len(covered) - count + 1)].tolist():
            name = f"window: {chosen}, steps {start} to {start + count - 1}"
            variants.append(Variant(name, start, start + count - 1, chosen))
    return [v for v in variants if v is NONE or v.last >= v.first]


def sampling(
    variant: Variant, network: sampler.Denoiser, grid: np.ndarray, dataset: data.Dataset
) -> tuple[sampler.Denoiser | sampler.Swap, np.ndarray]:
    """Return the denoiser and the noise levels of a variant, for `sampler.generate`."""
    if variant.replacement is None:
        return network, grid
    steps = range(variant.first, variant.last + 1)
    if variant.finer:
        inserted = np.sqrt(grid[steps.start : steps.stop] * grid[steps.start + 1 : steps.stop + 1])
        grid = np.insert(grid, range(steps.start + 1, steps.stop + 1), inserted)
        steps = range(steps.start, steps.start + 2 * len(steps))
    levels = grid[steps.start : steps.stop + 1]
    other = _denoiser(variant.replacement, network, levels[levels > 0], dataset)
    return sampler.swap(network, other, steps), grid


def settings(variant: Variant) -> list[Any]:
    """Return what decides a variant's samples besides the network and the grid, as JSON values."""
    if variant.replacement is None:
        return []
    return [variant.first, variant.last, variant.finer, *variant.replacement]


def _denoiser(choice: Replacement, network, levels: Sequence[float], dataset):
    train, kind, side = dataset.train, choice.kind, choice.patch
    if side == CALIBRATED:
        make = {"ls": local.ls, "els": local.els}[kind]
        heldout = dataset.test[:_CALIBRATION_IMAGES]
        table = local.calibrate_patch(
            jax.random.key(0), lambda side: make(train, side), heldout, levels, _SIDES
        )
        other = make(train, table)
    else:
        other = replacements.make(kind, train, side)
    if choice.mix == "blend":
        return replacement.blend(network, other, choice.amount)
    if choice.mix:
        mix = {"guide": replacement.guide, "gate": replacement.gate}[choice.mix]
        return mix(network, other, posterior.empirical_denoiser(train), choice.amount)
    return other
