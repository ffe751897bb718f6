"""The generated images, their training set, and the files that both come from."""

from __future__ import annotations

import dataclasses
import math
import pathlib
import re
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32

from geomem import data, memory
from geomem.data import sources
from geomem.experiments.common import image_flags
from geomem.experiments.train import configuration, run_folder

FROM_RUN = (
    *("dataset", "heldout", "heldout_seed", "resize", "layout", "range", "scale"),
    *("num_train", "classes", "subset_seed"),
)
_LARGEST = 16.0  # pixels beyond it are not those of unclipped samples, but have another range
_TAILS = 0.01, 0.99  # quantiles of the pixels


class Inputs(NamedTuple):
    """What is compared.

    Attributes:
      dataset: training images, and held-out images, of which there may be none.
      samples: the generated images in the range of the data.
      files: the file of each sample, or NAME:POSITION in an array.
      train_files: the same for each training image.
      name, dataset_name: what the samples and the data set are called, without their folders.
    """

    dataset: data.Dataset
    samples: Float32[np.ndarray, "samples ..."]
    files: list[str]
    train_files: list[str]
    name: str
    dataset_name: str


def load(config) -> Inputs:
    """Return what an evaluation's configuration names.

    Raises:
      ValueError: invalid configuration or data.
    """
    source, dataset = config.dataset, None
    if config.run is not None:
        facts = run_folder.read_facts(config.run)
        trained = configuration.from_facts(facts)
        chosen = {name: getattr(trained, name) for name in FROM_RUN}
        source = trained.dataset
        dataset = image_flags.load(dataclasses.replace(config, **chosen))
        if dataset.train_split.sha256() != facts["data"]["sha256"]:
            raise ValueError(
                f"run must be trained on the images that {trained.dataset} holds now, got "
                f"{config.run}, which was trained on others."
            )
    else:
        # Without --heldout, all images of a source without test images are searched.
        heldout = 0.0 if config.heldout is None else config.heldout
        chosen = {"heldout": heldout}
        flexible = sources.is_folder(source) or source.startswith("hf:")
        if config.resize and not flexible:  # resize is for the samples
            chosen["resize"] = None
        dataset = image_flags.load(dataclasses.replace(config, **chosen))
    samples, files = _samples(config, dataset)
    train_files = image_flags.file_names(source, dataset.train_split)
    names = pathlib.Path(config.samples).name, pathlib.Path(source).name
    return Inputs(dataset, samples, files, train_files, *names)


def _samples(config, dataset):
    try:
        options = sources.ArrayOptions(config.samples_layout, config.samples_range)
        if any(options) and not sources.is_array(config.samples):
            raise ValueError("range and layout must be left out unless samples are an array.")
        if not dataset.is_images and not config.samples_range:
            options = options._replace(scale=1.0)  # samples are in the units of the scaled data
        split, _, _ = sources.open_source(config.samples, config.resize, "samples", options)
        if split.is_images and not dataset.is_images:
            raise ValueError(
                f"samples must be latents like training, got images in {config.samples}."
            )
        # Floats, and two copies on the way to the distances.
        needed = 3 * 4 * math.prod(split.shape)
        memory.check("samples", needed, f"{len(split)} images of {split.shape[1:]}")
        names = image_flags.file_names(config.samples, split)
        order = sorted(range(len(names)), key=lambda i: _natural(names[i]))
        split = split.take(np.array(order, int))
        pixels = split.read(split.index)
    except ValueError as error:
        message = re.sub(r"\A(range|layout)\b", r"samples_\1", str(error))
        message = message.replace(" and layout ", " and samples_layout ", 1)
        message = re.sub(r"\Ascale must be left out", "samples must be latents", message)
        raise ValueError(re.sub("--(range|layout)", r"--samples-\1", message)) from None
    return _checked(pixels, dataset, config.samples), [names[i] for i in order]


def _natural(name):
    """A key that sorts numbers in names as numbers: gen_2.png before gen_10.png."""
    return [int(part) if i % 2 else part for i, part in enumerate(re.split(r"(\d+)", name))]


def _checked(pixels, dataset, name):
    """The samples as floats in the range of the data."""
    train = dataset.train
    shape = train.shape[1:]
    if len(pixels) == 0:
        raise ValueError(f"samples must hold at least one image, got none in {name}.")
    if pixels.shape[1:] != shape:
        raise ValueError(
            f"samples must have the shape {shape} of the training images, got {pixels.shape[1:]}."
        )
    if pixels.dtype == np.uint8:
        return data.to_float(pixels)
    low, high = pixels.min(), pixels.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError("samples must be finite, got NaN or infinite values.")
    pixels = np.ascontiguousarray(pixels, np.float32)
    if not dataset.is_images:
        return pixels
    if low >= 0 or max(-low, high) > _LARGEST:
        raise ValueError(
            f"samples must be uint8 or floats around [-1, 1], got floats in [{low:g}, {high:g}]."
        )
    # If almost all pixels are in [0, 1], every distance to images in [-1, 1] would be wrong.
    dark, bright = np.quantile(pixels, _TAILS)
    if dark > -0.15 and bright > 0.5 and np.quantile(train, _TAILS[0]) < -0.5:
        raise ValueError(
            "samples must be in the range of the training images, about [-1, 1], got 98% of the "
            f"pixels in [{dark:.2g}, {bright:.2g}]."
        )
    return pixels
