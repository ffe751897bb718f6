"""Is training a diffusion model on these images risky, where, and what should be changed?

Run: python -m geomem.experiments.audit DATA [--out DIR]
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
import shlex
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from geomem import data
from geomem.data import sources
from geomem.diffusion import conversions
from geomem.experiments import audit_page, cli, measured, record
from geomem.geometry import curves as curves_lib
from geomem.geometry import danger_zone
from geomem.geometry import growth as growth_lib
from geomem.geometry.curves import Curves
from geomem.geometry.danger_zone import Zone
from geomem.geometry.groups import decode
from geomem.metrics import duplicates
from geomem.plots import audit as audit_plot
from geomem.plots import style
from geomem.plots import zone as zone_plot

__all__ = ["Config", "Result", "run"]

_WIDE = 0.5  # threshold of the wider gap that is offered beside the zone
_SHOWN = 8  # groups of copies in the figure
_GROWTH_LEAST = 64  # images, so that an eighth of them says something
_FEW = 200  # images, below which the report warns of its own numbers


@dataclasses.dataclass(frozen=True)
class Config:
    """Is training a diffusion model on this data risky, where, and what should be changed?

    Looks for copies, measures the danger zone and how it moves with the number of images, and how
    much of usual training noise falls into it. Writes one HTML page that opens offline, audit.json,
    zone.json, curves.csv, run.json and the figures.
    """

    dataset: tyro.conf.Positional[str]
    """A folder of PNG/JPEG images, an .npy or .npz file, cifar10_sample, cifar10, digits,
    celeba_gray or tfds:NAME."""
    heldout: float | str | None = None
    """A fraction of the images, or other images; default: the test images, or a fifth."""
    heldout_seed: int = 0
    """Which images a held-out fraction takes."""
    resize: int | None = None
    """Crop a folder's images to a centre square and resize them to this side."""
    num_train: int | None = None
    """Number of training images, default all."""
    num_heldout: int | None = None
    """Number of held-out images, default all."""
    classes: tuple[str, ...] = ()
    """Keep only these classes, by name."""
    subset_seed: int | None = None
    """Seed of a random subset; default: the first images in canonical order."""
    duplicate_threshold: float = 1 / 3
    """Near-duplicates: closer than this fraction of the typical distance to a nearest neighbour."""
    max_noised: int | None = None
    """At most so many held-out images, and training images, are noised, at random; default 2,000,
    beyond 50,000 training images fewer, down to 500, to bound the time."""
    threshold: float = 0.8
    """Both curves reach it inside the danger zone."""
    num_sigmas: int = 32
    """Number of noise levels, evenly spaced in their logarithm."""
    sigma_min: float = 0.02
    """Smallest noise level."""
    sigma_max: float = 80.0
    """Largest noise level."""
    shell_c: float = 5.0
    """Concentration c of the Gaussian shells."""
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
    folder = record.make_folder(config.out)
    phases = record.Phases()
    with phases("data"):
        _say(f"reading {_base_name(config.dataset)}")
        dataset = measured.load(config, count=config.num_train, heldout_count=config.num_heldout)
    with phases("duplicates"):
        total = len(dataset.train_split) + len(dataset.test_split)
        _say(f"copies: every pair of {total:,} images")
        copies = _scan(config, dataset)
        noised = config.max_noised or _noised(len(dataset.train_split))
        train, heldout = _different(config, dataset, copies, noised)
    key, growth_key = jax.random.key(config.seed), jax.random.key(config.seed + 1)
    with phases("curves"):
        _say(
            f"curves: {len(heldout):,} held-out and {min(len(train), noised):,} training images, "
            f"noised, against {len(train):,}"
        )
        curves = _estimate(config, key, train, heldout, sigmas, noised)
        zone, wide = (danger_zone.find(curves, t) for t in (config.threshold, _WIDE))
    grown = None
    if config.growth and len(train) >= _GROWTH_LEAST:
        with phases("growth"):
            _say(
                f"growth: the same on subsamples, {_growth_noised(noised):,} images noised in each"
            )
            grown = growth_lib.measure(
                growth_key,
                train,
                heldout,
                curves,
                threshold=config.threshold,
                noised=_growth_noised(noised),
                shell_c=config.shell_c,
                progress=True,
            )
    report = {
        "dataset": _describe(config, dataset, train, heldout, noised),
        "duplicates": _describe_copies(dataset, copies, _names(config, dataset)),
        "zone": zone._asdict(),
        "wider_zone": wide._asdict(),
        "growth": _describe_growth(grown),
        "training_noise": _shares(zone, wide),
        "recommendation": _recommend(config, zone),
        "verdict": _verdict(zone),
    }
    with phases("files"):
        figures = _draw(folder, config, dataset, copies, curves, zone, grown)
        measured.write_curves(folder / "curves.csv", curves)
        record.write_json(folder / "zone.json", zone._asdict())
        record.write_json(folder / "audit.json", report)
    facts = {
        "config": dataclasses.asdict(config) | {"dataset": _base_name(config.dataset)},
        "data": record.dataset_facts(dataset),
        "environment": record.environment(),
        "seconds": phases.seconds,
    }
    record.write_json(folder / "run.json", facts)
    page = folder / "audit.html"
    page.write_text(audit_page.render(report, facts, figures), encoding="utf-8")
    _print(report, folder)
    return Result(report, page)


