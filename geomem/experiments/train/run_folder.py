"""The folder of a training run: check which run it belongs to, and load its denoiser.

The folder holds config.json, run.json, metrics.jsonl, samples_STEP.png, TensorBoard events and
checkpoints/STEP.
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import flax.traverse_util
import jax
import numpy as np

from geomem import paths
from geomem.diffusion import checkpoints, grids, preconditioning, training_step
from geomem.experiments.train import configuration

_FACTS = "config.json"


def claim(folder: pathlib.Path, facts: Mapping[str, Any], may_change=()) -> bool:
    """Claim a folder for a run, or check that it is this run's, so that no run resumes another.

    Args:
      folder: a folder that is missing, empty, or of an earlier session of this run.
      facts: nested dict of JSON values that define the run; written to config.json.
      may_change: dotted names of facts that a resumed run may change, for example its length.

    Returns:
      Whether the folder holds an earlier session, to be resumed.
    """
    facts = json.loads(json.dumps(facts))
    path = folder / _FACTS
    resumed = path.exists()
    entries = folder.iterdir() if folder.exists() else ()  # a bucket has no empty folders
    if resumed:
        stored, new = (
            flax.traverse_util.flatten_dict(tree, sep=".")
            for tree in (read_facts(folder, "out"), facts)
        )
        for name in sorted(new.keys() | stored.keys()):
            if name not in may_change and stored.get(name) != new.get(name):
                raise ValueError(
                    f"{name.rpartition('.')[2]} must be {stored.get(name)!r} as in {path}, got "
                    f"{new.get(name)!r}; choose another --out to start a new run."
                )
    elif foreign := [entry.name for entry in entries if not entry.name.startswith(".")]:
        raise ValueError(
            f"out must be a new or empty folder or a run to resume, got {folder}, which holds "
            f"{foreign[0]} but no {_FACTS}."
        )
    paths.write_whole(path, json.dumps(facts, indent=2) + "\n")
    return resumed


def read_facts(folder: paths.AnyPath, argument: str = "run") -> dict[str, Any]:
    """Return the facts that define a run; see `configuration.facts`.

    Raises:
      ValueError: `folder` is not a run folder, or its config.json is damaged; names `argument`.
    """
    path = paths.as_path(folder) / _FACTS
    try:
        facts = paths.read_json(path)
        configuration.resolve(configuration.from_facts(facts))
        data = facts["data"]
        shape, sigma_data, digest = data["image_shape"], data["sigma_data"], data["sha256"]
        if len(shape) != 3 or not all(type(side) is int and 0 < side < 2**16 for side in shape):
            raise ValueError("image_shape must be three sides")
        if not (type(sigma_data) in (int, float) and 0 < sigma_data < 1e6 and type(digest) is str):
            raise ValueError("sigma_data must be positive, and sha256 a text")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        missing = f"{error} is missing" if isinstance(error, KeyError) else error
        raise ValueError(
            f"{argument} must be the folder of a training run, got {folder}, which has no readable "
            f"{_FACTS} ({missing})."
        ) from None
    return facts


def load(
    folder: paths.AnyPath, step: int | None = None, *, average: bool = True
) -> tuple[preconditioning.EDMDenoiser, preconditioning.Params, tuple[int, int, int]]:
    """Load a trained denoiser from its run folder; the data set is not needed.

    Args:
      folder: the run folder.
      step: step of the checkpoint; default: the newest.
      average: whether to load the moving average of the parameters instead of the parameters.

    Returns:
      (denoiser, params, image shape). `denoiser.bind(params)` is a function of (x, sigma).

    Raises:
      ValueError: not a run folder, or no such checkpoint.
    """
    facts = read_facts(folder)
    try:
        template = state_template(facts)
    except Exception as error:  # Flax raises errors of many types for impossible networks
        reason = str(error).partition("\n")[0]
        message = f"run must hold a usable {_FACTS}, got {folder} ({reason})."
        raise ValueError(message) from None
    with checkpoints.Checkpoints(folder, read_only=True) as saved:
        restored = saved.restore(template, step)
    if restored is None:
        raise ValueError(f"run must have a checkpoint, got {folder}, which has none yet.")
    denoiser, _ = configuration.build(facts)
    _, state = restored
    return denoiser, state.ema if average else state.params, tuple(facts["data"]["image_shape"])


def state_template(facts: Mapping[str, Any]) -> training_step.TrainState:
    """Return the structure, shapes and dtypes of a run's training state."""
    denoiser, recipe = configuration.build(facts)
    shape = facts["data"]["image_shape"]
    return jax.eval_shape(lambda: training_step.init(denoiser, recipe, shape))


def sampling_grid(run: paths.AnyPath, sigmas: np.ndarray) -> np.ndarray:
    """Return the noise levels with one step across the gap of the run's training, if any."""
    _, recipe = configuration.build(read_facts(run))
    return grids.skip_gaps(sigmas, recipe.schedule)
