"""Compare trained networks with the two exact denoisers of their training images.

Figures 1 and 2 and Theorems 4.9 and 4.10 compare three denoisers: a trained network; the empirical
denoiser of its training images, which a memorizing network approaches; and the Gaussian denoiser of
these images, which every good denoiser approaches at large noise. `compare_denoisers` loads or
trains the networks and writes an experiment's tables and figure.
"""

import collections
import csv
import dataclasses
import io
import math
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from geomem import data, memory, paths
from geomem.diffusion import adapters, sampler
from geomem.diffusion.sampler import Denoiser
from geomem.experiments.common import image_flags, interruption, results
from geomem.experiments.common.dataclass_flags import flag
from geomem.experiments.train import configuration, loop, presets, run_folder
from geomem.geometry import posterior
from geomem.geometry.gaussian import gaussian_denoiser
from geomem.plots import style

Table = dict[str, np.ndarray]  # columns by name


@dataclasses.dataclass(frozen=True)
class ComparisonFlags:
    """The flags of experiments that compare denoisers."""

    preset: Literal["digits", "cifar16", "cifar10"] = "digits"
    """The pair of training runs. digits takes minutes on two CPU cores, cifar16 (CIFAR-10 at
    16x16) longer; cifar10 is the paper's scale and needs a GPU or a TPU."""
    run: tuple[str, ...] = ()
    """Folders of finished training runs to compare; default: the preset's pair."""
    runs: str = flag("runs", "training")
    """Folder of the preset's runs. Missing runs are trained first."""
    denoiser: str | None = flag(None, "data")
    """A network of another library in place of the training runs: package.module:name of a
    function (x, sigma) -> clean images, or the folder of a saved diffusers pipeline."""
    dataset: str | None = flag(None, "data")
    """The images that --denoiser was trained on."""
    num_train: int | None = flag(None, "data")
    """Number of its training images; default: all."""
    heldout: str | None = flag(None, "data")
    """Held-out images; default: the data set's test images, or a fifth of its images."""
    num_sigmas: int = flag(24, "noise")
    """Number of noise levels, evenly spaced in their logarithm."""
    sigma_min: float = flag(0.02, "noise")
    """Smallest noise level."""
    sigma_max: float = flag(80.0, "noise")
    """Largest noise level."""
    num_images: int = flag(1000, "evaluation", least=2)
    """Number of training images and of held-out images to noise, the first of each."""
    out: str = flag("runs/denoisers", "output")
    """Folder for the results."""
    plot_only: str | None = flag(None, "output")
    """Only draw the figure of this finished run again."""
    batch: int = flag(256, "advanced")
    """Number of images to denoise at once."""
    seed: int = flag(0, "advanced")
    """Seed of the noise."""


# Flags that are ignored with another one, and without it.
EXCLUDES = {"denoiser": ("run", "runs", "preset"), "run": ("runs", "preset")}
NEEDS = {"num_train": ("denoiser",), "heldout": ("denoiser",)}

# The same recipe on two training sets: one small enough to be memorized, and one too large.
PRESET_RUNS = {
    "digits": {
        "digits_128_all_noise": presets.DIGITS_ALL_NOISE,
        "digits_900_all_noise": dataclasses.replace(presets.DIGITS_ALL_NOISE, num_train=900),
    },
    "cifar16": {
        "cifar16_100_all_noise": presets.CIFAR16_ALL_NOISE,
        "cifar16_1000_all_noise": dataclasses.replace(presets.CIFAR16_ALL_NOISE, num_train=None),
    },
    "cifar10": {
        "cifar10_1k": presets.PRESETS["edm_small"],
        "cifar10_50k": dataclasses.replace(presets.PRESETS["edm_small"], num_train=None),
    },
}


class TrainedRun(NamedTuple):
    """A training run's images, float32 [N, H, W, C], and denoisers of (x, sigma)."""

    name: str  # of the run folder
    train: np.ndarray
    heldout: np.ndarray
    stored: np.ndarray  # the training images as they are stored, e.g. in 8 bits
    denoisers: dict[str, Denoiser]  # "network", "empirical" and "Gaussian"; pytrees
    facts: dict[str, Any]  # configuration and data, as JSON values


