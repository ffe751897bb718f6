"""Find the duplicates in a data set, and held-out images that are also training images.

    geomem duplicates photos/
    geomem duplicates train/ --heldout test/ --fail-above 0

Writes duplicates.html, duplicates.csv (one row per pair), groups.json, report.json and lists of the
images to keep. It deletes nothing.
"""

from __future__ import annotations

import collections
import dataclasses
import html
import importlib.resources
import pathlib
import string
import sys
import textwrap
from typing import Any, NamedTuple

from geomem import paths
from geomem.experiments.common import command_line, image_flags, results
from geomem.experiments.common.dataclass_flags import REQUIRED, flag
from geomem.experiments.common.html import facts, paragraphs, pictures
from geomem.metrics import duplicates
from geomem.plots import audit_figures

__all__ = ["Config", "Result", "run"]

_SHOWN, _ABREAST = 300, 6  # groups on the page, and images of each


@dataclasses.dataclass(frozen=True)
class Config(image_flags.ImageFlags):
    """Find copies among images: exact, near, mirrored, shifted, cropped and brightened ones.

    With --heldout, or for a data set with test images, also finds the held-out images that are
    training images. Nothing is deleted: keep.txt lists one image of each group. Exits with 1 if
    --fail-above is exceeded.
    """

    dataset: str = flag(REQUIRED, "data", positional=True)
    """A folder of PNG or JPEG images, an .npy or .npz file, or one of cifar10_sample, cifar10,
    celeba_gray, digits, tfds:NAME and hf:PATH (Parquet files)."""
    heldout: float | str | None = flag(None, "data")
    """Other images, or the fraction of the images, to use as held-out images; default: the data
    set's test images, or none."""
    threshold: float = flag(0.7, "evaluation")
    """Photographs are duplicates if the distance of their textures is below this; images that all
    look alike must be closer."""
    fail_above: float | None = flag(None, "evaluation", least=0, most=1)
    """Exit with code 1 if the fraction of training images that repeat others, or of held-out images
    that copy training images, is above this."""
    out: str = flag("runs/duplicates", "output")
    """Folder for the page, the tables and the lists."""


class Result(NamedTuple):
    """The result of a search.

    Attributes:
      duplicates: the pairs and groups.
      report: the content of report.json.
      folder: the output folder.
      exit_code: 1 if --fail-above was exceeded, else 0.
    """

    duplicates: duplicates.Duplicates
    report: dict[str, Any]
    folder: pathlib.Path
    exit_code: int


def run(config: Config) -> Result:
    """Search the images, write the files, print what was found.

    Raises:
      ValueError: invalid configuration or data.
    """
    output = results.Run(config)
    with output.phase("data"):
        chosen = 0.0 if config.heldout is None else config.heldout
        dataset = image_flags.load(dataclasses.replace(config, heldout=chosen))
        splits = dataset.train_split, dataset.test_split
        image_flags.check_memory(3, *splits)  # as read, side by side, and reduced
        names = image_flags.all_file_names(config, dataset)
    total = len(names)
    print(f"searching {total:,} images for copies", flush=True)
    with output.phase("search"):
        found = duplicates.find(
            splits[0].pixels,
            splits[1].pixels if len(splits[1]) else None,
            threshold=config.threshold,
            progress=sys.stderr.isatty(),
        )
    report = _report(found, total)
    with output.phase("files"):
        output.write_json("report.json", report)
        output.write_json("groups.json", _groups(found, names))
        output.write_columns("duplicates.csv", _columns(found, names))
        keep = found.keep()
        for name, kept in (
            ("keep.txt", keep[keep < found.train]),
            ("keep_heldout.txt", keep[keep >= found.train]),
        ):
            if name == "keep.txt" or found.train < total:
                lines = "".join(f"{names[i]}\n" for i in kept)
                paths.write_whole(output.folder / name, lines)
        page = _page(config, found, report, names, splits)
        paths.write_whole(output.folder / "duplicates.html", page)
    output.finish(data=results.dataset_facts(dataset))
    print("\n".join(textwrap.fill(sentence, 88) for sentence in report["verdict"]))
    worst = max(report["repeated_fraction"], report["leaked_fraction"] or 0)
    failed = config.fail_above is not None and worst > config.fail_above
    return Result(found, report, output.folder, int(failed))


