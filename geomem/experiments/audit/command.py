"""How likely is a diffusion model to memorize these images, at which noise levels, what helps?

Run: geomem audit DATA [--out DIR]
"""

from __future__ import annotations

import dataclasses
import pathlib
import sys
import textwrap
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from geomem import paths
from geomem.diffusion import conventions
from geomem.experiments.audit import advice, evidence, findings, page, verdict
from geomem.experiments.common import curve_sets, image_flags, results
from geomem.experiments.common.dataclass_flags import REQUIRED, flag
from geomem.geometry import curves as curves_lib
from geomem.geometry import danger_zone
from geomem.geometry import growth as growth_lib
from geomem.metrics import duplicates
from geomem.plots import audit_figures, style
from geomem.plots import zone as zone_plot

__all__ = ["Config", "Result", "run"]

RECIPES = ("edm", "ddpm", "ddpm-cosine", "flow", "flow-logit-normal")  # as in conventions
_WIDE = 0.5  # threshold of the zone that the page suggests as a gap
_GROWTH_LEAST = 64  # training images, so that the smallest subsample has 8


@dataclasses.dataclass(frozen=True)
class Config(image_flags.CurveFlags):
    """How likely is a diffusion model to memorize these images, and what helps?

    Finds duplicates and the danger zone, compares the set with sets for which the outcome of
    training is known, and gives a verdict: no, low, moderate or high risk. Writes an HTML page that
    works offline, audit.json, keep.txt (training images without duplicates), zone.json, curves.csv,
    run.json and the figures. Exits with code 1 if the risk is above --fail-above.
    """

    dataset: str = flag(REQUIRED, "data", positional=True)
    """A folder of PNG or JPEG images, an .npy or .npz file of images, latents or vectors, or one of
    cifar10_sample, cifar10, celeba_gray, digits, tfds:NAME and hf:PATH (Parquet files)."""
    recipe: Literal["edm", "ddpm", "ddpm-cosine", "flow", "flow-logit-normal"] = flag(
        "edm", "noise"
    )
    """The training noise that you plan to use; the others are reported too."""
    fail_above: Literal["none", "low", "moderate"] | None = flag(None, "output")
    """Exit with code 1 if the risk is above this one; the files are written all the same."""
    growth: bool = flag(True, "curves")
    """Also measure random subsamples, to see how the zone changes with the number of images."""
    out: str = flag("runs/audit", "output")
    """Folder for the page and its files."""
    duplicate_threshold: float = flag(0.7, "advanced")
    """Photographs are duplicates if the distance of their textures is below this; images that all
    look alike must be closer."""
    max_noised: int | None = flag(None, "advanced")
    """Maximum number of held-out images, and of training images, to add noise to; default: 2,000,
    and down to 500 for more than 50,000 training images."""
    seed: int = flag(0, "advanced")
    """Seed of the noise, the subsamples and the bootstrap."""


class Result(NamedTuple):
    """The result of an audit.

    Attributes:
      report: the content of audit.json.
      page: path of the HTML file.
      exit_code: 1 if --fail-above was exceeded, else 0.
    """

    report: dict[str, Any]
    page: pathlib.Path
    exit_code: int