def compare_denoisers(
    config: ComparisonFlags,
    measure: Callable[[Any, np.ndarray, TrainedRun], Mapping[str, list[Table]]],
    draw: Callable,
    summarize: Callable[..., str],
) -> dict[str, Table]:
    """Measure the denoisers of each training run; write tables, run.json and a figure.

    Args:
      config: the experiment's flags.
      measure: maps (config, noise levels, training run) to the parts of each table, by its name.
      draw: maps the tables, as keyword arguments, to a matplotlib Figure.
      summarize: maps the tables of one run, as keyword arguments, to a sentence to print.

    Returns:
      The columns of each table, by name; empty with `plot_only`.
    """
    if config.plot_only is not None:
        folder = paths.as_path(config.plot_only)
        with results.reading("plot_only", folder):
            tables = {path.stem: read_table(path) for path in folder.glob("*.csv")}
            if not tables:
                raise ValueError("it holds no tables")
            figure = draw(**tables)
        style.save(figure, folder)
        return {}
    sigmas = image_flags.noise_levels(config.num_sigmas, config.sigma_min, config.sigma_max)
    sigmas = sigmas.astype(np.float32)
    output = results.Run(config)
    with output.phase("runs"):
        runs = load_runs(config)
    parts = collections.defaultdict(list)
    for run in runs:
        labels = {"run": run.name, "train_images": len(run.train)}
        with output.phase(run.name):
            for name, measured in measure(config, sigmas, run).items():
                parts[name] += [make_table(labels, **table) for table in measured]
    tables = {
        name: {column: np.concatenate([part[column] for part in some]) for column in some[0]}
        for name, some in parts.items()
    }
    for name, table in tables.items():
        output.write_columns(f"{name}.csv", table)
    output.write_figure("figure", draw(**tables))
    output.finish(runs=[run.facts for run in runs])
    for run in runs:
        run_tables = {name: select(table, run=run.name) for name, table in tables.items()}
        print(f"{run.name}: {summarize(**run_tables)}")
    return tables


def make_table(labels: Mapping[str, Any], **columns: np.ndarray) -> Table:
    """Return the columns beside those of `labels`, which are the same in each row."""
    length = len(next(iter(columns.values())))
    return {name: np.full(length, value) for name, value in labels.items()} | columns


def read_table(path: paths.AnyPath) -> Table:
    """Return the columns of a CSV file, float64 if every value is a number, else text."""
    path = paths.as_path(path)
    try:
        if isinstance(path, pathlib.Path) and not path.is_file():  # a pipe would wait for a writer
            raise IndexError("no file")
        rows = list(csv.DictReader(io.StringIO(path.read_text())))
        if any(None in (*row, *row.values()) for row in rows):
            raise IndexError("rows of different lengths")
        return {name: _as_numbers([row[name] for row in rows]) for name in rows[0]}
    except (OSError, ValueError, TypeError, IndexError, csv.Error):
        raise ValueError(f"{path} must be a CSV file with rows.") from None


def select(table: Mapping[str, np.ndarray], **values: Any) -> Table:
    """Return the rows of a table whose named columns have these values."""
    kept = np.all([table[name] == value for name, value in values.items()], axis=0)
    return {name: column[kept] for name, column in table.items()}


def load_runs(config: ComparisonFlags) -> list[TrainedRun]:
    """Return the training runs that `config` names; train those of the preset that are missing."""
    if (config.denoiser is None) != (config.dataset is None):
        raise ValueError("denoiser and dataset must be given together.")
    if config.denoiser is not None:
        return [load_other(config.denoiser, _other_images(config))]
    names = {paths.as_path(folder).name for folder in config.run}
    if len(names) < len(config.run):
        raise ValueError(f"run must be folders of different names, got {', '.join(config.run)}.")
    if config.run:
        return [load_run(folder) for folder in config.run]
    recipes = PRESET_RUNS[config.preset]
    return [train_and_load(config.runs, name, recipe) for name, recipe in recipes.items()]


