"""Are these generated images copies of training images? And how good are they?

    geomem evaluate --samples samples.npz --run runs/digits
    geomem evaluate --samples folder/ --dataset photos/ --heldout new_photos/

Writes evaluation.html, samples.csv (one row per sample), report.json, figures and run.json.
"""

from __future__ import annotations

import dataclasses
import pathlib
import textwrap
from typing import Any, Literal, NamedTuple

import numpy as np

from geomem import paths
from geomem.experiments.common import image_flags, results
from geomem.experiments.common.dataclass_flags import REQUIRED, flag
from geomem.experiments.evaluate import (
    copies_page,
    detection,
    generated,
    quality,
    representation,
    statement,
)
from geomem.experiments.evaluate.generated import FROM_RUN
from geomem.metrics import copies, frechet, memorization, onnx_features
from geomem.plots import pairs as pairs_plot
from geomem.plots import ratios as ratios_plot
from geomem.plots import style

__all__ = ["FROM_RUN", "Config", "Result", "run"]


@dataclasses.dataclass(frozen=True)
class Config(image_flags.ImageFlags):
    """Report on generated images: copies of training images, leftover noise, quality.

    Samples should be floats around [-1, 1], neither clipped nor quantized, as `geomem sample`
    writes them; 8-bit images work too. Held-out images provide the false-positive rates, and are
    never taken from the training images unless --heldout says so. Exits with 1 if --fail-above is
    exceeded.
    """

    samples: str = flag(REQUIRED, kw_only=True)
    """A folder of images, or an .npy or .npz file ([N, H, W] or [N, H, W, C], key `images`)."""
    samples_range: tuple[float, float] | None = flag(None, "data", least=-1e12)
    """The values of a float array of samples that stand for black and white; default: -1 and 1."""
    samples_layout: Literal["NHWC", "NCHW"] | None = flag(None, "data")
    """Order of the axes of an array of samples; needed where it could be either."""
    run: str | None = None
    """The folder of the training run that generated the samples; it defines the training set."""
    heldout: float | str | None = flag(None, "data")
    """Other images, or the fraction of the training images, to use as held-out images; default: the
    data set's test images, or none."""
    fail_above: float | None = flag(None, "evaluation", least=0, most=1)
    """Exit with code 1 if the rate of copies is above this."""
    threshold: float = flag(1 / 3, "evaluation", most=1)
    """A sample is a copy if its distance ratio d1 / d2 is below this."""
    aligned_threshold: float = flag(0.5, "evaluation", most=1)
    """The same for the ratio after alignment (flips, shifts, crops, brightness)."""
    no_self_test: bool = flag(False, "evaluation")
    """Do not plant copies of training images to see which of them are found."""
    features: str = flag("auto", "evaluation")
    """Features of the quality measures: inception, pixels or none; or an .npz file with features
    `samples`, `train` and, if there are held-out images, `heldout`, in which copies are also
    looked for. auto uses Inception for RGB images of at least 32 x 32 pixels if its weights are
    found, else the pixels if there are at most 1,024, else none."""
    embedding: str | None = flag(None, "evaluation")
    """An ONNX file of a network (SSCD, DINOv2, ...) in whose features copies are looked for too."""
    embedding_size: int | None = flag(None, "evaluation", most=2**12)
    """Side of the network's input; default: what the file says, or 224."""
    embedding_mean: tuple[float, float, float] = flag(
        onnx_features.IMAGENET_MEAN, "advanced", least=-1e3
    )
    """Mean of the network's RGB input in [0, 1]."""
    embedding_std: tuple[float, float, float] = flag(onnx_features.IMAGENET_STD, "advanced")
    """Standard deviation of the network's RGB input."""
    out: str = flag("", "output")
    """Output folder; default: RUN/evaluate, or runs/evaluate without a run."""

    def __post_init__(self):
        """Choose the default of `out`."""
        default = "runs/evaluate" if self.run is None else str(paths.as_path(self.run) / "evaluate")
        object.__setattr__(self, "out", self.out or default)


class Result(NamedTuple):
    """The results of an evaluation.

    Attributes:
      report: memorization by the pixels, with the values of each sample.
      copies: the verdict on each sample.
      summary: the content of report.json.
      frechet: Frechet distances from the training images ("train") and from the held-out images
        ("heldout"); empty without features.
      folder: the output folder.
      exit_code: 1 if --fail-above was exceeded, else 0.
    """

    report: memorization.Report
    copies: copies.Copies
    summary: dict[str, Any]
    frechet: dict[str, frechet.Score]
    folder: pathlib.Path
    exit_code: int


