"""A run's output folder, its files, and a record of how every number was computed."""

import contextlib
import csv
import dataclasses
import hashlib
import importlib.metadata
import io
import itertools
import json
import math
import os
import pathlib
import platform
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

import geomem
from geomem import data, paths
from geomem.data import sources
from geomem.experiments.common import output

_LEAST_SIDE = 32  # pixels of an image in a grid
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "scipy")


class Phases:
    """Measure the seconds of each phase of a run.

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


class Run:
    """The files and timings of one run of a command; see `output.Output`.

    Attributes:
      out: the configuration's output folder, or the folder of its .npz file.
      folder: where to write files; `out` once the run is finished.
      phase: the run's `Phases`; run.json holds their seconds.
    """

    def __init__(self, config: Any):
        self._config, self.phase = config, Phases()
        self._output = output.Output(config.out)
        self.out = self._output.out

    @property
    def folder(self) -> pathlib.Path:
        """The folder to write files to."""
        return self._output.folder

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON file; see the function `write_json`."""
        write_json(self.folder / name, value)

    def write_rows(self, name: str, rows: Sequence[dict[str, Any]]) -> None:
        """Write rows with the same keys as a CSV file."""
        write_rows(self.folder / name, rows)

    def write_columns(self, name: str, columns: Mapping[str, Sequence | np.ndarray]) -> None:
        """Write columns of the same length, by name, as a CSV file."""
        write_columns(self.folder / name, columns)

    def write_figure(self, name: str, figure: Any) -> None:
        """Write a matplotlib figure as NAME.png and NAME.pdf."""
        from geomem.plots import style

        style.save(figure, self.folder, name)

    def finish(self, **facts: Any) -> None:
        """Write the record, with `facts` such as data=dataset_facts(dataset), and show all files.

        The record is run.json, or NAME.json beside NAME.npz.
        """
        names = {path.name for path in self.folder.iterdir()} | {self._output.record}
        facts = run_facts(self._config, self.phase, files=sorted(names), **facts)
        self.write_json(self._output.record, facts)
        self._output.commit()


def environment() -> dict[str, Any]:
    """Return versions, device and commit as plain JSON values."""
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
    """Return the name, the sizes and the SHA-256 of the images and indices in use."""
    train, test = (
        {"count": len(split), "sha256": split.sha256() if len(split) else None}
        for split in (dataset.train_split, dataset.test_split)
    )
    return {
        "name": pathlib.Path(dataset.name).name,
        "train": train,
        "test": test,
        "image_shape": list(dataset.train_split.shape[1:]),
    }


def claim(config: Any, *, overwrite: bool = False, number: bool = False) -> Any:
    """Return the configuration with an `out` that does not hold results of another run.

    The same configuration may overwrite its own results.

    Args:
      config: a dataclass, with or without the output folder or file in `out`.
      overwrite: whether to accept any `out`.
      number: whether to append -2, -3, ... to `out` instead of raising an error.
    """
    if getattr(config, "plot_only", None) is not None:
        output.lock(config.plot_only, "plot_only")
        return config
    out = getattr(config, "out", None)
    if out is None:
        return config
    first = paths.as_path(out)
    suffix = ".npz" if first.suffix == ".npz" else ""
    for count in itertools.count(2):
        path = paths.as_path(out)
        output.lock(path)
        record = path.with_suffix(".json") if suffix else path / "run.json"
        if overwrite or _may_write(record, config):
            return dataclasses.replace(config, out=str(out))
        output.release(path)
        if not number:
            raise ValueError(
                f"out must not hold the results of another run, got {out}: choose another --out "
                "or add --overwrite."
            )
        out = first.with_name(f"{first.name.removesuffix(suffix)}-{count}{suffix}")


