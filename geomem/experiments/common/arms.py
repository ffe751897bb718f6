"""Train an arm, and judge it along its training.

An arm is a training noise distribution. All arms share the data, the network and, seed by seed, the
initial parameters and the latents of their samples. A run that a folder holds already is not
trained again, and checkpoints that were judged already are not judged again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pathlib
from typing import Any, NamedTuple

import numpy as np

from geomem import data, paths
from geomem.diffusion import checkpoints, grids, sampler
from geomem.experiments.train import configuration, run_folder
from geomem.metrics import frechet, memorization
from geomem.metrics.inception import network, weights

__all__ = ["COMPARED", "Arm", "Judging", "Task", "judge", "measure", "read_samples"]

_SAMPLES = "samples.npz"
_THRESHOLD = 1 / 3  # of d1 / d2
COMPARED = ("memorized", "without_noise", "residual_noise", "frechet")  # the columns that matter


class Arm(NamedTuple):
    """A training noise distribution under a name.

    Attributes:
      name: the arm's name in files and figures, without spaces.
      gap: the interval of sigma that is left out, thinned or filled with dummy images, or None.
      keep: what is left of the density inside.
      dummy: whether the interval keeps its noise levels, with dummy images.
      changes: fields of the training configuration that this arm has otherwise.
    """

    name: str
    gap: tuple[float, float] | None = None
    keep: float = 0.0
    dummy: bool = False
    changes: tuple[tuple[str, Any], ...] = ()

    def configure(self, config: configuration.Config, seed: int, out: pathlib.Path):
        """The training run of this arm and seed."""
        schedule = "dummy" if self.dummy else None
        changes = {"gap": self.gap, "keep": self.keep, "schedule": schedule, "seed": seed}
        out = str(out / f"{self.name}-{seed}")
        # All checkpoints are judged, so all are kept, also where an interruption added some.
        changes |= {"out": out, "keep_checkpoints": config.steps, **dict(self.changes)}
        return dataclasses.replace(config, **changes)


@dataclasses.dataclass(frozen=True)
class Judging:
    """How checkpoints are judged.

    Attributes:
      samples: images sampled from each checkpoint, the seeds 0, 1, ...
      steps: levels of EDM's sampling grid, before it steps over the arm's gap.
      method: the sampler.
      inception: weights of the FID network; None takes pixels as features.
    """

    samples: int = 512
    steps: int = 18
    method: str = "heun"
    inception: str | None = None


class Task(NamedTuple):
    """One training run to carry out and to judge."""

    arm: Arm
    config: configuration.Config
    judging: Judging


def measure(task: Task) -> list[dict[str, Any]]:
    """Train (or go on training) one run and judge its checkpoints.

    Judged are the regular checkpoints and the last one, not those that an interruption added.
    Samplers step over a gap (`grids.skip_gaps`). The last checkpoint is judged with every level
    of the grid besides, those inside the gap included.

    Returns:
      One row for each checkpoint: arm, seed, gap and mass, kimg, and what `judge` finds;
      whole_grid_KEY is the same for every level of the grid, None before the end. What was found is
      kept in the run folder's judged.jsonl, the last checkpoint's samples in samples.npz there.

    Raises:
      ValueError: an unusable configuration, or a run that SIGTERM ended early.
    """
    config = task.config
    features = frechet.PIXELS
    if task.judging.inception is not None:
        features = network.features(weights.load(task.judging.inception))
    if not run_folder.run(config).finished:
        raise ValueError(f"run: {config.out} was stopped, wanted to its end (run again to go on)")
    dataset = configuration.load_data(config)
    folder = paths.as_path(config.out)
    reference = frechet.describe(dataset.test, f"{dataset.name} held out", features)
    with checkpoints.Checkpoints(folder, read_only=True) as saved:
        regular = {*range(0, config.steps, config.checkpoint_every), config.steps}
        steps = [step for step in saved.steps() if step in regular]
    whole = grids.edm_grid(task.judging.steps)
    judged = _Judged(folder, task.judging)

    def find(step, sigmas, keep=False):
        found = judged.get(step, sigmas)
        if found is None or (keep and not judged.has_samples(step, sigmas)):
            denoiser, params, shape = run_folder.load(folder, step)
            seeds, method = range(task.judging.samples), task.judging.method
            images = sampler.generate(denoiser.bind(params), seeds, shape, sigmas, method=method)
            found, report = judge(images, dataset, reference, features)
            if keep:
                judged.keep_samples(step, sigmas, images, report)
            judged.put(step, sigmas, found)
        return found

    low, high = task.arm.gap or (None, None)
    base = configuration.base_schedule(config)
    about = {
        "arm": task.arm.name,
        "seed": config.seed,
        "gap_low": low,
        "gap_high": high,
        "gap_mass": base.mass(low, high) if low else 0.0,
        "keep": task.arm.keep,
    }
    sigmas = run_folder.sampling_grid(folder, whole)
    rows = []
    for step in steps:
        last = step == steps[-1]
        found = find(step, sigmas, keep=last)
        of_whole = find(step, whole) if last else {}
        extra = {f"whole_grid_{key}": of_whole.get(key) for key in COMPARED}
        rows.append(about | {"kimg": step * config.batch / 1000} | found | extra)
    return rows


def judge(
    images: np.ndarray, dataset: data.Dataset, reference: frechet.Reference, features=frechet.PIXELS
) -> tuple[dict[str, float], memorization.Report]:
    """Memorization, left-over noise and quality of samples [Q, H, W, C], as one flat row."""
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
        "frechet": frechet.compare(images, reference, features).value,
        "features": features.name,
    }
    return row, report


def read_samples(runs: pathlib.Path, arm: str, seed: int) -> dict[str, np.ndarray]:
    """What `measure` kept of the last checkpoint's samples.

    Returns:
      images [Q, H, W, C], distance and index [Q, 2] of the two nearest training images, memorized
      and memorized_without_noise [Q]; at, a JSON text of how they were made.
    """
    with (runs / f"{arm}-{seed}" / _SAMPLES).open("rb") as file, np.load(file) as archive:
        return dict(archive)


class _Judged:
    """What was found before, by checkpoint and by how it was judged; and the last samples."""

    def __init__(self, folder: pathlib.Path, judging: Judging):
        self._path, self._samples = folder / "judged.jsonl", folder / _SAMPLES
        self._how = [judging.samples, judging.method, judging.inception]
        self._found = {}
        for line in self._path.read_text().splitlines() if self._path.exists() else []:
            with contextlib.suppress(json.JSONDecodeError):  # half written: found again
                row = json.loads(line)
                self._found[json.dumps(row["at"])] = row["found"]

    def get(self, step, sigmas):
        return self._found.get(self._at(step, sigmas))

    def put(self, step, sigmas, found):
        self._found[self._at(step, sigmas)] = found
        lines = (f'{{"at": {at}, "found": {json.dumps(row)}}}\n' for at, row in self._found.items())
        paths.write_whole(self._path, "".join(lines))

    def has_samples(self, step, sigmas):
        if not self._samples.exists():
            return False
        with self._samples.open("rb") as file, np.load(file) as archive:
            return "at" in archive and str(archive["at"]) == self._at(step, sigmas)

    def keep_samples(self, step, sigmas, images, report):
        found = report.samples
        with self._samples.open("wb") as file:
            np.savez_compressed(
                file,
                at=self._at(step, sigmas),
                images=images,
                distance=found.distance,
                index=found.index,
                memorized=found.memorized,
                memorized_without_noise=report.noise_removed_ratio < _THRESHOLD,
            )

    def _at(self, step, sigmas):
        return json.dumps([step, *self._how, np.asarray(sigmas).tolist()])