def _report(found, total):
    """The content of report.json."""
    train, heldout = found.train, total - found.train
    keep, leaks = found.keep(), found.leaks()
    repeated = train - int((keep < train).sum())
    leaked = len(found.leaked())
    kinds = collections.Counter(word for pair in found.pairs for word in pair.kind.split(", "))
    report = {
        "train": train,
        "heldout": heldout,
        "repeated": repeated,
        "repeated_fraction": repeated / train,
        "leaked": leaked,
        "leaked_fraction": leaked / heldout if heldout else None,
        "pairs": len(found.pairs),
        "leaking_pairs": len(leaks),
        "groups": len(found.groups()),
        "kinds": dict(kinds.most_common()),
        "blank": int(found.blank.sum()),
        "typical_distance": found.typical,
        "cutoff": found.cutoff,
    }
    return {"verdict": _verdict(report), **report}


def _verdict(report):
    """The result in sentences, leakage first."""
    train, heldout = report["train"], report["heldout"]
    texts = []
    if heldout:
        texts.append(
            f"Leakage: {report['leaked']:,} of {heldout:,} held-out images copy training images."
            if report["leaked"]
            else f"No leakage found: none of {heldout:,} held-out images copies a training image."
        )
    texts.append(
        f"{report['repeated']:,} of {train:,} training images repeat others "
        f"({report['repeated_fraction']:.2%}). keep.txt lists the other "
        f"{train - report['repeated']:,}."
        if report["repeated"]
        else f"No duplicates found among {train:,} training images."
    )
    if report["blank"]:
        texts.append(
            f"{report['blank']:,} images are blank: without texture, only exact copies are found."
        )
    return texts


def _groups(found, names):
    """The groups for groups.json: the image to keep first."""
    groups = []
    for members in found.groups():
        order = _head_first(found, members)
        groups.append(
            {
                "images": [names[i] for i in order],
                "held_out": [bool(i >= found.train) for i in order],
            }
        )
    return groups


def _head_first(found, members):
    """The members of a group, the image that represents it first."""
    return sorted(members, key=lambda i: i != found.group[i])


def _columns(found, names):
    """The columns of duplicates.csv, leaks first."""
    leaks = {(pair.image, pair.copy) for pair in found.leaks()}
    pairs = sorted(found.pairs, key=lambda pair: (pair[:2] not in leaks, pair.distance))

    def split(i):
        return "train" if i < found.train else "heldout"

    return {
        "image": [names[p.image] for p in pairs],
        "image_split": [split(p.image) for p in pairs],
        "copy": [names[p.copy] for p in pairs],
        "copy_split": [split(p.copy) for p in pairs],
        "kind": [p.kind for p in pairs],
        "transform": [str(p.transform) for p in pairs],
        "distance": [float(f"{p.distance:.4g}") for p in pairs],
    }


def _page(config, found, report, names, splits):
    """The page: one HTML file that works offline."""
    kinds = {frozenset((p.image, p.copy)): p for p in found.pairs}
    groups = found.leaking_first()
    rows = []
    for members in groups[:_SHOWN]:
        order = _head_first(found, members)[:_ABREAST]
        lines = [names[i] + (" (held out)" if i >= found.train else "") for i in order]
        for place, i in enumerate(order[1:], 1):
            if pair := kinds.get(frozenset((order[0], i))):
                lines[place] += f": {pair.kind}, distance {pair.distance:.2f}"
            else:
                lines[place] += ": same values as another"
        note = f"{len(members):,} images; {len(members) - len(order):,} more in groups.json"
        note = note if len(members) > len(order) else ""
        images = [
            splits[0].pixels[i] if i < found.train else splits[1].pixels[i - found.train]
            for i in (order if splits[0].is_images else [])
        ]
        rows.append(pictures(list(map(audit_figures.thumbnail, images)), lines, note))
    rest = f"All {len(groups):,} groups are in groups.json." if len(groups) > _SHOWN else ""
    template = importlib.resources.files("geomem") / "assets" / "duplicates.html"
    counts = [
        (kind, f"{count:,} pair{'' if count == 1 else 's'}")
        for kind, count in report["kinds"].items()
    ]
    return string.Template(template.read_text(encoding="utf-8")).substitute(
        name=html.escape(pathlib.Path(config.dataset).name),
        color="#D55E00" if found.pairs else "#009E73",
        verdict=paragraphs(*report["verdict"]),
        kinds=facts(counts),
        groups="".join(rows) + paragraphs(rest if rows else "None."),
        search=paragraphs(
            f"Two images are duplicates if the distance of their aligned textures is below "
            f"{found.cutoff:.3g}; an image is typically {found.typical:.3g} from its nearest "
            "neighbor. Brightness and contrast do not count."
        ),
    )


if __name__ == "__main__":
    command_line.main(Config, run)