def run(config: Config) -> Result:
    """Evaluate the samples, write the files, print the report.

    Raises:
      ValueError: invalid configuration or data.
    """
    output = results.Run(config)
    thresholds = {name: config.threshold for name in ("pixels", "aligned", "features")}
    thresholds["aligned"] = config.aligned_threshold
    with output.phase("data"):
        inputs = generated.load(config)
        dataset, samples = inputs.dataset, inputs.samples
    with output.phase("features"):
        features, reason = representation.choose(config, inputs)
    with output.phase("copies"):
        group = detection.near_duplicates(dataset)
        found = detection.detect(
            inputs, group, thresholds, features=features, self_test=not config.no_self_test
        )
    with output.phase("quality"):
        measured = {} if features is None else quality.measure(features, dataset.name)
    summary = found.summary(thresholds)
    counts = len(dataset.train_split), len(dataset.test_split)
    scores = {name: part["frechet"] for name, part in measured.items() if name != "floor"}
    summary = {
        "verdict": statement.sentences(summary, *counts),
        **summary,
        "frechet": scores,
        "quality": measured,
        "quality_note": reason,
    }
    with output.phase("files"):
        output.write_json("report.json", _named(summary))
        output.write_rows("samples.csv", _rows(inputs, found))
        if samples.ndim == 4:
            output.write_figure("pairs", _pairs(inputs, found))
        figure = _ratios(found, summary)
        output.write_figure("ratios", figure)
    facts = {
        "samples": {"count": len(samples), "shape": list(samples.shape[1:])},
        "data": results.dataset_facts(dataset),
    }
    html = copies_page.render(
        inputs, found, summary, style.svg(figure), results.run_facts(config, output.phase, **facts)
    )
    paths.write_whole(output.folder / "evaluation.html", html)
    output.finish(**facts)
    _print(summary)
    above = config.fail_above is not None and summary["copies"].rate > config.fail_above
    return Result(found.report, found.verdict, summary, scores, output.folder, int(above))


def _rows(inputs, found) -> list[dict[str, Any]]:
    """The rows of samples.csv."""
    verdict, report = found.verdict, found.report
    aligned = found.detectors.get("aligned")
    columns = {
        "sample": range(len(inputs.files)),
        "file": inputs.files,
        "nearest": verdict.nearest,
        "nearest_file": [inputs.train_files[i] for i in verdict.nearest],
        "distance": verdict.distance,
        "ratio": report.samples.ratio,
        "aligned_ratio": aligned.ratio if aligned else [""] * len(inputs.files),
        "transform": verdict.transform,
        "group": found.group[verdict.nearest],
        "strict": report.strict_memorized.astype(int),
        "copy": verdict.copy.astype(int),
    }
    return [
        {
            name: f"{value:.6g}" if isinstance(value, np.floating) else value
            for name, value in zip(columns, values, strict=True)
        }
        for values in zip(*columns.values(), strict=True)
    ]


def _pairs(inputs, found):
    """A figure of each copied training image beside its closest sample, best copies first."""
    verdict, train = found.verdict, inputs.dataset.train
    order = np.argsort(verdict.strength, kind="stable")
    _, first = np.unique(found.group[verdict.nearest[order]], return_index=True)
    shown = order[np.sort(first)][: pairs_plot.PER_PAGE]
    nearest = verdict.nearest[shown]
    copied = np.bincount(found.group[verdict.nearest[verdict.copy]], minlength=len(train))
    moved = found.detectors.get("aligned", found.report.samples).ratio
    captions = []
    for i, count in zip(shown, copied[found.group[nearest]], strict=True):
        change = verdict.transform[i]
        value = found.report.samples.ratio[i] if change == "none" else moved[i]
        words = [
            f"{value:.2f}",
            change.replace("none", ""),
            f"({count} copies)" if count > 1 else "",
        ]
        captions.append(" ".join(filter(None, words)))
    title = (
        f"{verdict.copy.sum():,} of {len(verdict.copy):,} samples are copies (orange), of "
        f"{np.count_nonzero(copied):,} training images\nleft: sample; right: its nearest training "
        "image; above: d1/d2 and what was done to the copy; one pair per training image"
    )
    return pairs_plot.pairs(
        inputs.samples[shown], train[nearest], captions, verdict.copy[shown], title
    )


def _ratios(found, summary):
    """A figure of all ratios."""
    label = statement.DETECTORS
    return ratios_plot.ratios(
        {label[name]: x.ratio for name, x in found.detectors.items()},
        {label[name]: x.ratio for name, x in found.heldout_detectors.items()},
        {label[name]: x["threshold"] for name, x in summary["detectors"].items()},
        {
            label[name]: x["calibrated"].value
            for name, x in summary["detectors"].items()
            if x["calibrated"]
        },
    )


def _named(value):
    """The value with NamedTuples as dictionaries, for JSON."""
    value = value._asdict() if hasattr(value, "_asdict") else value
    if isinstance(value, dict):
        return {name: _named(part) for name, part in value.items()}
    return None if isinstance(value, float) and np.isnan(value) else value  # JSON has no NaN


def _print(summary):
    print(textwrap.fill(" ".join(summary["verdict"]), 88))
    print(f"\n{'':22}  {'samples':36}  held-out images (false positives)")
    for name, sampled, heldout in statement.rates(summary):
        print(f"{name:22}  {sampled!s:36}  {heldout or 'none'!s}")
    for name, threshold in summary["detectors"].items():
        if threshold["calibrated"]:
            print(
                f"calibrated threshold, {name}: {threshold['calibrated']}; "
                f"{threshold['copies_calibrated']} of the samples below"
            )
    print(
        f"leftover noise, RMS per pixel: median {summary['noise_median']:.3g}, "
        f"mean {summary['noise_mean']:.3g}"
    )
    for part in summary["quality"].values():
        print(*filter(None, part.values()), sep="\n")
    if summary["quality_note"]:
        print(summary["quality_note"])
