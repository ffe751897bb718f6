"""Figure 3: coverage and posterior concentration of a data set, and its danger zone.

geomem danger-zone cifar10_sample --out runs/danger_zone
"""

from __future__ import annotations

import dataclasses
import math
import pathlib
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from geomem import data
from geomem.experiments.common import command_line, curve_sets, image_flags, results
from geomem.experiments.common.dataclass_flags import flag
from geomem.geometry import curves as curves_lib
from geomem.geometry import danger_zone, frequency_bands
from geomem.geometry._noise_coordinates import reducible
from geomem.geometry.curves import Curves
from geomem.geometry.danger_zone import Zone
from geomem.plots import style
from geomem.plots import zone as zone_plot
from geomem.points import placement

__all__ = ["Config", "Result", "run", "sigma_grid"]

_PAPER_TRIALS, _PAPER_SUBSET, _PAPER_COVERAGE_DRAWS = 350, 1000, 10  # App. E.2
_PAPER_BASE_POINTS, _PAPER_WEIGHT_DRAWS = 100, 400  # App. E.3
_PAPER_SIGMAS = 40, 0.002, 80.0  # count, smallest, largest
_OF_PROTOCOL = (
    *("num_sigmas", "sigma_min", "sigma_max", "sigmas"),
    *("num_base", "draws_coverage", "draws_weight", "images", "by_class", "subsets"),
)


@dataclasses.dataclass(frozen=True)
class Config(image_flags.CurveFlags):
    """Find the noise levels at which a diffusion model can memorize these images (Figure 3).

    Estimates the shell coverage C(sigma) over held-out images and the max posterior weight W(sigma)
    over training images. The danger zone is where both reach the threshold. The paper's protocol
    computes the coverage over 350 fresh subsets (of --num-train images, default 1,000) with one
    held-out image and 10 draws each, and the max weight over 100 images of one subset with 400
    draws each, at 40 EDM levels from 0.002 to 80.
    """

    sigmas: tuple[float, ...] = flag((), "curves")
    """Explicit noise levels, ascending; overrides the grid."""
    grid: Literal["log", "edm"] = flag("log", "curves")
    """Spacing of the noise levels: even in log sigma (log) or in sigma^(1/rho) (edm)."""
    protocol: Literal["standard", "paper"] = flag("standard", "curves")
    """With paper, the protocol of the paper's App. E.2 and E.3 sets the grid, the subsets and the
    draws."""
    band: Literal["low", "high"] | None = flag(None, "curves")
    """Use only the images' low or high spatial frequencies."""
    radius: float = flag(4.0, "curves")
    """Boundary between the bands, in cycles per image."""
    seed: int = flag(0, "curves")
    """Seed of the noise and the bootstrap."""
    by_class: bool = flag(False, "curves")
    """Also estimate the curves of each class alone, as a class-conditional model sees them."""
    subsets: int | None = flag(None, "curves", least=3, most=1000)
    """Also estimate the curves of this many disjoint random subsets of the training images, each of
    --num-train images, and predict the curves of another training set of that size."""
    images: bool = flag(False, "output")
    """Also write images.csv and images.png: up to which noise level each training image is exposed,
    its copies, and its nearest neighbor."""
    out: str = flag("runs/danger_zone", "output")
    """Folder for curves.csv, zone.json, run.json, figure.png and figure.pdf."""
    plot_only: str | None = flag(None, "output")
    """Only draw the figure of this finished run again."""
    num_base: int | None = flag(None, "advanced")
    """Number of training images that are noised for the max weight; default: all."""
    draws_coverage: int = flag(8, "advanced", most=100_000)
    """Noise draws for each held-out image."""
    draws_weight: int = flag(4, "advanced", most=100_000)
    """Noise draws for each training image."""
    bootstrap: int = flag(500, "advanced", most=100_000)
    """Number of bootstrap replicates for bands and intervals."""
    rho: float = flag(7.0, "advanced", least=0.1, most=1000)
    """Exponent of the EDM grid."""


class Result(NamedTuple):
    """The results of a run.

    Attributes:
      curves: the curves over the grid of noise levels.
      zone: the danger zone.
      folder: where the files are.
    """

    curves: Curves
    zone: Zone
    folder: pathlib.Path


def sigma_grid(config: Config, scale: float = 1.0) -> np.ndarray:
    """Return the noise levels [S], float32, ascending, for data of this `Dataset.noise_scale`.

    Raises:
      ValueError: levels that are not finite, positive and ascending, or an empty grid.
    """
    if config.sigmas:
        return curves_lib.check_sigmas(config.sigmas)
    paper = config.protocol == "paper"
    levels = config.num_sigmas, *image_flags.level_range(config, scale)
    count, low, high = _PAPER_SIGMAS if paper else levels
    sigmas = image_flags.noise_levels(count, low, high)
    if not config.rho > 0:
        raise ValueError(f"rho must be positive, got {config.rho:g}.")
    if paper or config.grid == "edm":
        sigmas = np.linspace(low ** (1 / config.rho), high ** (1 / config.rho), count) ** config.rho
    return curves_lib.check_sigmas(sigmas)


