"""What to change, in order of the measured effect, and the commands that do it."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from typing import Any, NamedTuple

from geomem.experiments.audit.evidence import evidence
from geomem.experiments.train.presets import PRESETS

__all__ = ["Advice", "advise", "commands", "wrap"]

_SMALL = 10_000  # most training images for which the preset edm_small is long enough


class Advice(NamedTuple):
    """One thing to change.

    Attributes:
      action: what to do.
      effect: its measured effect, with the uncertainty.
      measured: where that was measured.
      how: how to do it.
    """

    action: str
    effect: str
    measured: str
    how: str


def advise(duplicates: Mapping[str, Any], gap: Mapping[str, Any] | None) -> list[Advice]:
    """Return the advice for a data set: first its own duplicates, then by the measured effect.

    Args:
      duplicates: `duplicates` of audit.json.
      gap: `gap` of audit.json.
    """
    measured = evidence()
    early, more = measured["early_stopping"], measured["more_images"]
    items = [
        Advice(
            "Stop training early",
            f"Copies fell from {early['from']:.0%} to {early['to']:.0%} of the samples: "
            f"{_points(early['change'])} over {early['runs']} training runs. The image quality "
            "(Frechet distance of pixels) was not worse.",
            "geomem, 128 digits, stopped after a quarter of the training "
            "(experiments/gap_training). Bonnaire et al. 2025 (arXiv 2505.17638) and Favero et al. "
            "2025 (arXiv 2505.16959): images get good before copying starts, and copying starts "
            "later in proportion to the number of images.",
            "Look for copies at each checkpoint, and keep the last one before they start. The "
            "first command below does it; geomem's guide shows a callback for PyTorch.",
        ),
        Advice(
            "Add images",
            f"With {more['counts'][1]:,} instead of {more['counts'][0]:,} images, copies fell from "
            f"{_rate(more['from'])} to {_rate(more['to'])}; intervals over samples, one training "
            "run each.",
            "geomem, digits (experiments/denoiser_swap). The same direction from 1,000 to 50,000 "
            "CIFAR-10 images in an independent reproduction: 88% or more, and 0%.",
            "Only different images count; duplicates make it worse.",
        ),
    ]
    if gap is not None:
        repair, natural = measured["repair"], measured["repair_natural"]
        items.append(
            Advice(
                "Repair while sampling",
                f"Digits: {_repaired(repair)}. CIFAR-10 at 16x16: {_repaired(natural)}; most of "
                "the repaired samples still resembled a training image. No change of the Frechet "
                "distance of pixels was resolved. More held-out images were covered; on the "
                "photographs, recall fell.",
                "geomem, 128 digits and 100 CIFAR-10 images at 16x16 (experiments/repair).",
                "No training is needed: a local denoiser of the training images takes the "
                "network's place on the sampling steps inside the danger zone. The command is "
                "below.",
            )
        )
        wide, narrow, below, shorter = measured["gaps"]
        items.append(
            Advice(
                "Leave noise levels out of training",
                f"{_points(wide['change'])} for the zone at threshold 0.5, which the code below "
                f"leaves out; {_points(narrow['change'])} for the zone at 0.8, not resolved. A gap "
                f"of the same size below the zone: {_points(below['change'])}. Training "
                f"for 35% fewer steps without a gap: {_points(shorter['change'])}. So a gap on the "
                "zone was not seen to do more than fewer steps.",
                f"geomem, 128 digits, {early['runs']} training runs, each on its own images "
                "(experiments/gap_training). With EDM's own "
                "noise and embedding it did little (experiments/gap_sweep, one run each). The "
                "paper reports 78.8% to 0.7% on 2,000 car images; geomem has not repeated that.",
                "Train without the noise levels of the danger zone, and step over them when "
                "sampling; the code is below. This can cost quality.",
            )
        )
    items += [
        Advice(
            "Augment the images",
            "Not measured by geomem.",
            "Karras et al. 2022 (arXiv 2206.00364) augment CIFAR-10, for quality.",
            "Random flips and crops make the network see more different images. Look for copies "
            "of augmented images too.",
        ),
        Advice(
            "Do not condition on what identifies an image",
            "Not measured by geomem.",
            "Gu et al. 2023 (arXiv 2310.02664): even random labels as conditions increased "
            "memorization.",
            "Use few classes with many images each. Unique captions or file names are the worst "
            "case.",
        ),
    ]
    copies, leaks = duplicates["removed"], duplicates["leaked"]
    if copies or leaks:
        items.insert(
            0,
            Advice(
                "Remove duplicates and leaks",
                f"{copies:,} training images are copies of other training images, and {leaks:,} "
                "held-out images are copies of training images.",
                "Carlini et al. 2023 (arXiv 2301.13188): fewer training images could be extracted "
                "from CIFAR-10 models after duplicates were removed. Not measured by geomem.",
                "keep.txt lists the training images to keep. Look at the groups first.",
            ),
        )
    return items


def commands(config: Any, facts: Mapping[str, Any], gap: Mapping[str, Any] | None) -> list[str]:
    """Return commands: train and watch, sample, evaluate, repair, and train with the gap.

    Args:
      config: configuration of the audit.
      facts: `dataset` of audit.json.
      gap: `gap` of audit.json.
    """
    if len(facts["shape"]) != 3:
        return []  # the networks are for images
    train = _train(config, facts)
    lines = [
        f"{train}{_scale(facts)} --watch True --out runs/watched",
        "geomem sample --run runs/watched --count 512 --out samples.npz",
        "geomem evaluate --run runs/watched --samples samples.npz",
    ]
    if gap is not None:
        low, high = gap["sigma"]
        flags = _gap_network(config, facts)
        repair = f"geomem sample --run runs/watched --repair {low:g} {high:g} --count 512"
        lines.append(f"{repair} --out repaired.npz")
        lines.append(f"{train}{flags} --gap {low:g} {high:g} --watch True --out runs/gap")
    return lines


def _repaired(found):
    before, after = found["calibrated"]
    return (
        f"copies fell from {found['from']:.0%} to {found['to']:.0%} of the samples, "
        f"{_points(found['change'])} over {found['runs']} training runs; by a test calibrated on "
        f"held-out images, from {before:.0%} to {after:.0%}"
    )


def _points(change):
    """A change of a rate and its interval, in percentage points."""
    mean, low, high = (100 * max(-1, value) for value in change)
    return f"{mean:+.0f} percentage points (95% interval {low:+.0f} to {high:+.0f})"


def _rate(rate):
    return "{:.0%} [{:.1%}, {:.1%}]".format(*rate)


def _train(config, facts):
    """The command that trains on the audited images."""
    preset = _preset(config, facts)
    words = ["geomem train", preset, "--dataset", shlex.quote(config.dataset)]
    for name in ("heldout", "heldout_seed", "resize", "layout", "scale", "subset_seed"):
        if (value := getattr(config, name)) != getattr(PRESETS[preset], name):
            words += [f"--{name.replace('_', '-')}", shlex.quote(str(value))]
    if config.range:
        words.append("--range {:g} {:g}".format(*config.range))
    if config.classes:
        words += ["--classes", *(shlex.quote(name) for name in config.classes)]
    return " ".join([*words, f"--num-train {facts['train']}"])


def _preset(config, facts):
    small = "digits_fourier" if config.dataset == "digits" else "edm_small"
    return small if facts["train"] <= _SMALL else "edm_cifar10"


def _scale(facts):
    """EDM's noise is for a standard deviation of 0.5, as images have; scale it for other data."""
    return "" if facts["images"] else f" --sigma-data 0 --noise-mean {_noise_mean(facts):.3g}"


