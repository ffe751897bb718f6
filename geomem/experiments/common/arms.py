"""Train an arm of an experiment and evaluate its checkpoints.

An arm is a distribution of training noise. All arms share the data and the network; runs with the
same seed also share the initial parameters and the latents of their samples. Finished training runs
and evaluations are kept in the run folder and not computed again.
"""

import contextlib
import dataclasses
import json
import math
import pathlib
import zipfile
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from geomem import data, paths
from geomem.diffusion import checkpoints, grids, sampler
from geomem.experiments.common import image_flags, interruption
from geomem.experiments.train import configuration, loop, run_folder
from geomem.metrics import frechet, memorization, precision_recall
from geomem.metrics.features import Features
from geomem.metrics.inception import network, weights

_SAMPLES = "samples.npz"
_ARRAYS = "images", "distance", "index", "memorized", "memorized_without_noise"
_THRESHOLD = 1 / 3  # of d1 / d2
# Columns that are averaged.
MEASURES = ("memorized", "without_noise", "residual_noise", "frechet", "recall", "coverage")
_BALLS = 5  # neighbors that define the balls of recall and coverage


class Arm(NamedTuple):
    """A named distribution of training noise; other fields of the configuration may change too."""

    name: str  # in files and figures, without spaces
    gap: tuple[float, float] | None = None  # sigma that is left out, thinned or filled with dummies
    keep: float = 0.0  # fraction of the density that is kept in the gap
    dummy: bool = False  # train on dummy images in the gap instead of leaving its levels out
    changes: tuple[tuple[str, Any], ...] = ()  # (field, value)

    def configure(
        self,
        config: configuration.Config,
        seed: int,
        runs: pathlib.Path,
        own_subset: bool = False,
    ) -> configuration.Config:
        """Return the training configuration of this arm and seed, for a run folder in `runs`.

        With `own_subset`, the seed also selects the training images.
        """
        changes = {
            "gap": self.gap,
            "keep": self.keep,
            "schedule": "dummy" if self.dummy else None,
            "seed": seed,
            "subset_seed": seed if own_subset else config.subset_seed,
            "out": str(runs / f"{self.name}-{seed}"),
            # Interruptions add checkpoints, which must not displace those to evaluate.
            "keep_checkpoints": config.steps,
        }
        return dataclasses.replace(config, **changes | dict(self.changes))


@dataclasses.dataclass(frozen=True)
class EvaluationSettings:
    """How checkpoints are sampled and evaluated."""

    samples: int = 512  # images from each checkpoint, with seeds 0, 1, ...
    steps: int = 18  # on EDM's sampling grid, before it skips the arm's gap
    method: str = "heun"
    inception: str | None = None  # file of Inception weights; None compares pixels

    def reference(self, dataset: data.Dataset) -> tuple[Features, frechet.Reference]:
        """Return the features to compare in, and the held-out images in these."""
        chosen = frechet.PIXELS
        if self.inception is not None:
            chosen = network.features(weights.load(self.inception))
        return chosen, frechet.describe(dataset.test, f"{dataset.name} held out", chosen)


class Task(NamedTuple):
    """One run to train and evaluate."""

    arm: Arm
    config: configuration.Config
    evaluation: EvaluationSettings


