"""The search for copies among samples, held-out images and planted copies, and its rates."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from geomem.data import Dataset
from geomem.experiments.evaluate.generated import Inputs
from geomem.experiments.evaluate.representation import Representation
from geomem.metrics import calibration, copies, duplicates, memorization, planted
from geomem.metrics.aligned import Aligned
from geomem.metrics.alignment import Alignment
from geomem.metrics.copies import Copies
from geomem.metrics.intervals import Rate, rate
from geomem.metrics.memorization import Memorization

__all__ = ["Detection", "detect", "near_duplicates"]

_MEASURES = (
    *("memorized", "memorized_heldout", "strict", "noise_mean", "noise_median"),
    *("without_noise", "without_noise_heldout", "without_noise_strict"),
    *("adaptive", "adaptive_heldout"),
)
_FEWEST = 4  # images that show the spectrum of images without noise
_PLANTED = 100  # copies of each kind, of different images


class Detection(NamedTuple):
    """What was found, and what could have been found.

    Attributes:
      report: the measures between pixels.
      detectors: the neighbors of each sample, by detector.
      heldout_detectors: those of the held-out images; empty if there are none.
      verdict: which samples are copies, and of which training image.
      heldout_verdict: the same for the held-out images, or None.
      alignment: the transforms of the detector "aligned", or None without it.
      self_test: for each kind of planted copy, the rate that each detector finds.
      group: the group of near-duplicates of each training image.
    """

    report: memorization.Report
    detectors: dict[str, Memorization | Aligned]
    heldout_detectors: dict[str, Memorization | Aligned]
    verdict: Copies
    heldout_verdict: Copies | None
    alignment: Alignment | None
    self_test: dict[str, dict[str, Rate]]
    group: Int[np.ndarray, " images"]

    def summary(self, thresholds: dict[str, float]) -> dict[str, Any]:
        """Return the numbers for report.json."""
        found, false = self.verdict, self.heldout_verdict
        sizes = np.bincount(self.group)
        return {
            "copies": rate(found.copy),
            "copies_heldout": None if false is None else rate(false.copy),
            "detectors": {name: self._detector(name, thresholds[name]) for name in self.detectors},
            **{name: getattr(self.report, name) for name in _MEASURES},
            "copied": len(np.unique(self.group[found.nearest[found.copy]])),
            "groups": {"count": int((sizes > 1).sum()), "images": int(sizes[sizes > 1].sum())},
            "transforms": self.alignment and vars(self.alignment),
            "self_test": self.self_test,
        }

    def _detector(self, name, threshold):
        ratio, heldout, cut = self.detectors[name].ratio, None, None
        if self.heldout_detectors:
            heldout = self.heldout_detectors[name].ratio
            proved = copies.PROVED if name == "aligned" else 1.0
            cut = calibration.calibrate(np.minimum(heldout, proved))
        return {
            "threshold": threshold,
            "copies": rate(ratio < threshold),
            "copies_heldout": None if heldout is None else rate(heldout < threshold),
            "calibrated": cut,
            "copies_calibrated": None if cut is None else rate(ratio < cut.value),
        }


def near_duplicates(dataset: Dataset) -> Int[np.ndarray, " images"]:
    """Return the group of near-duplicates of each training image."""
    group = duplicates.find(dataset.train_split.pixels).group
    if len(np.unique(group)) < 2:
        raise ValueError(f"dataset must hold 2 or more different images, got {len(group)} copies.")
    return group


def detect(
    inputs: Inputs,
    group: Int[np.ndarray, " images"],
    thresholds: dict[str, float],
    *,
    features: Representation | None = None,
    self_test: bool = True,
) -> Detection:
    """Search for copies with every detector.

    Args:
      inputs: the images.
      group: near-duplicates in the training set, which count as one image.
      thresholds: of d1 / d2 of the detectors "pixels", "aligned" and "features".
      features: further features to search in.
      self_test: whether to plant copies.
    """
    dataset, samples = inputs.dataset, inputs.samples
    train, heldout = dataset.train, dataset.test if len(dataset.test_split) else None
    if heldout is None and len(train) < _FEWEST:
        raise ValueError(
            f"dataset must hold {_FEWEST} or more images if none are held out, got {len(train)}."
        )
    settings = {"threshold": thresholds["pixels"], "group": group}
    report = memorization.report(samples, train, heldout, **settings)
    parts, found = [samples], [{"pixels": report.samples}]
    if heldout is not None:
        parts.append(heldout)
        found.append({"pixels": report.heldout})
    kinds, source, changed, planted_report = [], None, None, None
    large = train.ndim == 4 and min(train.shape[1:3]) >= planted.LEAST_SIDE
    if self_test and dataset.is_images and large:
        kinds = list(planted.kinds(train.shape[1:]))
        count = min(_PLANTED, len(train))
        source = np.random.default_rng(0).choice(len(train), count, replace=False)
        changed = np.concatenate([planted.plant(kind, train[source]) for kind in kinds])
        planted_report = memorization.report(changed, train, **settings)
        parts.append(changed)
        found.append({"pixels": planted_report.samples})
    if features is not None and features.is_detector:
        rows = [features.samples, *([] if heldout is None else [features.heldout])]
        if kinds and features.extract:
            rows.append(features.extract(changed))
        for detectors, part in zip(found, rows, strict=False):
            detectors["features"] = memorization.measure(part, features.train, group=group)
    alignment = None
    if dataset.is_images and train.ndim == 4:
        nearest, alignment = copies.align(
            np.concatenate(parts), train, group, thresholds["aligned"]
        )
    if alignment is not None:
        ends = np.cumsum([len(part) for part in parts])
        for detectors, stop, part in zip(found, ends, parts, strict=True):
            rows = slice(stop - len(part), stop)
            detectors["aligned"] = Aligned(*(field[rows] for field in nearest))
    verdicts = [copies.judge(detectors, thresholds, alignment) for detectors in found]
    return Detection(
        report,
        found[0],
        found[1] if heldout is not None else {},
        verdicts[0],
        verdicts[1] if heldout is not None else None,
        alignment,
        _recalls(kinds, source, found[-1], planted_report, verdicts[-1], thresholds, group),
        group,
    )


def _recalls(kinds, source, detectors, report, verdict, thresholds, group):
    """The rate of planted copies that each detector finds, by kind and detector."""
    if not kinds:
        return {}
    pixels = report.samples
    flags = {
        "verdict": (verdict.copy, verdict.nearest),
        **{
            name: (found.ratio < thresholds[name], found.index[:, 0])
            for name, found in detectors.items()
        },
        "without_noise": (report.noise_removed_ratio < thresholds["pixels"], pixels.index[:, 0]),
        "adaptive": (report.adaptive_score < 1, pixels.index[:, 0]),
    }
    count = len(source)
    return {
        kind: {
            name: planted.recall(found[at], index[at], source, group)
            for name, (found, index) in flags.items()
        }
        for kind, at in ((k, slice(i * count, (i + 1) * count)) for i, k in enumerate(kinds))
    }
