"""The page of an evaluation: one HTML file that works offline, with all samples."""

from __future__ import annotations

import base64
import html
import importlib.resources
import io
import json
import string
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from geomem.diffusion.sampler import to_uint8
from geomem.experiments.common.html import facts, image, paragraphs, table
from geomem.experiments.evaluate import statement
from geomem.experiments.evaluate.detection import Detection
from geomem.experiments.evaluate.generated import Inputs

BORDERLINE = 1.5  # times the threshold
_ABREAST = 8  # tiles in a row and in a column of a sheet
_SIDES = 32, 64  # pixels of a tile: at least, and at most
_QUALITY = 90  # of JPEG

Images = Float[np.ndarray, "images height width channels"]


def render(
    inputs: Inputs,
    found: Detection,
    summary: Mapping[str, Any],
    figure: bytes,
    run: Mapping[str, Any],
) -> str:
    """Return the page as HTML that loads no other files; all external names are escaped.

    Args:
      inputs: the images; without pictures if they are latents or vectors.
      found: the copies.
      summary: the content of report.json.
      figure: the distribution of the ratios as SVG.
      run: the content of run.json.
    """
    template = importlib.resources.files("geomem") / "assets" / "evaluate.html"
    height, width = (*inputs.samples.shape[1:3], 1)[:2] if inputs.samples.ndim == 4 else (1, 1)
    return string.Template(template.read_text(encoding="utf-8")).substitute(
        name=html.escape(f"{inputs.name} against {inputs.dataset_name}"),
        color="#D55E00" if summary["copies"].count else "#009E73",
        ratio=f"{width} / {height}",
        verdict=paragraphs(*summary["verdict"]),
        rates=_rates(summary),
        figure=image(figure, "svg+xml", "distribution of the ratios"),
        self_test=_self_test(summary),
        quality=_quality(summary),
        made=_made(run),
        data=_data(inputs, found).replace("<", "\\u003c"),
    )


def _rates(summary):
    rows = [
        (name, str(sampled), "" if heldout is None else str(heldout))
        for name, sampled, heldout in statement.rates(summary)
    ]
    texts = [
        f"Calibrated threshold of {statement.DETECTORS[name]}: {part['calibrated']}. "
        f"{part['copies_calibrated']} of the samples have a smaller ratio."
        for name, part in summary["detectors"].items()
        if part["calibrated"]
    ]
    groups = summary["groups"]
    texts.append(
        f"{groups['images']:,} training images are near-duplicates, in {groups['count']:,} groups."
        if groups["count"]
        else "No near-duplicates were found in the training set."
    )
    texts.append(
        f"Leftover noise in the samples, RMS per pixel: median {summary['noise_median']:.3g}."
    )
    header = ["criterion", "samples", "held-out images (false alarms)"]
    return table(header, rows) + paragraphs(*texts)


def _self_test(summary):
    recalls = summary["self_test"]
    if not recalls:
        return paragraphs("Not tested: no copies were planted.")
    names = list(next(iter(recalls.values())))
    header = ["planted change", *(statement.DETECTORS[name] for name in names)]
    rows = [
        (kind, *(f"{part[name].count} of {part[name].total}" for name in names))
        for kind, part in recalls.items()
    ]
    false = {
        "verdict": summary["copies_heldout"],
        **{name: part["copies_heldout"] for name, part in summary["detectors"].items()},
        "without_noise": summary["without_noise_heldout"],
        "adaptive": summary["adaptive_heldout"],
    }
    if false["verdict"] is not None:
        cells = (f"{false[name].count:,} of {false[name].total:,}" for name in names)
        rows.append(("held-out images (false alarms)", *cells))
    text = (
        "Copies of the training images were changed and searched for like the samples. The table "
        "counts the copies that each criterion finds, and assigns to the right training image."
    )
    return paragraphs(text) + table(header, rows)