def run(config: Config) -> Result:
    """Audit the images, write the page and its files, and print the answers.

    Raises:
      ValueError: invalid configuration or data.
    """
    _check(config)
    output = results.Run(config)
    folder, phases = output.folder, output.phase
    with phases("data"):
        _say(f"reading {config.dataset}")
        dataset = image_flags.load(config)
        levels = image_flags.level_range(config, dataset.noise_scale)
        sigmas = image_flags.noise_levels(config.num_sigmas, *levels)
        max_noised = config.max_noised or _default_noised(len(dataset.train_split))
    with phases("duplicates"):
        copies = _find_duplicates(config, dataset)
        kept, train, heldout = _drop_duplicates(config, dataset, copies, max_noised)
    with phases("curves"):
        curves = _estimate(config, train, heldout, sigmas, max_noised)
        zone, wide, standard = (
            danger_zone.find(curves, t)
            for t in (config.threshold, min(_WIDE, config.threshold), evidence.THRESHOLD)
        )
    with phases("growth"):
        few = min(500, max_noised)
        subsamples = _measure_subsamples(config, train, heldout, curves, few)
    facts = findings.dataset(config, dataset, train, heldout, max_noised)
    different, noises = len(train), conventions.usual_training_noise()
    noise = noises[RECIPES.index(config.recipe)]
    found, gap = findings.copies(config, dataset, copies), findings.gap(wide)
    report = {
        "verdict": verdict.decide(different, len(dataset.train_split), standard),
        "dataset": facts,
        "duplicates": found,
        "zone": zone._asdict(),
        "wider_zone": wide._asdict(),
        "scale": findings.scale(facts["name"], different, standard, subsamples, noise),
        "recipe": noise.name,
        "training_noise": findings.training_noise(zone, wide),
        "training_length": [seen * different for seen in evidence.onset()],
        "growth": findings.growth(subsamples, few),
        "gap": gap,
        "advice": [item._asdict() for item in advice.advise(found, gap)],
        "commands": advice.commands(config, facts, gap),
    }
    with phases("images"):
        columns, exposed = _exposed_images(config, dataset, copies, kept, curves, wide)
        report["exposed"] = findings.exposed(columns)
    with phases("files"):
        figures = _draw(folder, report, curves, zone, subsamples, exposed)
        results.write_columns(folder / "curves.csv", curves.columns())
        results.write_columns(folder / "images.csv", columns)
        results.write_json(folder / "zone.json", zone._asdict())
        results.write_json(folder / "audit.json", report)
        names = image_flags.all_file_names(config, dataset)
        lines = (f"{names[i]}\n" for i in copies.keep() if i < copies.train)
        paths.write_whole(folder / "keep.txt", "".join(lines))
    recorded = {
        "config": dataclasses.asdict(config) | _without_folders(config),
        "data": results.dataset_facts(dataset),
    }
    run_facts = results.run_facts(config, phases, **recorded)
    html = page.render(report, run_facts, figures, _thumbnails(dataset, copies))
    paths.write_whole(folder / "audit.html", html)
    output.finish(**recorded)
    print(f"\n{report['verdict']['headline']}\n{_wrapped(report['verdict']['why'])}")
    print(_wrapped(verdict.length(different)))
    for number, item in enumerate(report["advice"][:3], 1):
        print(_wrapped(f"{number}. {item['action']}. {item['effect']}"))
    failed = verdict.exceeds(report["verdict"]["risk"], config.fail_above)
    return Result(report, output.folder / "audit.html", int(failed))


def _wrapped(text):
    return textwrap.fill(text, 88)


def _check(config):
    for name in ("threshold", "duplicate_threshold"):
        if not 0 < getattr(config, name) < 1:
            raise ValueError(f"{name} must be between 0 and 1, got {getattr(config, name):g}.")
    if config.max_noised is not None and config.max_noised < 1:
        raise ValueError(f"max_noised must be positive, got {config.max_noised}.")
    image_flags.noise_levels(config.num_sigmas, *image_flags.level_range(config))


