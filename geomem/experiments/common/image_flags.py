"""Flags that select images and noise levels, and what they select."""

import dataclasses
import pathlib
from typing import Literal

import numpy as np

from geomem import data, memory, paths
from geomem.data import folders, sources
from geomem.experiments.common.dataclass_flags import flag


@dataclasses.dataclass(frozen=True)
class ImageFlags:
    """Which images to use."""

    dataset: str = flag("cifar10_sample", "data", positional=True)
    """A folder of PNG or JPEG images, an .npy or .npz file of images, latents or vectors, or one of
    cifar10_sample, cifar10, celeba_gray, digits, tfds:NAME and hf:PATH (Parquet files)."""
    num_train: int | None = flag(None, "data")
    """Number of training images; default: all."""
    num_heldout: int | None = flag(None, "data")
    """Number of held-out images; default: all."""
    heldout: float | str | None = flag(None, "data")
    """The fraction of the images to hold out, or other images to use as held-out images; default:
    the data set's test images, or a fifth of its images."""
    classes: tuple[str, ...] = flag((), "data")
    """Names of the classes to use; default: all."""
    resize: int | None = flag(None, "data", most=2**14)
    """Crop the images to their center square and resize them to this side."""
    layout: Literal["NHWC", "NCHW"] | None = flag(None, "data")
    """Order of the axes of an array; needed where it could be either."""
    range: tuple[float, float] | None = flag(None, "data", least=-1e12)
    """The values of a float array that stand for black and white; default: -1 and 1."""
    scale: float | None = flag(None, "data")
    """Take the array as latents or vectors, and multiply its values by this factor."""
    heldout_seed: int = flag(0, "advanced")
    """Seed that selects the held-out fraction."""
    subset_seed: int | None = flag(None, "advanced")
    """Seed of a random subset; default: the first images in canonical order."""


@dataclasses.dataclass(frozen=True)
class CurveFlags(ImageFlags):
    """Which images to use, and at which noise levels to look for their danger zone."""

    num_sigmas: int = flag(32, "curves", least=2, most=10_000)
    """Number of noise levels."""
    sigma_min: float | None = flag(None, "curves")
    """Smallest noise level; default: 0.02 for images, 0.04 standard deviations of other data."""
    sigma_max: float | None = flag(None, "curves")
    """Largest noise level; default: 80 for images, 160 standard deviations of other data."""
    threshold: float = flag(0.8, "curves")
    """Value that both curves reach inside the danger zone."""
    shell_c: float = flag(5.0, "advanced", least=1e-3, most=1e4)
    """Concentration parameter c of the Gaussian shells."""


def load(config: ImageFlags) -> data.Dataset:
    """Return the images that a configuration selects."""
    dataset = data.load(
        config.dataset,
        heldout=config.heldout,
        resize=config.resize,
        seed=config.heldout_seed,
        layout=config.layout,
        value_range=config.range,
        scale=config.scale,
    )
    dataset = dataset.subset(
        classes=config.classes,
        count=config.num_train,
        heldout_count=config.num_heldout,
        seed=config.subset_seed,
    )
    _ = dataset.noise_scale  # latents and vectors on a scale that float32 cannot resolve
    if len(dataset.test_split) == 0:
        return dataset
    shape, heldout_shape = dataset.train_split.shape[1:], dataset.test_split.shape[1:]
    if shape != heldout_shape:
        raise ValueError(
            f"heldout must have images of shape {shape} like training, got {heldout_shape}."
        )
    if dataset.is_images != dataset.test_split.is_images:
        kinds = "latents", "images in [-1, 1]"
        own, other = kinds[dataset.is_images], kinds[not dataset.is_images]
        raise ValueError(f"heldout must hold {own} like training, got {other}.")
    return dataset


def check_memory(copies: int, *splits: data.Split) -> None:
    """Raise a ValueError unless memory holds all images of `splits`, as stored, `copies` times."""
    count, shape = sum(map(len, splits)), splits[0].shape[1:]
    needed = copies * count * splits[0].at(slice(0, 1)).nbytes
    memory.check("dataset", needed, f"{count} images of {shape}")


def file_names(source: str, split: data.Split) -> list[str]:
    """Return the file of each image, relative to its folder, or NAME:POSITION in other sources."""
    if not sources.is_folder(source):
        return [f"{pathlib.Path(source).name}:{i}" for i in split.index]
    folder = paths.as_path(source)
    files = folders.image_paths(folder)
    return [files[i].relative_to(folder).as_posix() for i in split.index]


def all_file_names(config: ImageFlags, dataset: data.Dataset) -> list[str]:
    """Return the `file_names` of the training images, then of the held-out images."""
    other = config.heldout if isinstance(config.heldout, str) else config.dataset
    splits = (config.dataset, dataset.train_split), (other, dataset.test_split)
    return [name for source, split in splits for name in file_names(source, split)]


def level_range(config: CurveFlags, scale: float = 1.0) -> tuple[float, float]:
    """Return the smallest and largest noise level for data of this `Dataset.noise_scale`."""
    low = 0.02 * scale if config.sigma_min is None else config.sigma_min
    high = 80 * scale if config.sigma_max is None else config.sigma_max
    return low, high


def noise_levels(count: int, low: float, high: float) -> np.ndarray:
    """Return `count` noise levels from `low` to `high`, evenly spaced in their logarithm."""
    if count < 2:
        raise ValueError(f"num_sigmas must be 2 or more, got {count}.")
    if not 0 < low < high < np.inf:
        raise ValueError(
            f"sigma_min and sigma_max must be positive and ascending, got {low:g} and {high:g}."
        )
    levels = np.geomspace(low, high, count)
    if not (np.diff(levels.astype(np.float32)) > 0).all():
        raise ValueError(
            f"sigma_min and sigma_max must be farther apart for {count} levels, got {low:g} and "
            f"{high:g}."
        )
    return levels