def run(config: Config) -> Result | None:
    """Estimate the curves, find the zone, write the files, print a summary.

    Args:
      config: what to run.

    Returns:
      Result, or None with `plot_only`.

    Raises:
      ValueError: invalid configuration or data.
    """
    if config.plot_only is not None:
        with results.reading("plot_only", config.plot_only):
            columns, zone, facts = zone_plot.read_run(config.plot_only)
            figure = zone_plot.danger_zone(columns, zone, _title(facts))
        style.save(figure, config.plot_only)
        return None
    sigma_grid(config)  # bad flags end the run before the images are read
    if config.protocol == "paper":
        for name in _OF_PROTOCOL:
            if getattr(config, name) != getattr(Config, name):
                raise ValueError(f"{name} must be left out with the paper's protocol.")
    danger_zone.check_threshold(config.threshold)
    record = results.Run(config)
    with record.phase("data"):
        # The paper's protocol draws its own subsets from all training images.
        whole = dataclasses.replace(config, num_train=None)
        dataset = image_flags.load(whole if config.protocol == "paper" else config)
        sigmas = sigma_grid(config, dataset.noise_scale)
        _check_data(config, dataset.train_split.shape)
        sets = curve_sets.requested(config, dataset)
        duplicates, shared = _count_copies(dataset)
        train, heldout = _train_points(dataset, config), _points(dataset.test, config)
    style.import_in_background()
    with record.phase("curves"):
        curves = jax.block_until_ready(_estimate(config, train, heldout, sigmas))
    with record.phase("zone"):
        zone = danger_zone.find(curves, config.threshold)
    with record.phase("files"):
        record.write_columns("curves.csv", curves.columns())
        record.write_json("zone.json", zone._asdict())
        facts = results.dataset_facts(dataset)
        facts |= {"duplicate_train_images": duplicates, "heldout_images_in_train": shared}
    title = _title({"data": facts, "config": dataclasses.asdict(config)})
    sentences = _write_extras(config, record, dataset, sets, sigmas, curves, zone, title)
    with record.phase("figure"):
        record.write_figure("figure", zone_plot.danger_zone(curves, zone, title))
    record.finish(data=facts, dimensions=train.shape[1])
    _print(curves, zone)
    for sentence in sentences:
        print(sentence)
    return Result(curves, zone, record.folder)


def _check_data(config, shape):
    """Raise a ValueError if flags do not fit training images of this shape [N, ...]."""
    if shape[0] < 2:
        raise ValueError(f"num_train must leave at least 2 training images, got {shape[0]}.")
    if not (config.num_base or 1) <= shape[0]:
        raise ValueError(f"num_base must be between 1 and {shape[0]}, got {config.num_base}.")
    if config.band is not None and len(shape) != 4:
        raise ValueError(f"band must be left out unless data are [N, H, W, C], got {shape}.")
    if config.band is not None:
        frequency_bands.fourier_band(*shape[1:3], config.radius, config.band)


def _write_extras(config, record, dataset, sets, sigmas, curves, zone, title):
    """Write what --images, --by-class and --subsets ask for; return sentences about it."""
    sentences = []
    if curves.group_weight is not None:
        grouped = danger_zone.find(curves, config.threshold, group_copies=True)
        sentences.append(f"With exact copies counted as one image: {grouped}")
        record.write_json("zone_of_groups.json", grouped._asdict())
    if config.images:
        with record.phase("images"):
            columns, figure = curve_sets.exposed_images(
                dataset, config.dataset, curves.exposure, zone, title
            )
            record.write_columns("images.csv", columns)
            record.write_figure("images", figure)
        sentences.append(curve_sets.most_and_least(columns))

    def estimate(part):
        return _estimate(config, _train_points(part, config), _points(part.test, config), sigmas)

    for kind, parts in sets.items():
        with record.phase(kind):
            found = curve_sets.estimate(parts, kind, estimate, config.threshold)
            record.write_rows(f"{kind}_zones.csv", found.zones)
            record.write_rows(f"{kind}_curves.csv", found.curves)
            another = curve_sets.another_set(found) if kind == "subset" else None
            if another is not None:
                record.write_json("another_set.json", another)
            sentences += curve_sets.sentences(found, kind, another)
    return sentences