def train_and_evaluate(task: Task) -> list[dict[str, Any]]:
    """Train one run, or finish its training, and evaluate its checkpoints.

    The regular checkpoints and the last one are evaluated, but not those added by interruptions.
    Sampling skips the arm's gap (`grids.skip_gaps`). The last checkpoint is evaluated a second time
    on the whole grid, which includes the levels inside the gap.

    Returns:
      One row for each checkpoint: arm, seed, gap and its mass, kimg, and the columns of
      `evaluate_samples`; whole_grid_KEY is the value on the whole grid, or None before the last
      checkpoint. The run folder keeps the evaluations in judged.jsonl and the last checkpoint's
      samples in samples.npz.
    """
    config, settings = task.config, task.evaluation
    train(config)
    dataset = image_flags.load(config)
    folder = paths.as_path(config.out)
    features, reference = settings.reference(dataset)
    steps = regular_steps(config)
    cache = EvaluationCache(folder, settings)

    def evaluate(step, sigmas, keep_samples=False):
        key = cache.key(step, sigmas)
        row = cache.get(key)
        if row is None or (keep_samples and not cache.has_samples(key)):
            denoiser, params, shape = run_folder.load(folder, step)
            seeds, method = range(settings.samples), settings.method
            images = sampler.generate(denoiser.bind(params), seeds, shape, sigmas, method=method)
            row, report = evaluate_samples(images, dataset, reference, features)
            if keep_samples:
                cache.put_samples(key, images, report)
            cache.put(key, row)
        return row

    low, high = task.arm.gap or (None, None)
    labels = {
        "arm": task.arm.name,
        "seed": config.seed,
        "gap_low": low,
        "gap_high": high,
        "gap_mass": configuration.base_schedule(config).mass(low, high) if low else 0.0,
        "keep": task.arm.keep,
    }
    whole_grid = grids.edm_grid(settings.steps)
    grid = run_folder.sampling_grid(folder, whole_grid)
    rows = []
    for step in steps:
        last = step == steps[-1]
        row = evaluate(step, grid, keep_samples=last)
        on_whole_grid = evaluate(step, whole_grid) if last else {}
        whole = {f"whole_grid_{key}": on_whole_grid.get(key) for key in MEASURES}
        rows.append(labels | {"kimg": step * config.batch / 1000} | row | whole)
    return rows


def train(config: configuration.Config) -> None:
    """Train a run to its end, or finish its training.

    Raises:
      interruption.Stopped: it was stopped.
    """
    if not loop.run(config).finished:
        raise interruption.Stopped(
            f"{config.out} was stopped; run the same command again to finish it."
        )


def regular_steps(config: configuration.Config) -> list[int]:
    """Return the steps of a run's regular checkpoints and the last, without interruptions'."""
    with checkpoints.Checkpoints(paths.as_path(config.out), read_only=True) as saved:
        regular = {*range(0, config.steps, config.checkpoint_every), config.steps}
        return [step for step in saved.steps() if step in regular]


def evaluate_samples(
    images: np.ndarray, dataset: data.Dataset, reference: frechet.Reference, features=frechet.PIXELS
) -> tuple[dict[str, Any], memorization.Report]:
    """Return memorization, residual noise and quality of samples: (one flat row, the report)."""
    report = memorization.report(images, dataset.train, dataset.test, threshold=_THRESHOLD)
    row = {
        "samples": len(images),
        "memorized": report.memorized.rate,
        "memorized_low": report.memorized.low,
        "memorized_high": report.memorized.high,
        "memorized_heldout": report.memorized_heldout.rate,
        "residual_noise": report.noise_mean,
        "without_noise": report.without_noise.rate,
        "without_noise_low": report.without_noise.low,
        "without_noise_high": report.without_noise.high,
        "without_noise_heldout": report.without_noise_heldout.rate,
        "adaptive": report.adaptive.rate,
        "adaptive_heldout": report.adaptive_heldout.rate,
        **quality(images, dataset.test, reference, features),
        "features": features.name,
    }
    return row, report


def quality(
    images: np.ndarray, heldout: np.ndarray, reference: frechet.Reference, features=frechet.PIXELS
) -> dict[str, float | None]:
    """Return the Frechet distance of images to held-out ones, and the recall and coverage of these.

    Copies of the training images improve the distance. Recall and coverage count how many held-out
    images have a sample near; None for too few images.
    """
    row: dict[str, float | None] = {"recall": None, "coverage": None}
    if min(len(images), len(heldout)) > _BALLS:
        overlap = precision_recall.precision_recall(features(images), features(heldout), _BALLS)
        row = {"recall": overlap.recall, "coverage": overlap.coverage}
    return {"frechet": frechet.compare(images, reference, features).value} | row


