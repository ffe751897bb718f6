"""Train one network, sample from it in every way, and measure copies and quality."""

from typing import Any, NamedTuple

import numpy as np

from geomem import data, paths
from geomem.diffusion import grids, sampler
from geomem.experiments.common import arms, image_flags
from geomem.experiments.repair import variants
from geomem.experiments.train import configuration, run_folder
from geomem.metrics import calibration, copies, memorization
from geomem.points.neighbors import nearest

MEASURES = (
    *("memorized", "calibrated", "aligned", "without_noise"),
    *("frechet", "recall", "coverage", "heldout_nearer"),
)
_SHOWN = 64  # samples kept for the figure


class Task(NamedTuple):
    """A network to train, and how to sample from it."""

    arm: str  # "baseline" or "gap"
    config: configuration.Config
    evaluation: arms.EvaluationSettings
    zone: tuple[float, float]
    chosen: variants.Replacement
    quick: bool = False  # only the main variants


class Judge:
    """Measures samples against the images of a run.

    Attributes:
      calibrated, aligned: Threshold of the ratios d1 / d2 of pixels and of aligned pixels below
        which at most 0.1% of the held-out images fall.
    """

    def __init__(self, dataset: data.Dataset, settings: arms.EvaluationSettings):
        self._dataset = dataset
        self._features, self._reference = settings.reference(dataset)
        self._own = np.asarray(nearest(dataset.test, dataset.train, 1).distance)[:, 0]
        ratios = memorization.measure(dataset.test, dataset.train).ratio
        self.calibrated = calibration.calibrate(ratios)
        self.aligned = calibration.calibrate(self._aligned(dataset.test))

    def _aligned(self, images):
        found, _ = copies.align(images, self._dataset.train)
        if found is None:
            raise ValueError("dataset must hold images of 8 or more pixels a side.")
        return np.minimum(found.ratio, copies.PROVED)

    def __call__(self, images: np.ndarray) -> dict[str, Any]:
        """Return memorization and quality of samples [Q, H, W, C], by name.

        memorized is the fraction with d1 / d2 < 1/3; calibrated and aligned, the fractions below
        the calibrated thresholds; heldout_nearer, the fraction of the held-out images that are
        nearer to a sample than to any training image.
        """
        row, report = arms.evaluate_samples(images, self._dataset, self._reference, self._features)
        to_samples = np.asarray(nearest(self._dataset.test, images, 1).distance)[:, 0]
        return row | {
            "calibrated": float((report.samples.ratio < self.calibrated.value).mean()),
            "aligned": float((self._aligned(images) < self.aligned.value).mean()),
            "heldout_nearer": float((to_samples < self._own).mean()),
        }


def measure_run(task: Task) -> list[dict[str, Any]]:
    """Train a run, or finish its training, and return a row for each variant and checkpoint.

    A baseline is sampled unrepaired at each checkpoint and in all variants at the last; an arm with
    a gap, unrepaired at the last. The run folder keeps the rows in repairs.jsonl.
    """
    config = task.config
    arms.train(config)
    dataset, folder = image_flags.load(config), paths.as_path(config.out)
    cache = arms.EvaluationCache(folder, task.evaluation, "repairs.jsonl")
    grid = run_folder.sampling_grid(folder, grids.edm_grid(task.evaluation.steps))
    judge = None

    def measure(step, variant):
        nonlocal judge
        key = cache.key(step, grid, *variants.settings(variant))
        name = {variants.NONE.name: "plain", f"zone: {task.chosen}": "repaired"}.get(variant.name)
        kept = folder / f"{name}.npz"
        keep = step == steps[-1] and name is not None
        before = arms.read_arrays(kept, ["images", "at"]) if keep else None
        keep = keep and (before is None or str(before["at"]) != key)
        if (row := cache.get(key)) is not None and not keep:
            return row
        judge = judge or Judge(dataset, task.evaluation)
        denoiser, params, shape = run_folder.load(folder, step)
        sample, levels = variants.sampling(variant, denoiser.bind(params), grid, dataset)
        seeds, method = range(task.evaluation.samples), task.evaluation.method
        images = sampler.generate(sample, seeds, shape, levels, method=method)
        if keep:
            arms.write_arrays(kept, images=images[:_SHOWN], at=np.array(key))
        row = judge(images)
        thresholds = {"calibrated_at": judge.calibrated.value, "aligned_at": judge.aligned.value}
        row |= {**thresholds, "steps": len(levels) - 1}
        cache.put(key, row)
        return row

    steps = arms.regular_steps(config)
    chosen = [(step, variants.NONE) for step in steps]
    if task.arm == "baseline":
        every = variants.make_variants(grid, task.zone, task.chosen, quick=task.quick)
        chosen += [(steps[-1], variant) for variant in every[1:]]
    else:
        chosen = chosen[-1:]
    low, high = task.zone
    rows = []
    for step, variant in chosen:
        labels = {
            "arm": task.arm,
            "variant": variant.name,
            "seed": config.seed,
            "kimg": step * config.batch / 1000,
            "zone_low": low,
            "zone_high": high,
            "sigma_from": float(grid[variant.first]) if variant.replacement else None,
            "sigma_to": float(grid[variant.last]) if variant.replacement else None,
        }
        rows.append(labels | measure(step, variant))
    return rows


def read_samples(folder: paths.AnyPath, name: str) -> np.ndarray:
    """Return a run's first samples [64, H, W, C], "plain" or "repaired" as chosen."""
    arrays = arms.read_arrays(paths.as_path(folder) / f"{name}.npz", ["images"])
    assert arrays is not None, "measure_run has checked them"
    return arrays["images"]