def _check(config):
    for name in ("threshold", "duplicate_threshold"):
        if not 0 < getattr(config, name) < 1:
            raise ValueError(f"{name}: {getattr(config, name):g}, wanted between 0 and 1")
    if config.max_noised is not None and config.max_noised < 1:
        raise ValueError(f"max_noised: {config.max_noised}, wanted 1 or more")
    if config.num_sigmas < 2:
        raise ValueError(f"num_sigmas: {config.num_sigmas}, wanted 2 or more")
    low, high = config.sigma_min, config.sigma_max
    if not 0 < low < high < math.inf:
        raise ValueError(f"sigma_min, sigma_max: {low:g}, {high:g}, wanted 0 < min < max")
    return np.geomspace(low, high, config.num_sigmas)


def _noised(count):
    """How many images to noise beside `count` training images."""
    return min(2000, max(500, 100_000_000 // count))


def _growth_noised(noised):
    return min(500, noised)


def _say(text):
    """What begins now, for whoever waits: on stderr, where the progress bars are."""
    print(text, file=sys.stderr, flush=True)


def _base_name(path):
    """A path without the folders above it, which say more about a machine than about the data."""
    return pathlib.Path(path).name


def _scan(config, dataset):
    """Copies among training and held-out images together: a held-out copy of one matters too."""
    both = np.concatenate([dataset.train_split.pixels, dataset.test_split.pixels])
    return duplicates.scan(both, threshold=config.duplicate_threshold, progress=True)


def _different(config, dataset, copies, noised):
    """One image of each group, as stored; held-out ones that no training image is a copy of.

    Where not all are noised, a random part is, so the points are shuffled.
    """
    first = copies.group == np.arange(len(copies.group))
    points = []
    count = len(dataset.train_split)
    rng = np.random.default_rng(config.seed)
    for split, kept in (
        (dataset.train_split, np.flatnonzero(first[:count])),
        (dataset.test_split, np.flatnonzero(first[count:])),
    ):
        if len(kept) > noised:
            kept = rng.permutation(kept)
            kept = kept if split is dataset.train_split else kept[:noised]
        points.append(jnp.asarray(split.pixels[kept].reshape(len(kept), -1)))
    if len(points[0]) < 2 or len(points[1]) < 1:
        raise ValueError(
            f"dataset: {len(points[0])} different training and {len(points[1])} different held-out "
            "image(s), wanted 2 and 1 or more"
        )
    return points


def _estimate(config, key, train, heldout, sigmas, noised):
    return jax.block_until_ready(
        curves_lib.estimate(
            key,
            train,
            heldout,
            sigmas,
            num_base=min(len(train), noised),
            shell_c=config.shell_c,
            progress=True,
        )
    )


def _describe(config, dataset, train, heldout, noised):
    pixels = dataset.train_split.pixels
    labels = dataset.train_split.labels
    mean, deviation = _moments(train)
    return {
        "name": " ".join([_base_name(config.dataset), *config.classes]),
        "train": len(pixels),
        "heldout": len(dataset.test_split),
        "different_train": len(train),
        "noised_train": min(len(train), noised),
        "noised_heldout": len(heldout),
        "shape": list(pixels.shape[1:]),
        "dimensions": train.shape[1],
        "stored_as": pixels.dtype.name,
        "classes": 0 if labels is None else len(np.unique(labels)),
        "mean": mean,
        "standard_deviation": deviation,
        "few": len(train) < _FEW,
    }


def _moments(points):
    """Mean and standard deviation of all values, in units of [-1, 1]."""

    @jax.jit
    def of_images(points):  # stored images stay as they are: no float copy of all of them
        values = decode(points)
        return values.mean(axis=1), (values**2).mean(axis=1)

    mean, square = (np.asarray(part, np.float64).mean() for part in of_images(points))
    return float(mean), math.sqrt(square - mean**2)


def _names(config, dataset):
    """What to call the images, training then held-out: files by name, others by index."""
    path = pathlib.Path(config.dataset).expanduser()
    files = sources.image_paths(path) if sources.is_folder(config.dataset) else None

    def name(split, listed):
        return [str(files[i].relative_to(path)) if listed else f"image {i}" for i in split.index]

    same_source = not isinstance(config.heldout, str)
    return name(dataset.train_split, files) + name(dataset.test_split, files and same_source)


def _describe_copies(dataset, copies, names):
    count = len(dataset.train_split)
    groups = [
        {
            "images": [names[i] for i in group],
            "held_out": [bool(i >= count) for i in group],
            "exact": bool((copies.exact[group] == copies.exact[group[0]]).all()),
            "distance": float(copies.distance[group].max()),
        }
        for group in copies.groups()
    ]
    exact = copies.exact != np.arange(len(copies.exact))
    return {
        "typical_distance": copies.typical,
        "cutoff": copies.cutoff,
        "exact_copies": int(exact.sum()),
        "near_pairs": copies.pairs,
        "images_in_groups": sum(len(group["images"]) for group in groups),
        "groups_in_training": sum(not all(group["held_out"]) for group in groups),
        "groups_over_both": sum(len(set(group["held_out"])) > 1 for group in groups),
        "groups": groups,
    }


def _describe_growth(grown):
    if grown is None:
        return None
    closing = growth_lib.extrapolate(grown)
    columns = {name: value for name, value in grown._asdict().items() if name != "threshold"}
    return {name: value.tolist() for name, value in columns.items()} | {
        "closing": closing and closing._asdict()
    }


def _edges(zone: Zone) -> tuple[float, float] | None:
    return None if zone.low is None else (zone.low, zone.high)


def _shares(zone, wide):
    def share(noise, edges):
        return edges and noise.share(*edges)

    return [
        {
            "name": noise.name,
            "share": share(noise, _edges(zone)),
            "wider_share": share(noise, _edges(wide)),
        }
        for noise in conversions.usual_training_noise()
    ]


def _recommend(config, zone):
    """The gap in each recipe's own terms; None where there is no zone."""
    if zone.low is None:
        return None
    low, high = (float(f"{edge:.3g}") for edge in (zone.low, zone.high))
    betas = {"linear": conversions.linear_betas(), "cosine": conversions.cosine_betas()}
    steps = {name: conversions.timesteps_between(low, high, b) for name, b in betas.items()}
    times = [float(conversions.sigma_to_flow_time(edge)) for edge in (low, high)]
    preset = "digits" if config.dataset == "digits" else "edm_cifar10"
    resize = f" --resize {config.resize}" if config.resize else ""
    return {
        "gap": [low, high],
        "keep": 0.0,
        "edm_sigma": [low, high],
        "ddpm_timesteps": {n: [s.start, s.stop - 1] if s else None for n, s in steps.items()},
        "flow_time": [round(time, 4) for time in times],
        "command": f"python -m geomem.experiments.train {preset} "
        f"--dataset {shlex.quote(config.dataset)}{resize} --gap {low:g} {high:g} --out runs/gap",
    }


def _verdict(zone):
    """risky, borderline or none, and how sure."""
    if zone.low is not None and zone.confidence >= 0.95:
        return "risky"
    return "borderline" if zone.confidence > 0.05 else "none"


def _draw(folder, config, dataset, copies, curves: Curves, zone, grown):
    """Write the figures; returns those for the page, {name: (mime type, bytes)}."""
    drawn = {
        "curves": zone_plot.danger_zone(measured.columns(curves), zone._asdict()),
        "training_noise": audit_plot.training_noise(
            conversions.usual_training_noise(), _edges(zone)
        ),
    }
    if grown is not None:
        drawn["growth"] = audit_plot.growth(grown, growth_lib.extrapolate(grown))
    for name, figure in drawn.items():
        style.save(figure, folder, name)
    embedded = {name: ("image/svg+xml", style.svg(figure)) for name, figure in drawn.items()}
    if groups := copies.groups()[:_SHOWN]:
        names = _names(config, dataset)
        train, test = dataset.train_split.pixels, dataset.test_split.pixels
        rows = []
        for group in groups:
            shown = group[: audit_plot.COPIES + 1].tolist()
            pixels = [train[i] if i < len(train) else test[i - len(train)] for i in shown]
            labels = [names[i] + " (held out)" * (i >= len(train)) for i in shown]
            rows.append((data.to_unit_interval(np.stack(pixels)), labels))
        style.save(audit_plot.copies(rows), folder, "copies")
        embedded["copies"] = ("image/png", (folder / "copies.png").read_bytes())
    return embedded


def _print(report, folder):
    print(f"\n{audit_page.headline(report)}")
    for line in audit_page.answers(report):
        print(f"- {line}")
    for path in sorted(folder.iterdir()):
        print(f"wrote {path}")


if __name__ == "__main__":
    cli.main(Config, run)