def _train_points(dataset, config):
    """The training points: on one device, sharded over all devices, or streamed."""
    split = dataset.train_split
    # On one device, the dimensions of few points can be reduced.
    few = reducible(len(split), len(dataset.test), math.prod(split.shape[1:]))
    if config.band is not None or config.protocol == "paper" or few:
        return _points(dataset.train, config)
    points = placement.place(split)
    if isinstance(points, placement.Stream):
        print(f"{len(points):,} images do not fit in memory and are streamed.")
    return points


def _points(images, config):
    if config.band is None:
        return jnp.asarray(images.reshape(len(images), -1))
    band = frequency_bands.fourier_band(*images.shape[1:3], config.radius, config.band)
    return band.coordinates(jnp.asarray(images))


def _count_copies(dataset):
    """Count and warn of copies: (duplicates in training, held-out images in training)."""
    train, heldout = dataset.train_split, dataset.test_split
    duplicates = data.count_duplicates(train.blocks())
    shared = data.count_shared(heldout.blocks(), train.blocks())
    if duplicates:
        command_line.warn(
            f"{duplicates} of {len(train)} training images are exact copies of others"
        )
    if shared:
        command_line.warn(f"{shared} of {len(heldout)} held-out images are also training images")
    return duplicates, shared


def _estimate(config, train, heldout, sigmas):
    key = jax.random.key(config.seed)
    if config.protocol == "paper":
        return _paper_estimate(key, config, train, heldout, sigmas)
    return curves_lib.estimate(
        key,
        train,
        heldout,
        sigmas,
        num_base=config.num_base,
        draws_coverage=config.draws_coverage,
        draws_weight=config.draws_weight,
        shell_c=config.shell_c,
        bootstrap=config.bootstrap,
        progress=True,
    )


def _paper_estimate(key, config, train, heldout, sigmas):
    """Estimate C on fresh subsets with one held-out image each (App. E.2), W on one (App. E.3)."""
    size = config.num_train or _PAPER_SUBSET
    if not _PAPER_BASE_POINTS <= size <= len(train):
        limits = f"between {_PAPER_BASE_POINTS} and {len(train)}"
        raise ValueError(f"num_train must be {limits} for the paper's protocol, got {size}.")
    if size == len(train):
        command_line.warn(f"all subsets are the same: --num-train is all {size} training images")
    subset_key, coverage_key, weight_key, bootstrap_key = jax.random.split(key, 4)

    def subset(trial):
        order = jax.random.permutation(jax.random.fold_in(subset_key, trial), len(train))
        return train[order[:size]]

    trials = []
    for trial in tqdm.trange(_PAPER_TRIALS, desc="coverage", unit="trial"):
        trials.append(
            curves_lib.estimate_coverage(
                jax.random.fold_in(coverage_key, trial),
                subset(trial),
                heldout[trial % len(heldout)][None],
                sigmas,
                draws=_PAPER_COVERAGE_DRAWS,
                shell_c=config.shell_c,
                bootstrap=1,
            )
        )
    coverage, lower, upper = jax.tree.map(lambda *values: jnp.stack(values), *trials)
    weight = curves_lib.estimate_weight(
        weight_key,
        subset(_PAPER_TRIALS),
        sigmas,
        num_base=_PAPER_BASE_POINTS,
        draws=_PAPER_WEIGHT_DRAWS,
        bootstrap=config.bootstrap,
        progress=True,
    )
    return Curves(
        jnp.asarray(sigmas),
        curves_lib.bootstrap_fraction(
            bootstrap_key, coverage.mean, _PAPER_COVERAGE_DRAWS, config.bootstrap
        ),
        lower.mean(axis=0),
        upper.mean(axis=0),
        *weight,
    )


def _title(facts):
    """The figure's title, from the content of run.json."""
    name = style.plain(" ".join([facts["data"]["name"], *facts["config"]["classes"]]))
    if facts["config"]["protocol"] == "paper":
        return f"{name}: subsets of {facts['config']['num_train'] or _PAPER_SUBSET:,} images"
    train, heldout = (f"{facts['data'][split]['count']:,}" for split in ("train", "test"))
    return f"{name}: {train} training, {heldout} held-out images"


def _print(curves, zone):
    print(f"\n{'sigma':>8}  {'coverage':>8} {'95% band':>15}   {'max weight':>10} {'95% band':>15}")
    for i, sigma in enumerate(np.asarray(curves.sigma)):
        cells = "   ".join(
            f"{estimate.mean[i]:{width}.4f} [{estimate.low[i]:.4f}, {estimate.high[i]:.4f}]"
            for estimate, width in ((curves.coverage, 8), (curves.max_weight, 10))
        )
        print(f"{sigma:8.4g}  {cells}")
    print(f"\n{zone}")


if __name__ == "__main__":
    command_line.main(
        Config,
        run,
        excludes={"sigmas": ("num_sigmas", "sigma_min", "sigma_max", "grid", "rho")},
        needs={"radius": ("band",), "rho": ("grid", "protocol")},
    )
