"""Are these generated images copies of that training set? And are they good ones?

    python -m geomem.experiments.evaluate --samples samples.npz --run runs/digits
    python -m geomem.experiments.evaluate --samples folder/ --dataset cifar10 --num-train 1000

Writes report.json, samples.csv (a row per sample), pairs.png and pairs.pdf (the most copied
training images beside their copies) and run.json.
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any, Literal, NamedTuple

import numpy as np

from geomem import data
from geomem.data import sources
from geomem.diffusion import checkpoints
from geomem.experiments.common import cli, flags, results
from geomem.experiments.train import configuration
from geomem.metrics import frechet, memorization
from geomem.metrics.features import PIXELS, Features
from geomem.metrics.inception import network, weights
from geomem.plots import pairs as pairs_plot
from geomem.plots import style

__all__ = ["Config", "Result", "run"]

_LARGEST = 16.0  # a pixel of an unclipped sample; beyond it the range is another one
_TAILS = 0.01, 0.99  # quantiles of the pixels
_OF_A_RUN = (
    *("dataset", "heldout", "heldout_seed", "resize"),
    *("num_train", "classes", "subset_seed"),
)
_PIXEL_FEATURES = 1024  # more of them make the Frechet distance slow and mean little


@dataclasses.dataclass(frozen=True)
class Config(flags.ImageFlags):
    """Report on generated images: copies of training images, left-over noise, quality.

    Samples are best unquantized floats around [-1, 1], as geomem.experiments.sample writes them;
    8-bit images work too. Held-out images give the false positives and the clean images' spectrum.
    """

    samples: str = dataclasses.field(kw_only=True)
    """A folder of images, an .npy or .npz file ([N, H, W] or [N, H, W, C], key `images`)."""
    run: str | None = None
    """A training run's folder, which says what the training set is."""
    threshold: float = 1 / 3
    """A sample is memorized if d1 / d2 is below it."""
    literal: bool = False
    """Let a copy of the nearest training image count as the second neighbour."""
    features: Literal["auto", "inception", "pixels", "none"] = "auto"
    """Of the Frechet distance. auto: Inception for RGB images of side 32 or more where its weights
    are, else pixels up to 1,024 of them, else none."""
    out: str = "runs/evaluate"
    """Folder for the files."""


class Result(NamedTuple):
    """What a run found.

    Attributes:
      report: memorization, with the values of each sample.
      frechet: Score against the training and against the held-out images, or none.
      folder: where the files are.
    """

    report: memorization.Report
    frechet: dict[str, frechet.Score]
    folder: pathlib.Path


def run(config: Config) -> Result:
    """Evaluate the samples, write the files, print the report.

    Raises:
      ValueError: unusable configuration or data, in one line.
    """
    folder, phases = results.make_folder(config.out), results.Phases()
    with phases("data"):
        dataset = _load_data(config)
        samples = _load_samples(config, dataset.train)
        features = _features(config, samples.shape[1:])
    with phases("memorization"):
        report = memorization.report(
            samples,
            dataset.train,
            dataset.test,
            threshold=config.threshold,
            distinct=not config.literal,
        )
    with phases("frechet"):
        scores = _frechet(samples, dataset, features)
    with phases("files"):
        summary = report.summary() | {"frechet": {k: v._asdict() for k, v in scores.items()}}
        results.write_json(folder / "report.json", summary)
        _write_samples(folder / "samples.csv", config, report, dataset)
        written = style.save(_pairs(config, samples, dataset, report), folder, "pairs")
    about = {"count": len(samples), "shape": list(samples.shape[1:])}
    facts = results.dataset_facts(dataset)
    results.write_run(folder, config, phases, samples=about, data=facts)
    _print(report, scores)
    for path in (folder / "report.json", folder / "samples.csv", *written):
        print(f"wrote {path}")
    return Result(report, scores, folder)


def _load_data(config):
    if config.run is None:
        if config.resize and not sources.is_folder(config.dataset):  # of the samples alone
            config = dataclasses.replace(config, resize=None)
        return flags.load(config)
    facts = checkpoints.read_facts(config.run)
    recipe = configuration.from_facts(facts)
    chosen = {name: getattr(recipe, name) for name in _OF_A_RUN}
    dataset = flags.load(dataclasses.replace(config, **chosen))
    if dataset.train_split.sha256() != facts["data"]["sha256"]:
        raise ValueError(f"run: {config.run} was trained on other images than its data set has now")
    return dataset


