"""What every run writes beside its results, so that a number can be traced to what made it."""

import atexit
import contextlib
import csv
import dataclasses
import importlib.metadata
import io
import json
import math
import os
import pathlib
import platform
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

import geomem
from geomem import data, paths

__all__ = [
    "Phases",
    "dataset_facts",
    "environment",
    "make_folder",
    "write_image_grid",
    "write_json",
    "write_rows",
    "write_run",
]

_LEAST_SIDE = 32  # pixels of an image in a grid
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "scipy")


class Phases:
    """Seconds per phase of a run.

    >>> phases = Phases()
    >>> with phases("load"):
    ...     pass
    >>> list(phases.seconds)
    ['load']
    """

    def __init__(self):
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Time the body of a `with` block under `name`."""
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 3)


def environment() -> dict[str, Any]:
    """Versions, device and commit, as plain JSON values."""
    devices = jax.devices()
    return {
        "geomem": geomem.__version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "device": devices[0].device_kind,
        "device_count": len(devices),
        "process_count": jax.process_count(),
        "cpu_count": os.cpu_count(),
    }


def dataset_facts(dataset: data.Dataset) -> dict[str, Any]:
    """Name, sizes and SHA-256 of the images and indices in use."""
    return {
        "name": pathlib.Path(dataset.name).name,
        "train": {"count": len(dataset.train_split), "sha256": dataset.train_split.sha256()},
        "test": {"count": len(dataset.test_split), "sha256": dataset.test_split.sha256()},
        "image_shape": list(dataset.train_split.shape[1:]),
    }


def make_folder(out: paths.AnyPath) -> pathlib.Path:
    """Create the output folder, or say in one line why it cannot be written.

    In a run of several processes only the first writes to `out`: the others get a folder of their
    own, which goes when they end.

    Args:
      out: a local folder or one in a bucket (gs://...).

    Raises:
      ValueError: `out` is a file, or its file system or bucket refuses writing.
    """
    if jax.process_index() > 0:
        scratch = tempfile.TemporaryDirectory()
        atexit.register(scratch.cleanup)
        return pathlib.Path(scratch.name)
    folder = paths.as_path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".geomem-probe"
        probe.write_text("")
        probe.unlink()
    except Exception as error:  # a bucket's client has errors of its own
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        raise ValueError(f"out: cannot write to {folder}: {reason}") from None
    return folder


def write_json(path: paths.AnyPath, value: Any) -> None:
    """Write dicts, lists, numbers, dataclasses and NamedTuples of them as JSON, indented."""
    paths.as_path(path).write_text(json.dumps(value, indent=2, default=_plain) + "\n")


def write_rows(path: paths.AnyPath, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows of the same keys as CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    paths.as_path(path).write_text(text.getvalue())


def write_run(folder: pathlib.Path, config: Any, phases: Phases, **facts: Any) -> None:
    """Write run.json: the configuration (a dataclass), `facts`, the environment and the seconds."""
    about = {"config": dataclasses.asdict(config), **facts}
    about |= {"environment": environment(), "seconds": phases.seconds}
    write_json(folder / "run.json", about)


def write_image_grid(path: paths.AnyPath, images: np.ndarray, columns: int | None = None) -> None:
    """Write uint8 images [N, H, W, C], C = 1 or 3, as one PNG with gray rules; default squarish."""
    from PIL import Image

    count, height, width, channels = images.shape
    scale = max(1, _LEAST_SIDE // height)  # tiny images are enlarged
    images = images.repeat(scale, axis=1).repeat(scale, axis=2)
    height, width = height * scale, width * scale
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    tiles = np.full((rows * columns, height + 1, width + 1, channels), 128, np.uint8)
    tiles[:count, :height, :width] = images
    sheet = tiles.reshape(rows, columns, height + 1, width + 1, channels).swapaxes(1, 2)
    sheet = sheet.reshape(rows * (height + 1), columns * (width + 1), channels)
    with paths.as_path(path).open("wb") as file:
        Image.fromarray(sheet[..., 0] if channels == 1 else sheet).save(file, format="PNG")


def _plain(value):
    if dataclasses.is_dataclass(value):
        return dataclasses.asdict(value)
    return value.tolist() if hasattr(value, "tolist") else str(value)


def _commit() -> str | None:
    if commit := os.environ.get("GEOMEM_COMMIT"):  # where the code was copied without its history
        return commit
    git = ["git", "-C", str(pathlib.Path(geomem.__file__).resolve().parent.parent)]
    try:
        head = subprocess.run(
            [*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
    # Results that are being written anew do not make the code another one.
    code = [*git, "diff", "--quiet", "HEAD", "--", ":/", ":(top,exclude)experiments/*/results/*"]
    return head if subprocess.run(code, capture_output=True).returncode == 0 else f"{head}-dirty"
