"""What Figures 1 and 2 and Theorems 4.9 and 4.10 compare: trained networks and two exact denoisers.

Each trained network goes with the images that it was trained on, and with the two denoisers that
these images alone determine: the empirical one, which a network that memorizes approaches, and the
Gaussian one, which every good denoiser is near at large noise. The experiments differ in what they
measure of them; `experiment` is all the rest.
"""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from geomem import paths
from geomem.diffusion import checkpoints
from geomem.diffusion.sampler import Denoiser
from geomem.experiments.common import flags, results
from geomem.experiments.train import configuration, run_folder
from geomem.geometry import posterior
from geomem.geometry.gaussian import fit_gaussian, gaussian_denoise
from geomem.plots import style

__all__ = [
    "PRESET_RUNS",
    "Compared",
    "Config",
    "Rows",
    "experiment",
    "load",
    "load_run",
    "read_table",
    "rows",
    "select",
    "train_and_load",
]

Rows = list[dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Config:
    """The flags that the experiments share."""

    preset: Literal["digits", "cifar10"] = "digits"
    """digits: minutes on two CPU cores; cifar10: the paper's scale, for a GPU or TPU."""
    run: tuple[str, ...] = ()
    """Run folders of geomem.experiments.train to compare; default: the preset's two."""
    runs: str = "runs"
    """Where the preset's two runs are; what is missing there is trained first."""
    num_images: int = 1000
    """Training images, and held-out images, that are noised: the first, at most so many."""
    draws: int = 4
    """Noise draws for each image and level, the same for all denoisers."""
    num_sigmas: int = 24
    """Number of noise levels, log-spaced."""
    sigma_min: float = 0.02
    """Smallest noise level."""
    sigma_max: float = 80.0
    """Largest noise level."""
    batch: int = 256
    """Images denoised at once."""
    seed: int = 0
    """Seed of the noise."""
    out: str = "runs/compared"
    """Folder for the tables (CSV), run.json, figure.png and figure.pdf."""
    plot_only: str | None = None
    """Only draw the figure of this finished run again."""


# Noise at all levels that are looked at, and long enough for the error at the largest to settle.
_DIGITS = dataclasses.replace(
    run_folder.PRESETS["digits"],
    noise_mean=0.0,
    noise_std=2.0,
    batch=128,
    ema_halflife_kimg=200,
    ema_ramp=0.25,
    kimg=1600,
    checkpoint_every=2500,
)

# From one recipe, a run that memorizes and one that sees too many images for that.
PRESET_RUNS = {
    "digits": {
        "digits_128_all_noise": _DIGITS,
        "digits_900_all_noise": dataclasses.replace(_DIGITS, num_train=900),
    },
    "cifar10": {
        "cifar10_1k": run_folder.PRESETS["edm_small"],
        "cifar10_50k": dataclasses.replace(run_folder.PRESETS["edm_small"], num_train=None),
    },
}


class Compared(NamedTuple):
    """A training set and the denoisers made from it.

    Attributes:
      run: name of the training run.
      train: its training images, float32 [N, H, W, C].
      heldout: held-out images of the same data set, float32 [M, H, W, C].
      denoisers: by kind: "network", "empirical" and "Gaussian"; pytrees.
      facts: what the run was, as JSON values.
    """

    run: str
    train: np.ndarray
    heldout: np.ndarray
    denoisers: dict[str, Denoiser]
    facts: dict[str, Any]


def experiment(
    config: Config,
    measure: Callable[[Config, np.ndarray, Compared], Mapping[str, Rows]],
    figure: Callable,
    sentence: Callable[..., str],
) -> dict[str, dict[str, np.ndarray]]:
    """Measure each training run's denoisers; write tables, run.json, the figure; print a line.

    Args:
      config: what to compare.
      measure: (config, noise levels, compared) -> rows by name of table.
      figure: from the tables, as keyword arguments of these names, to a matplotlib Figure.
      sentence: from those of one training run to what is printed of it.

    Returns:
      The columns of each table, by name; empty with `plot_only`.

    Raises:
      ValueError: unusable configuration, runs or data.
      OSError: the results cannot be written.
    """
    if config.plot_only is not None:
        folder = paths.as_path(config.plot_only)
        _draw(folder, figure, {path.stem: read_table(path) for path in folder.glob("*.csv")})
        return {}
    sigmas = flags.noise_levels(config.num_sigmas, config.sigma_min, config.sigma_max)
    sigmas = sigmas.astype(np.float32)
    folder, phases = results.make_folder(config.out), results.Phases()
    tables, facts = {}, []
    with phases("runs"):
        compared = list(load(config))
    for one in compared:
        with phases(one.run):
            for name, found in measure(config, sigmas, one).items():
                labels = {"run": one.run, "train_images": len(one.train)}
                tables.setdefault(name, []).extend(labels | row for row in found)
        facts.append(one.facts)
    for name, found in tables.items():
        results.write_rows(folder / f"{name}.csv", found)
    columns = {name: read_table(folder / f"{name}.csv") for name in tables}
    results.write_run(folder, config, phases, runs=facts)
    _draw(folder, figure, columns)
    print(f"wrote {', '.join(f'{name}.csv' for name in tables)} and run.json in {folder}")
    for run in dict.fromkeys(next(iter(columns.values()))["run"]):
        one = {name: select(table, run=run) for name, table in columns.items()}
        print(f"{run}: {sentence(**one)}")
    return columns


def read_table(path: paths.AnyPath) -> dict[str, np.ndarray]:
    """Return the columns of a CSV file, float64 if every value is a number, else text.

    Raises:
      ValueError: the file is missing or has no rows.
    """
    try:
        rows = list(csv.DictReader(io.StringIO(paths.as_path(path).read_text())))
        columns = {name: [row[name] for row in rows] for name in rows[0]}
    except (OSError, IndexError):
        raise ValueError(f"{path} must be a CSV file with rows.") from None
    return {name: _as_numbers(values) for name, values in columns.items()}


def select(table: Mapping[str, np.ndarray], **values: Any) -> dict[str, np.ndarray]:
    """The rows of a table, by column, in which these columns have these values."""
    kept = np.all([table[name] == value for name, value in values.items()], axis=0)
    return {name: column[kept] for name, column in table.items()}


def rows(sigmas: np.ndarray, labels: Mapping[str, Any], **columns: np.ndarray) -> Rows:
    """One row for each noise level: `labels`, sigma, and the level's entry of each column [S]."""
    names = ["sigma", *columns]
    values = np.stack([sigmas, *columns.values()], axis=1).tolist()
    return [{**labels, **dict(zip(names, row, strict=True))} for row in values]


def load(config: Config) -> Iterator[Compared]:
    """What `config` names; the preset's runs are trained as far as they are not.

    Raises:
      ValueError: not a run, two of the same name, a training that was stopped, or a data set that
        has changed since.
    """
    names = {paths.as_path(folder).name for folder in config.run}
    if len(names) < len(config.run):
        raise ValueError(f"run: {', '.join(config.run)}, wanted folders of different names")
    for folder in config.run:
        yield load_run(folder)
    if not config.run:
        for name, recipe in PRESET_RUNS[config.preset].items():
            yield train_and_load(config.runs, name, recipe)


def train_and_load(runs: paths.AnyPath, name: str, recipe: run_folder.Config) -> Compared:
    """The run `name` in the folder `runs`, trained as far as it is not.

    Raises:
      ValueError: a training that was stopped.
    """
    folder = paths.as_path(runs) / name
    result = run_folder.run(dataclasses.replace(recipe, out=str(folder)))
    if not result.finished:
        raise ValueError(f"runs: {folder} stopped at step {result.step}, wanted it whole")
    return load_run(folder)


def load_run(folder: paths.AnyPath) -> Compared:
    """A training run's images and denoisers.

    Raises:
      ValueError: not a run, or a data set that has changed since.
    """
    folder = paths.as_path(folder)
    denoiser, params, _ = run_folder.load(folder)
    facts = checkpoints.read_facts(folder)
    recipe = configuration.from_facts(facts)
    dataset = configuration.load_data(recipe)
    if dataset.train_split.sha256() != facts["data"]["sha256"]:
        raise ValueError(f"run: {folder} was trained on other images than {recipe.dataset} has now")
    points = jax.numpy.asarray(dataset.train.reshape(len(dataset.train), -1))
    denoisers = {
        "network": denoiser.bind(params),
        "empirical": posterior.empirical_denoiser(dataset.train),
        "Gaussian": jax.tree_util.Partial(_gaussian, fit_gaussian(points)),
    }
    about = {"run": folder.name, "config": facts["config"], "data": results.dataset_facts(dataset)}
    return Compared(folder.name, dataset.train, dataset.test, denoisers, about)


def _as_numbers(values):
    try:
        return np.array([float(value) for value in values])
    except ValueError:
        return np.array(values)


def _gaussian(gaussian, x, sigma):
    return gaussian_denoise(x.reshape(len(x), -1), gaussian, sigma).reshape(x.shape)


def _draw(folder, figure, tables):
    if not tables:
        raise ValueError(f"plot_only: {folder} holds no tables, wanted a finished run")
    for path in style.save(figure(**tables), folder):
        print(f"wrote {path}")