def _load_samples(config, train):
    shape = train.shape[1:]
    try:
        split, _, _ = sources.open_source(config.samples, config.resize)
        pixels = split.read(split.index)
    except ValueError as error:
        raise ValueError(str(error).replace("dataset:", "samples:", 1)) from None
    if len(pixels) == 0:
        raise ValueError(f"samples: no image in {config.samples}")
    if pixels.shape[1:] != shape:
        raise ValueError(f"samples: images of {pixels.shape[1:]}, wanted {shape} as in training")
    if pixels.dtype == np.uint8:
        return data.to_float(pixels)
    low, high = pixels.min(), pixels.max()
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError("samples: NaN or infinite values, wanted finite ones")
    if low >= 0 or max(-low, high) > _LARGEST:
        raise ValueError(
            f"samples: float pixels span [{low:g}, {high:g}], wanted about [-1, 1], or uint8"
        )
    # In [0, 1], but for a few pixels a little outside? No distance would be what it seems.
    dark, bright = np.quantile(pixels, _TAILS)
    if dark > -0.15 and bright > 0.5 and np.quantile(train, _TAILS[0]) < -0.5:
        raise ValueError(
            f"samples: 98% of the pixels lie in [{dark:.2g}, {bright:.2g}], nothing dark in them, "
            "wanted the range of the training images, about [-1, 1]"
        )
    return np.ascontiguousarray(pixels, np.float32)


def _features(config, shape) -> Features | None:
    kind = config.features
    if kind == "auto":
        natural = shape[-1] == 3 and min(shape[:2]) >= 32
        small = np.prod(shape) <= _PIXEL_FEATURES
        usable = natural and weights.find()
        kind = "inception" if usable else "pixels" if small else "none"
    if kind == "inception":
        return network.features(weights.load())
    return PIXELS if kind == "pixels" else None


def _frechet(samples, dataset, features):
    if features is None or min(map(len, (samples, dataset.train, dataset.test))) < 2:
        return {}
    found = frechet.statistics(features.batches(samples))
    name = pathlib.Path(dataset.name).name
    scores = {}
    for split, images in (("train", dataset.train), ("heldout", dataset.test)):
        other = frechet.statistics(features.batches(images))
        value = frechet.distance(found, other)
        scores[split] = frechet.Score(
            value, len(samples), f"{name} {split}", len(images), features.name
        )
    return scores


def _columns(config, report, dataset) -> dict[str, Any]:
    found = report.samples
    return {
        "sample": np.arange(len(found.ratio)),
        "d1": found.distance[:, 0],
        "d2": found.distance[:, 1],
        "ratio": found.ratio,
        "memorized": found.memorized.astype(int),
        "nearest": found.index[:, 0],
        "nearest_in_source": dataset.train_split.index[found.index[:, 0]],
        "second": found.index[:, 1],
        "noise": report.noise,
        "ratio_without_noise": report.noise_removed_ratio,
        "memorized_without_noise": (report.noise_removed_ratio < config.threshold).astype(int),
        "adaptive_score": report.adaptive_score,
    }


def _write_samples(path, config, report, dataset):
    columns = _columns(config, report, dataset)
    texts = [
        [f"{x:.6g}" if isinstance(x, np.floating) else x for x in row]
        for row in zip(*columns.values(), strict=True)
    ]
    results.write_rows(path, [dict(zip(columns, row, strict=True)) for row in texts])


def _pairs(config, samples, dataset, report):
    """The best copy of each training image that is nearest to any sample, best first."""
    found = report.samples
    order = np.argsort(found.ratio, kind="stable")
    _, first = np.unique(found.index[order, 0], return_index=True)
    shown = order[np.sort(first)][: pairs_plot.PER_PAGE]
    nearest = found.index[shown, 0]
    copies = np.bincount(found.index[found.memorized, 0], minlength=len(dataset.train))[nearest]
    captions = [
        f"{found.ratio[i]:.2f}" + (f"  ({n} copies)" if n > 1 else "")
        for i, n in zip(shown, copies, strict=True)
    ]
    title = (
        f"{report.memorized.count:,} of {report.memorized.total:,} samples memorized "
        f"(d1/d2 < {config.threshold:.3g}, orange), {report.copied:,} training images copied\n"
        "left: sample; right: its nearest training image; above: d1/d2; one pair per training image"
    )
    return pairs_plot.pairs(
        samples[shown], dataset.train[nearest], captions, found.memorized[shown], title
    )


def _print(report, scores):
    rows = (
        ("memorized (d1/d2)", report.memorized, report.memorized_heldout),
        ("after noise removal", report.without_noise, report.without_noise_heldout),
        ("adaptive score < 1", report.adaptive, report.adaptive_heldout),
    )
    print(f"{'':20}  {'samples':36}  held-out images (false positives)")
    for name, samples, heldout in rows:
        print(f"{name:20}  {samples!s:36}  {heldout!s}")
    print(
        f"residual noise, rms per pixel: median {report.noise_median:.3g}, "
        f"mean {report.noise_mean:.3g}"
    )
    print(f"training images copied: {report.copied:,}")
    for score in scores.values():
        print(score)


if __name__ == "__main__":
    cli.main(Config, run)
