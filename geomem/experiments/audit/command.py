"""Is training a diffusion model on these images risky, where, and what should be changed?

Run: python -m geomem.experiments.audit DATA [--out DIR]
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from geomem.diffusion import conventions
from geomem.experiments.audit import findings, page
from geomem.experiments.common import flags, results
from geomem.experiments.common.arguments import REQUIRED, flag
from geomem.geometry import curves as curves_lib
from geomem.geometry import danger_zone
from geomem.geometry import growth as growth_lib
from geomem.metrics import duplicates
from geomem.plots import audit_figures as audit_plot
from geomem.plots import style
from geomem.plots import zone as zone_plot

__all__ = ["Config", "Result", "run"]

_WIDE = 0.5  # threshold of the wider gap that is offered beside the zone
_GROWTH_LEAST = 64  # images, so that an eighth of them says something


@dataclasses.dataclass(frozen=True)
class Config(flags.CurveFlags):
    """Is training a diffusion model on this data risky, where, and what should be changed?

    Looks for copies, measures the danger zone and how it moves with the number of images, and how
    much of usual training noise falls into it. Writes one HTML page that opens offline, audit.json,
    zone.json, curves.csv, run.json and the figures.
    """

    dataset: str = flag(REQUIRED, "data", positional=True)
    """A folder of PNG/JPEG images, an .npy or .npz file, cifar10_sample, cifar10, digits,
    celeba_gray or tfds:NAME."""
    duplicate_threshold: float = 1 / 3
    """Near-duplicates: closer than this fraction of the typical distance to a nearest neighbour."""
    max_noised: int | None = None
    """At most so many held-out images, and training images, are noised, at random; default 2,000,
    beyond 50,000 training images fewer, down to 500, to bound the time."""
    growth: bool = True
    """Measure subsamples too: how the zone moves with the number of images."""
    seed: int = 0
    """Seed of the noise, the subsamples and the bootstrap."""
    out: str = "runs/audit"
    """Folder for the report and its files."""


class Result(NamedTuple):
    """What an audit found.

    Attributes:
      report: the content of audit.json.
      page: the HTML file.
    """

    report: dict[str, Any]
    page: pathlib.Path


def run(config: Config) -> Result:
    """Measure, write the page and its files, print the answer.

    Raises:
      ValueError: unusable configuration or data, in one line.
    """
    sigmas = _check(config)
    folder, phases = results.make_folder(config.out), results.Phases()
    with phases("data"):
        _say(f"reading {config.dataset}")
        dataset = flags.load(config)
    with phases("duplicates"):
        copies = _scan(config, dataset)
        noised = config.max_noised or _noised(len(dataset.train_split))
        train, heldout = _different(config, dataset, copies, noised)
    with phases("curves"):
        curves = _estimate(config, train, heldout, sigmas, noised)
        zone, wide = (danger_zone.find(curves, t) for t in (config.threshold, _WIDE))
    with phases("growth"):
        few = min(500, noised)
        grown = _grow(config, train, heldout, curves, few)
    report = {
        "dataset": findings.dataset(config, dataset, train, heldout, noised),
        "duplicates": findings.copies(config, dataset, copies),
        "zone": zone._asdict(),
        "wider_zone": wide._asdict(),
        "growth": findings.growth(grown, few),
        "training_noise": findings.training_noise(zone, wide),
        "recommendation": findings.recommendation(config, zone, len(dataset.train_split)),
        "verdict": findings.verdict(zone),
    }
    with phases("files"):
        figures = _draw(folder, curves, zone, grown)
        flags.write_curves(folder / "curves.csv", curves)
        results.write_json(folder / "zone.json", zone._asdict())
        results.write_json(folder / "audit.json", report)
    settings = dataclasses.asdict(config) | {"dataset": findings.base_name(config.dataset)}
    if isinstance(config.heldout, str):
        settings["heldout"] = findings.base_name(config.heldout)
    facts = {
        "config": settings,
        "data": results.dataset_facts(dataset),
        "environment": results.environment(),
        "seconds": phases.seconds,
    }
    results.write_json(folder / "run.json", facts)
    path = folder / "audit.html"
    text = page.render(report, facts, figures, _thumbnails(dataset, copies))
    path.write_text(text, encoding="utf-8")
    print(f"\n{page.headline(report)}")
    for question, answer in page.answers(report):
        print(f"{question} {answer}")
    for file in sorted(folder.iterdir()):
        print(f"wrote {file}")
    return Result(report, path)


def _check(config):
    for name in ("threshold", "duplicate_threshold"):
        if not 0 < getattr(config, name) < 1:
            raise ValueError(f"{name}: {getattr(config, name):g}, wanted between 0 and 1")
    if config.max_noised is not None and config.max_noised < 1:
        raise ValueError(f"max_noised: {config.max_noised}, wanted 1 or more")
    return flags.noise_levels(config.num_sigmas, config.sigma_min, config.sigma_max)


def _noised(count):
    """How many images to noise beside `count` training images."""
    return min(2000, max(500, 100_000_000 // count))


def _say(text):
    """What begins now, for whoever waits."""
    print(text, flush=True)


def _scan(config, dataset):
    """Copies among training and held-out images together: a held-out copy of one matters too."""
    _say(f"copies: every pair of {len(dataset.train_split) + len(dataset.test_split):,} images")
    both = np.concatenate([dataset.train_split.pixels, dataset.test_split.pixels])
    return duplicates.scan(both, threshold=config.duplicate_threshold, progress=True)


def _different(config, dataset, copies, noised):
    """One image of each group, as stored; held-out ones that no training image is a copy of.

    Shuffled, because the first ones are noised where not all are.
    """
    first = copies.group == np.arange(len(copies.group))
    count = len(dataset.train_split)
    rng = np.random.default_rng(config.seed)
    train = rng.permutation(np.flatnonzero(first[:count]))
    heldout = rng.permutation(np.flatnonzero(first[count:]))
    if len(train) < 2 or len(heldout) < 1:
        raise ValueError(
            f"dataset: {len(train)} different training and {len(heldout)} different held-out "
            "image(s), wanted 2 and 1 or more"
        )
    return [
        jnp.asarray(split.pixels[kept].reshape(len(kept), -1))
        for split, kept in ((dataset.train_split, train), (dataset.test_split, heldout[:noised]))
    ]


def _estimate(config, train, heldout, sigmas, noised):
    base = min(len(train), noised)
    _say(
        f"curves: {len(heldout):,} held-out and {base:,} training images noised, of {len(train):,}"
    )
    return jax.block_until_ready(
        curves_lib.estimate(
            jax.random.key(config.seed),
            train,
            heldout,
            sigmas,
            num_base=base,
            shell_c=config.shell_c,
            progress=True,
        )
    )


def _grow(config, train, heldout, curves, noised):
    """The zone on subsamples, or None."""
    if not config.growth or len(train) < _GROWTH_LEAST:
        return None
    _say(f"growth: the same on subsamples, {noised:,} images of both kinds noised in each")
    return growth_lib.measure(
        jax.random.key(config.seed + 1),
        train,
        heldout,
        curves,
        threshold=config.threshold,
        noised=noised,
        shell_c=config.shell_c,
        progress=True,
    )


def _draw(folder, curves, zone, grown):
    """Write the figures; returns them as SVG by name."""
    edges = findings.edges(zone)
    drawn = {
        "curves": zone_plot.danger_zone(flags.columns(curves), zone._asdict()),
        "training_noise": audit_plot.training_noise(conventions.usual_training_noise(), edges),
    }
    if grown is not None:
        drawn["growth"] = audit_plot.growth(grown, growth_lib.extrapolate(grown))
    for name, figure in drawn.items():
        style.save(figure, folder, name)
    return {name: style.svg(figure) for name, figure in drawn.items()}


def _thumbnails(dataset, copies):
    """PNG files of the first images of the first groups."""
    train, test = dataset.train_split.pixels, dataset.test_split.pixels

    def small(i):
        return audit_plot.thumbnail(train[i] if i < len(train) else test[i - len(train)])

    groups = copies.groups()[: page.GROUPS]
    return [[small(i) for i in group[: page.ABREAST]] for group in groups]