def _default_noised(count):
    """How many images to add noise to, given `count` training images, to limit the time."""
    return min(2000, max(500, 100_000_000 // count))


def _without_folders(config):
    """The configuration's paths without their folders, which describe the machine."""
    named = {"dataset": config.dataset, "heldout": config.heldout}
    return {k: findings.base_name(v) for k, v in named.items() if isinstance(v, str)}


def _say(text):
    """Print a line about the phase that begins."""
    print(text, flush=True)


def _bars():
    """Whether to show progress bars: on a terminal, but not in log files and notebooks."""
    return sys.stderr.isatty()


def _find_duplicates(config, dataset):
    """Duplicates among training and held-out images together."""
    splits = dataset.train_split, dataset.test_split
    image_flags.check_memory(3, *splits)  # as read, side by side, and on the device
    train, heldout = dataset.train_split.pixels, dataset.test_split.pixels
    _say(f"duplicates: searching {len(train) + len(heldout):,} images")
    threshold = config.duplicate_threshold
    return duplicates.find(train, heldout, threshold=threshold, progress=_bars())


def _drop_duplicates(config, dataset, copies, max_noised):
    """One image of each group, as stored; held-out images only of groups without training images.

    The images are shuffled, because noise is added to the first ones only. The positions of the
    training images come first.
    """
    first = copies.keep()
    rng = np.random.default_rng(config.seed)
    train = rng.permutation(first[first < copies.train])
    heldout = rng.permutation(first[first >= copies.train] - copies.train)
    if len(train) < 2 or len(heldout) < 1:
        raise ValueError(
            "dataset must have at least 2 training images and 1 held-out image without "
            f"duplicates, got {len(train)} and {len(heldout)}."
        )
    points = [
        jnp.asarray(split.pixels[kept].reshape(len(kept), -1))
        for split, kept in (
            (dataset.train_split, train),
            (dataset.test_split, heldout[:max_noised]),
        )
    ]
    return train, *points


def _exposed_images(config, dataset, copies, kept, curves, zone):
    """The columns of images.csv and the figure, for the training images that were noised."""
    index = kept[curves.exposure.index]
    groups = np.bincount(copies.group[: len(dataset.train_split)])
    exposure = curves.exposure._replace(index=index, copies=groups[copies.group[index]] - 1)
    return curve_sets.exposed_images(dataset, config.dataset, exposure, zone, "")


def _estimate(config, train, heldout, sigmas, max_noised):
    base = min(len(train), max_noised)
    _say(f"curves: adding noise to {len(heldout):,} held-out and {base:,} training images")
    return jax.block_until_ready(
        curves_lib.estimate(
            jax.random.key(config.seed),
            train,
            heldout,
            sigmas,
            num_base=base,
            shell_c=config.shell_c,
            progress=_bars(),
        )
    )


def _measure_subsamples(config, train, heldout, curves, noised):
    """The zone on random subsamples, or None if this is turned off or there are too few images."""
    if not config.growth or len(train) < _GROWTH_LEAST:
        return None
    _say(f"growth: the same on subsamples, with noise added to {noised:,} images of each kind")
    return growth_lib.measure(
        jax.random.key(config.seed + 1),
        train,
        heldout,
        curves,
        threshold=config.threshold,
        noised=noised,
        shell_c=config.shell_c,
        progress=_bars(),
    )


def _draw(folder, report, curves, zone, subsamples, exposed):
    """Write the figures and return them as {name: SVG}."""
    edges = findings.edges(zone)
    drawn = {
        "scale": audit_figures.copies_by_size(
            evidence.evidence()["networks"], report["dataset"]["different_train"]
        ),
        "curves": zone_plot.danger_zone(curves, zone),
        "training_noise": audit_figures.training_noise(conventions.usual_training_noise(), edges),
        "images": exposed,
    }
    if subsamples is not None:
        drawn["growth"] = audit_figures.growth(subsamples)
    for name, figure in drawn.items():
        style.save(figure, folder, name)
    return {name: style.svg(figure) for name, figure in drawn.items()}


def _thumbnails(dataset, copies):
    """PNG files of the first images of the first groups of duplicates."""
    if not dataset.is_images:
        return []
    train, heldout = dataset.train_split.pixels, dataset.test_split.pixels

    def thumbnail(i):
        return audit_figures.thumbnail(train[i] if i < len(train) else heldout[i - len(train)])

    groups = copies.leaking_first()[: page.GROUPS]
    return [[thumbnail(i) for i in group[: page.ABREAST]] for group in groups]