def train_and_load(runs: paths.AnyPath, name: str, recipe: configuration.Config) -> TrainedRun:
    """Return the run `name` in the folder `runs`; train it first if it is missing or unfinished."""
    folder = paths.as_path(runs) / name
    try:
        result = loop.run(dataclasses.replace(recipe, out=str(folder)))
    except ValueError as error:
        raise ValueError(re.sub(r"\Aout\b", "runs", str(error))) from None
    if not result.finished:
        raise interruption.Stopped(
            f"{folder} was stopped at step {result.step}; the same command finishes it."
        )
    return load_run(folder)


def load_run(folder: paths.AnyPath) -> TrainedRun:
    """Return the images and denoisers of a training run."""
    folder = paths.as_path(folder)
    network, params, _ = run_folder.load(folder)
    dataset = load_images(folder)
    recorded = {"run": folder.name, "config": run_folder.read_facts(folder)["config"]}
    return _trained_run(folder.name, network.bind(params), dataset, recorded)


def load_images(folder: paths.AnyPath) -> data.Dataset:
    """Return the images of a training run.

    Raises:
      ValueError: not a run folder, or the data set holds other images now.
    """
    facts = run_folder.read_facts(folder)
    recipe = configuration.from_facts(facts)
    try:
        dataset = image_flags.load(recipe)
    except ValueError as error:
        raise ValueError(
            f"run must be trained on images that can be loaded, got {folder} ({error})"
        ) from None
    if dataset.train_split.sha256() != facts["data"]["sha256"]:
        raise ValueError(
            f"run must be trained on the images that {recipe.dataset} holds now, got {folder}, "
            "which was trained on others."
        )
    return dataset


def load_other(name: str, images: image_flags.ImageFlags) -> TrainedRun:
    """Return a network of another library, by its name for `adapters.load`, and its images.

    Raises:
      ValueError: no such denoiser, or it cannot denoise these images.
    """
    dataset = image_flags.load(images)
    denoiser = load_network(name, dataset.train_split.shape[1:])
    label = paths.as_path(name).name
    return _trained_run(label, denoiser, dataset, {"run": label, "denoiser": name})


def load_network(name: str, image_shape: tuple[int, ...]) -> Denoiser:
    """Return `adapters.load(name)` as a pytree, tried on two images.

    Raises:
      ValueError: no such denoiser, or it cannot denoise images of this shape.
    """
    memory.check("image_shape", 32 * math.prod(image_shape), image_shape)
    images = np.zeros((2, *image_shape), np.float32)
    try:
        denoiser = sampler.as_pytree(adapters.load(name))
        # Compiled, as the sampler does, which NumPy's functions do not allow.
        clean = jax.jit(lambda denoiser, x: denoiser(x, jnp.ones(2)))(denoiser, images)
        clean = np.asarray(clean)
    except MemoryError:
        raise
    except (Exception, SystemExit) as error:  # whatever somebody's code raises
        if str(error).startswith("denoiser "):
            raise
        reason = str(error).strip().splitlines()[-1:]
        raise ValueError(
            f"denoiser must denoise images of shape {image_shape}, got {name}: "
            f"{type(error).__name__}{': '.join(['', *reason])}"
        ) from error
    if clean.shape != images.shape or clean.dtype.kind not in "fV":  # V is bfloat16
        raise ValueError(
            f"denoiser must return floats of shape {images.shape} like its input, got "
            f"{clean.dtype} {clean.shape}."
        )
    if not np.isfinite(clean.astype(np.float32)).all():
        raise ValueError(f"denoiser must return finite values, got NaN or infinity from {name}.")
    return denoiser


def _trained_run(name, network, dataset, facts):
    denoisers = {
        "network": network,
        "empirical": posterior.empirical_denoiser(dataset.train),
        "Gaussian": gaussian_denoiser(dataset.train),
    }
    facts["data"] = results.dataset_facts(dataset)
    stored = dataset.train_split.pixels
    return TrainedRun(name, dataset.train, dataset.test, stored, denoisers, facts)


def _other_images(config):
    return image_flags.ImageFlags(
        dataset=config.dataset, num_train=config.num_train, heldout=config.heldout
    )


def _as_numbers(values):
    try:
        return np.array([float(value) for value in values])
    except ValueError:
        return np.array(values)
