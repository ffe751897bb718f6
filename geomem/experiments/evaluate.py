"""Are these generated images copies of training images? And how good are they?

    geomem evaluate --samples samples.npz --run runs/digits
    geomem evaluate --samples folder/ --dataset cifar10 --num-train 1000

Writes report.json, samples.csv (one row per sample), pairs.png and pairs.pdf (the most copied
training images beside their copies) and run.json.
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
from typing import Any, Literal, NamedTuple

import numpy as np

from geomem import data, paths
from geomem.data import sources
from geomem.experiments.common import command_line, image_flags, results
from geomem.experiments.common.dataclass_flags import REQUIRED, flag
from geomem.experiments.train import configuration, run_folder
from geomem.metrics import frechet, memorization
from geomem.metrics.features import PIXELS, Features
from geomem.metrics.inception import network, weights
from geomem.plots import pairs as pairs_plot

__all__ = ["Config", "Result", "run"]

_LARGEST = 16.0  # pixels beyond it are not those of unclipped samples, but have another range
_TAILS = 0.01, 0.99  # quantiles of the pixels
_MAX_PIXEL_FEATURES = 1024  # with more, the Frechet distance is slow and means little
_FROM_RUN = (
    *("dataset", "heldout", "heldout_seed", "resize"),
    *("num_train", "classes", "subset_seed"),
)


@dataclasses.dataclass(frozen=True)
class Config(image_flags.ImageFlags):
    """Report on generated images: copies of training images, leftover noise, quality.

    Samples should be floats around [-1, 1], neither clipped nor quantized, as `geomem sample`
    writes them; 8-bit images work too. The held-out images provide the false-positive rates and the
    spectrum of noise-free images.
    """

    samples: str = flag(REQUIRED, kw_only=True)
    """A folder of images, or an .npy or .npz file ([N, H, W] or [N, H, W, C], key `images`)."""
    run: str | None = None
    """The folder of the training run that generated the samples; it defines the training set."""
    threshold: float = flag(1 / 3, "evaluation")
    """A sample is memorized if its distance ratio d1 / d2 is below this."""
    literal: bool = flag(False, "evaluation")
    """Count a copy of the nearest training image as the second neighbor."""
    features: Literal["auto", "inception", "pixels", "none"] = flag("auto", "evaluation")
    """Features of the Frechet distance. auto uses Inception for RGB images of at least 32 x 32
    pixels if its weights are found, else the pixels if there are at most 1,024, else none."""
    out: str = flag("", "output")
    """Output folder; default: RUN/evaluate, or runs/evaluate without a run."""

    def __post_init__(self):
        """Choose the default of `out`."""
        default = "runs/evaluate" if self.run is None else str(paths.as_path(self.run) / "evaluate")
        object.__setattr__(self, "out", self.out or default)


class Result(NamedTuple):
    """The results of an evaluation.

    Attributes:
      report: memorization, with the values of each sample.
      frechet: Frechet distances from the training images ("train") and from the held-out images
        ("heldout"); empty without features.
      folder: the output folder.
    """

    report: memorization.Report
    frechet: dict[str, frechet.Score]
    folder: pathlib.Path


def run(config: Config) -> Result:
    """Evaluate the samples, write the files, print the report.

    Raises:
      ValueError: invalid configuration or data.
    """
    output = results.Run(config)
    with output.phase("data"):
        dataset = _load_data(config)
        samples = _load_samples(config, dataset.train)
        features = _features(config, samples.shape[1:])
    with output.phase("memorization"):
        report = memorization.report(
            samples,
            dataset.train,
            dataset.test,
            threshold=config.threshold,
            distinct=not config.literal,
        )
    with output.phase("frechet"):
        scores = _frechet(samples, dataset, features)
    with output.phase("files"):
        summary = report.summary() | {"frechet": {k: v._asdict() for k, v in scores.items()}}
        output.write_json("report.json", summary)
        output.write_rows("samples.csv", _rows(config, report, dataset))
        output.write_figure("pairs", _pairs(config, samples, dataset, report))
    facts = {"count": len(samples), "shape": list(samples.shape[1:])}
    output.finish(samples=facts, data=results.dataset_facts(dataset))
    _print(report, scores)
    return Result(report, scores, output.folder)


def _load_data(config):
    if config.run is None:
        if config.resize and not sources.is_folder(config.dataset):  # resize is for the samples
            config = dataclasses.replace(config, resize=None)
        return image_flags.load(config)
    facts = run_folder.read_facts(config.run)
    trained = configuration.from_facts(facts)
    chosen = {name: getattr(trained, name) for name in _FROM_RUN}
    dataset = image_flags.load(dataclasses.replace(config, **chosen))
    if dataset.train_split.sha256() != facts["data"]["sha256"]:
        raise ValueError(
            f"run must be trained on the images that {trained.dataset} holds now, got "
            f"{config.run}, which was trained on others."
        )
    return dataset


def _load_samples(config, train):
    shape = train.shape[1:]
    try:
        split, _, _ = sources.open_source(config.samples, config.resize)
        pixels = split.read(split.index)
    except ValueError as error:
        raise ValueError(re.sub(r"\Adataset\b", "samples", str(error))) from None
    if len(pixels) == 0:
        raise ValueError(f"samples must hold at least one image, got none in {config.samples}.")
    if pixels.shape[1:] != shape:
        raise ValueError(
            f"samples must have the shape {shape} of the training images, got {pixels.shape[1:]}."
        )
    if pixels.dtype == np.uint8:
        return data.to_float(pixels)
    low, high = pixels.min(), pixels.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError("samples must be finite, got NaN or infinite values.")
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
    return np.ascontiguousarray(pixels, np.float32)


def _features(config, shape) -> Features | None:
    kind = config.features
    if kind == "auto":
        if shape[-1] == 3 and min(shape[:2]) >= 32 and weights.find():
            kind = "inception"
        else:
            kind = "pixels" if np.prod(shape) <= _MAX_PIXEL_FEATURES else "none"
    if kind == "inception":
        return network.features(weights.load())
    return PIXELS if kind == "pixels" else None


def _frechet(samples, dataset, features):
    if features is None or min(map(len, (samples, dataset.train, dataset.test))) < 2:
        return {}
    name = pathlib.Path(dataset.name).name
    sampled = frechet.statistics(features.batches(samples))
    scores = {}
    for split, images in (("train", dataset.train), ("heldout", dataset.test)):
        value = frechet.distance(sampled, frechet.statistics(features.batches(images)))
        scores[split] = frechet.Score(
            value, len(samples), f"{name} {split}", len(images), features.name
        )
    return scores


def _rows(config, report, dataset) -> list[dict[str, Any]]:
    """The rows of samples.csv."""
    neighbors = report.samples
    columns = {
        "sample": np.arange(len(neighbors.ratio)),
        "d1": neighbors.distance[:, 0],
        "d2": neighbors.distance[:, 1],
        "ratio": neighbors.ratio,
        "memorized": neighbors.memorized.astype(int),
        "nearest": neighbors.index[:, 0],
        "nearest_in_source": dataset.train_split.index[neighbors.index[:, 0]],
        "second": neighbors.index[:, 1],
        "noise": report.noise,
        "ratio_without_noise": report.noise_removed_ratio,
        "memorized_without_noise": (report.noise_removed_ratio < config.threshold).astype(int),
        "adaptive_score": report.adaptive_score,
    }
    return [
        {
            name: f"{value:.6g}" if isinstance(value, np.floating) else value
            for name, value in zip(columns, values, strict=True)
        }
        for values in zip(*columns.values(), strict=True)
    ]


def _pairs(config, samples, dataset, report):
    """A figure of each copied training image beside its closest sample, best copies first."""
    neighbors = report.samples
    order = np.argsort(neighbors.ratio, kind="stable")
    _, first = np.unique(neighbors.index[order, 0], return_index=True)
    shown = order[np.sort(first)][: pairs_plot.PER_PAGE]
    nearest = neighbors.index[shown, 0]
    copied = neighbors.index[neighbors.memorized, 0]
    copies = np.bincount(copied, minlength=len(dataset.train))[nearest]
    captions = [
        f"{neighbors.ratio[i]:.2f}" + (f"  ({n} copies)" if n > 1 else "")
        for i, n in zip(shown, copies, strict=True)
    ]
    title = (
        f"{report.memorized.count:,} of {report.memorized.total:,} samples memorized "
        f"(d1/d2 < {config.threshold:.3g}, orange), {report.copied:,} training images copied\n"
        "left: sample; right: its nearest training image; above: d1/d2; one pair per training image"
    )
    return pairs_plot.pairs(
        samples[shown], dataset.train[nearest], captions, neighbors.memorized[shown], title
    )


def _print(report, scores):
    rows = (
        ("memorized (d1/d2)", report.memorized, report.memorized_heldout),
        ("after noise removal", report.without_noise, report.without_noise_heldout),
        ("adaptive score < 1", report.adaptive, report.adaptive_heldout),
    )
    print(f"{'':20}  {'samples':36}  held-out images (false positives)")
    for name, sampled, heldout in rows:
        print(f"{name:20}  {sampled!s:36}  {heldout!s}")
    print(
        f"leftover noise, RMS per pixel: median {report.noise_median:.3g}, "
        f"mean {report.noise_mean:.3g}"
    )
    print(f"training images copied: {report.copied:,}")
    for score in scores.values():
        print(score)


if __name__ == "__main__":
    command_line.main(Config, run, excludes={"run": _FROM_RUN})