@contextlib.contextmanager
def reading(argument: str, folder: paths.AnyPath) -> Iterator[None]:
    """Name the argument and the folder in whatever damaged result files make their readers raise.

    Raises:
      ValueError: anything but a lack of memory was raised.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # matplotlib's, before its error
            yield
    except MemoryError:
        raise
    except Exception as error:
        if isinstance(error, ValueError) and str(error).startswith(f"{argument} must "):
            raise
        reason = f"{type(error).__name__}: {error}".partition("\n")[0][:200]
        raise ValueError(
            f"{argument} must be the folder of a finished run, got {folder} ({reason})."
        ) from None


def check_outside(config: Any) -> None:
    """Raise a ValueError if `out` is in a folder of images, where it would be read as an image."""
    out = getattr(config, "out", None)
    for name in ("dataset", "heldout", "samples"):
        folder = getattr(config, name, None)
        if not out or not isinstance(folder, str) or not sources.is_folder(folder):
            continue
        inner, outer = (os.path.realpath(paths.as_path(path)) for path in (out, folder))
        if pathlib.Path(inner).is_relative_to(outer):
            raise ValueError(f"out must be outside the folder of images {folder}, got {out}.")


def check_command(config: Any) -> None:
    """Raise a ValueError if `out` holds the results of another command; for those that resume.

    A training run checks more than that itself.
    """
    record, command = paths.as_path(config.out) / "run.json", _command(config)
    if command == "train" or not record.exists():
        return
    try:
        found = paths.read_json(record).get("command", command)
    except (ValueError, AttributeError):
        found = "an unreadable run.json"
    if found != command:
        raise ValueError(
            f"out must not hold the results of another command, got {config.out} ({found}): "
            "choose another --out."
        )


def write_json(path: paths.AnyPath, value: Any) -> None:
    """Write nested dicts, lists, numbers, dataclasses and NamedTuples as indented JSON."""
    paths.write_whole(path, json.dumps(value, indent=2, default=_plain) + "\n")


def write_rows(path: paths.AnyPath, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows with the same keys as CSV."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    paths.write_whole(path, text.getvalue())


def write_columns(path: paths.AnyPath, columns: Mapping[str, Sequence | np.ndarray]) -> None:
    """Write columns of the same length, by name, as CSV."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(columns)
    values = (np.asarray(column).tolist() for column in columns.values())
    writer.writerows(zip(*values, strict=True))
    paths.write_whole(path, text.getvalue())


def run_facts(config: Any, phases: Phases, /, **facts: Any) -> dict[str, Any]:
    """Return the command, its configuration (a dataclass), `facts`, environment and timings."""
    settings = dataclasses.asdict(config)
    return {
        "command": _command(config),
        "config": settings,
        "config_sha256": _digest(settings),
        **facts,
        "environment": environment(),
        "seconds": phases.seconds,
    }


def write_image_grid(path: paths.AnyPath, images: np.ndarray, columns: int | None = None) -> None:
    """Write images as one PNG, with gray lines between them.

    Args:
      path: the file.
      images: uint8 [N, H, W, C], C = 1 or 3. Images below 32 pixels are enlarged.
      columns: images in a row; default: as many as make the grid about square.
    """
    from PIL import Image

    count, height, width, channels = images.shape
    scale = max(1, _LEAST_SIDE // height)
    images = images.repeat(scale, axis=1).repeat(scale, axis=2)
    height, width = height * scale, width * scale
    columns = columns or math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    tiles = np.full((rows * columns, height + 1, width + 1, channels), 128, np.uint8)
    tiles[:count, :height, :width] = images
    sheet = tiles.reshape(rows, columns, height + 1, width + 1, channels).swapaxes(1, 2)
    sheet = sheet.reshape(rows * (height + 1), columns * (width + 1), channels)
    with paths.open_whole(path) as file:
        Image.fromarray(sheet[..., 0] if channels == 1 else sheet).save(
            file, format="PNG", pnginfo=_own_mark()
        )


def _own_mark():
    """The mark of geomem's own PNG files, which are never taken for images of a data set."""
    from PIL.PngImagePlugin import PngInfo

    mark = PngInfo()
    mark.add_text("Software", "geomem")
    return mark


def _may_write(path, config):
    """Whether a run's record is missing or has this command and configuration."""
    try:
        if not path.exists():
            return True
        record = paths.read_json(path)
        digest = record.get("config_sha256") or _digest(record["config"])
        command = record.get("command", _command(config))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False
    return (command, digest) == (_command(config), _digest(dataclasses.asdict(config)))


def _command(config):
    """The command's name, e.g. audit for a configuration from geomem.experiments.audit.command."""
    module = type(config).__module__
    spec = sys.modules["__main__"].__spec__
    if module == "__main__" and spec is not None:  # started by python -m, or by `geomem`
        module = spec.name
    return module.removeprefix("geomem.experiments.").partition(".")[0]


def _digest(settings):
    """The SHA-256 of the settings that determine the results, so without the output folder."""
    decisive = {k: v for k, v in settings.items() if k not in ("out", "plot_only")}
    return hashlib.sha256(json.dumps(decisive, sort_keys=True, default=str).encode()).hexdigest()


def _plain(value):
    if dataclasses.is_dataclass(value):
        return dataclasses.asdict(value)
    return value.tolist() if hasattr(value, "tolist") else str(value)


def _commit() -> str | None:
    if commit := os.environ.get("GEOMEM_COMMIT"):  # for code copied without its git history
        return commit
    git = ["git", "-C", str(pathlib.Path(geomem.__file__).resolve().parent.parent)]
    try:
        head = subprocess.run(
            [*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
    # Changed result files do not make the code dirty.
    code = [*git, "diff", "--quiet", "HEAD", "--", ":/", ":(top,exclude)experiments/*/results/*"]
    return head if subprocess.run(code, capture_output=True).returncode == 0 else f"{head}-dirty"