def _quality(summary):
    names = {
        "train": "samples, compared with the training images",
        "heldout": "samples, compared with the held-out images",
        "floor": "training images, compared with the held-out images",
    }
    rows = []
    for key, part in summary["quality"].items():
        kernel, overlap = part["kernel"], part["overlap"]
        cells = [f"{part['frechet'].value:.3g}", f"{kernel.value:.3g}"]
        cells += [f"{x:.3g}" for x in overlap[:4]] if overlap else 4 * [""]
        rows.append((names[key], *cells))
    if not rows:
        return paragraphs(summary["quality_note"])
    feature = next(iter(summary["quality"].values()))["frechet"].features
    header = ["images", "Frechet", "kernel", "precision", "recall", "density", "coverage"]
    return table(header, rows) + paragraphs(
        f"Features: {feature}. Copies of the training set score well in all of these measures: the "
        "last row shows how well the training images themselves do."
    )


def _made(run):
    environment = run["environment"]
    config = ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in run["config"].items()
        if name in ("threshold", "aligned_threshold", "features", "num_train", "num_heldout")
        and value is not None
    )
    return facts(
        [
            ("geomem", f"{environment['geomem']}, commit {environment['commit']}"),
            ("settings", config),
            ("SHA-256, training", run["data"]["train"]["sha256"]),
            ("SHA-256, held out", run["data"]["test"]["sha256"] or "none"),
        ]
    )


def _data(inputs, found):
    """The samples in the order of their strength, and sheets of small pictures, as JSON."""
    verdict, aligned = found.verdict, found.detectors.get("aligned")
    nearest, tiles = np.unique(verdict.nearest, return_inverse=True)
    pictures = inputs.dataset.is_images and inputs.samples.ndim == 4
    rows = []
    for i in np.argsort(verdict.strength, kind="stable"):
        borderline = verdict.strength[i] < BORDERLINE
        rows.append(
            [
                inputs.files[i],
                inputs.train_files[verdict.nearest[i]],
                round(float(found.report.samples.ratio[i]), 3),
                None if aligned is None else round(float(aligned.ratio[i]), 3),
                verdict.transform[i],
                round(float(verdict.strength[i]), 4),
                round(float(verdict.distance[i]), 4),
                "copy" if verdict.copy[i] else "borderline" if borderline else "other",
                int(i),
                int(tiles[i]),
            ]
        )
    content = {
        "rows": rows,
        "side": _ABREAST,
        "samples": _sheets(inputs.samples) if pictures else [],
        "nearest": _sheets(inputs.dataset.train[nearest]) if pictures else [],
    }
    return json.dumps(content)


def _sheets(images: Images) -> list[str]:
    """JPEG files of 8 x 8 tiles each, in base64."""
    from PIL import Image

    side = max(images.shape[1:3])
    enlarge, reduce = max(1, -(-_SIDES[0] // side)), max(1, -(-side // _SIDES[1]))
    images = images[:, ::reduce, ::reduce].repeat(enlarge, axis=1).repeat(enlarge, axis=2)
    sheets = []
    for start in range(0, len(images), _ABREAST**2):
        part = to_uint8(images[start : start + _ABREAST**2])
        count, height, width, channels = part.shape
        part = part if channels == 3 else part.mean(axis=3, keepdims=True).round().astype(np.uint8)
        sheet = np.zeros((_ABREAST**2, height, width, part.shape[3]), np.uint8)
        sheet[:count] = part
        sheet = sheet.reshape(_ABREAST, _ABREAST, height, width, -1).swapaxes(1, 2)
        sheet = sheet.reshape(_ABREAST * height, _ABREAST * width, -1)
        file = io.BytesIO()
        picture = Image.fromarray(sheet if sheet.shape[2] == 3 else sheet[:, :, 0])
        picture.save(file, "JPEG", quality=_QUALITY, subsampling=0)
        sheets.append(base64.b64encode(file.getvalue()).decode())
    return sheets