def _gap_network(config, facts):
    """Flags that give other presets the settings with which a gap helped in experiments/gap_sweep.

    These are the settings of digits_fourier: a Fourier embedding of the noise level that also
    scales channels, and EDM's training noise scaled to the standard deviation of the data.
    """
    if _preset(config, facts) == "digits_fourier":
        return ""
    noise = f"--sigma-data 0 --noise-mean {_noise_mean(facts):.3g}"
    return f" --embedding fourier --adaptive-scale True {noise}"


def _noise_mean(facts):
    return PRESETS["edm_small"].noise_mean + math.log(facts["standard_deviation"] / 0.5)


def wrap(command: str, width: int = 80) -> str:
    r"""Return a shell command in lines of at most `width`, broken only before flags.

    >>> print(wrap("geomem train digits_fourier --num-train 128 --out 'my runs'", 46))
    geomem train digits_fourier --num-train 128 \
      --out 'my runs'
    """
    parts = []
    for word in shlex.split(command):
        if word.startswith("--") or not parts:
            parts.append([])
        parts[-1].append(word)
    lines = [""]
    for part in map(shlex.join, parts):
        if lines[-1] and len(lines[-1]) + 1 + len(part) + 2 > width:
            lines.append(" ")
        lines[-1] = f"{lines[-1]} {part}" if lines[-1] else part
    return " \\\n".join(lines)