def read_samples(runs: pathlib.Path, arm: str, seed: int) -> dict[str, np.ndarray]:
    """Return the last checkpoint's samples that `train_and_evaluate` kept.

    Returns:
      images [Q, H, W, C], distance and index [Q, 2] of the two nearest training images, memorized
      and memorized_without_noise [Q]; at, a JSON text of the sampling settings.
    """
    arrays = read_arrays(runs / f"{arm}-{seed}" / _SAMPLES, _ARRAYS)
    assert arrays is not None, "train_and_evaluate has checked them"
    return arrays


class EvaluationCache:
    """The evaluations in a file of a run folder, by checkpoint and settings; the last samples."""

    def __init__(
        self, folder: pathlib.Path, settings: EvaluationSettings, name: str = "judged.jsonl"
    ):
        self._path, self._samples = folder / name, folder / _SAMPLES
        self._settings = [settings.samples, settings.method, settings.inception, _BALLS]
        self._rows = {}
        text = self._path.read_bytes().decode(errors="replace") if self._path.exists() else ""
        for line in text.splitlines():
            # Damaged lines are computed again.
            with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError):
                entry = json.loads(line)
                key, row = json.dumps(entry["at"]), entry["found"]
                crc = _row_crc(key, row)
                if entry.get("crc", crc) == crc and all(_is_value(row[k]) for k in MEASURES):
                    self._rows[key] = row

    def key(self, step: int, sigmas: np.ndarray, *more: Any) -> str:
        """Return the key of the samples from a checkpoint, along a grid, with other settings."""
        return json.dumps([step, *self._settings, np.asarray(sigmas).tolist(), *more])

    def get(self, key: str) -> dict[str, Any] | None:
        """Return the evaluation, or None if it is not there."""
        return self._rows.get(key)

    def put(self, key: str, row: dict[str, Any]) -> None:
        """Add an evaluation and write the file."""
        self._rows[key] = row
        lines = (
            f'{{"at": {key}, "found": {json.dumps(row)}, "crc": {_row_crc(key, row)}}}\n'
            for key, row in self._rows.items()
        )
        paths.write_whole(self._path, "".join(lines))

    def has_samples(self, key: str) -> bool:
        """Return whether the kept samples are these, and whole."""
        arrays = read_arrays(self._samples, ("at", *_ARRAYS))
        return arrays is not None and str(arrays["at"]) == key

    def put_samples(self, key: str, images: np.ndarray, report: memorization.Report) -> None:
        """Keep the last checkpoint's samples."""
        nearest = report.samples._asdict()
        arrays = {name: nearest[name] for name in ("distance", "index", "memorized")}
        cleaned = report.noise_removed_ratio < _THRESHOLD
        arrays |= {"images": images, "memorized_without_noise": cleaned}
        write_arrays(self._samples, at=np.array(key), **arrays)


def write_arrays(path: pathlib.Path, **arrays: np.ndarray) -> None:
    """Write an .npz file whose arrays `read_arrays` can check."""
    with paths.open_whole(path) as file:
        np.savez_compressed(file, crc=_arrays_crc(arrays), **arrays)


def read_arrays(path: pathlib.Path, names: Sequence[str]) -> dict[str, np.ndarray] | None:
    """Return the arrays of a file of `write_arrays`; None if it is missing, damaged or incomplete.

    A file without the sum of its bytes, as geomem once wrote, is taken as it is.
    """
    if not path.exists():
        return None
    try:
        with path.open("rb") as file, np.load(file) as archive:
            arrays = dict(archive)
            crc = arrays.pop("crc", None)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error):
        return None
    whole = set(names) <= arrays.keys() and (crc is None or crc == _arrays_crc(arrays))
    return arrays if whole else None


def _arrays_crc(arrays):
    parts = (name.encode() + arrays[name].tobytes() for name in sorted(arrays))
    return zlib.crc32(b"".join(parts))


def _is_value(value):
    return value is None or (type(value) in (int, float) and math.isfinite(value))


def _row_crc(key, row):
    return zlib.crc32(f"{key}{json.dumps(row)}".encode())
