"""Images in tables of the Hugging Face `datasets` package, from local files only."""

import importlib
import io
import logging
import pathlib
import re
from typing import IO, Any, NamedTuple

import numpy as np

from geomem.data import folders
from geomem.data.datasets import Split

__all__ = ["open_table"]

_SPLIT = re.compile(r"(train|test|validation|valid|val)(?![a-z])")


class _Row(NamedTuple):
    """The encoded image in one row of a table."""

    table: Any
    column: str
    index: int

    @property
    def name(self) -> str:
        return f"row {self.index}"

    def __str__(self) -> str:
        return self.name

    def open(self, mode: str) -> IO[bytes]:
        value = self.table[self.index][self.column]
        if value is None or (value["bytes"] is None and not value["path"]):
            raise ValueError("it holds no image")
        if value["bytes"] is not None:
            return io.BytesIO(value["bytes"])
        if not pathlib.Path(value["path"]).is_file():  # a pipe would wait for a writer
            raise ValueError(f"{value['path']} is not a file")
        return open(value["path"], mode)


def open_table(
    path: pathlib.Path, resize: int | None, argument: str
) -> tuple[Split, Split | None, tuple[str, ...]]:
    """Return the training images, test images (or None) and class names of a saved data set.

    Args:
      path: a folder that `save_to_disk` wrote, a Parquet file, or a folder of Parquet files whose
        names say train, test or validation; all others are for training.
      resize, argument: as in `open_source`.

    Raises:
      ValueError: the package is missing, or the tables cannot be read or have no image column.
    """
    try:  # by name: a type checker without the package would find geomem.data.datasets
        datasets = importlib.import_module("datasets")
    except ImportError:
        raise ValueError(
            f"{argument} must not be hf:PATH without 'datasets': pip install 'geomem[hf]'."
        ) from None
    log, hidden = logging.getLogger("datasets"), datasets.are_progress_bars_disabled()
    level = log.level
    log.setLevel(logging.CRITICAL)  # it logs what it raises
    datasets.disable_progress_bars()
    try:
        tables = _tables(datasets, path)
    except Exception as error:  # Arrow and datasets raise errors of many types
        reason = str(error.__cause__ or error).strip().partition("\n")[0]
        raise ValueError(
            f"{argument} must be a saved data set or Parquet files, got hf:{path} ({reason})."
        ) from None
    finally:
        log.setLevel(level)
        if not hidden:
            datasets.enable_progress_bars()
    train = tables.get("train") or next(iter(tables.values()))
    names = ("test", "validation", "valid", "val")
    test = next((tables[name] for name in names if tables.get(name)), None)
    test = None if test is train else test
    features = train.features
    columns = [name for name, kind in features.items() if isinstance(kind, datasets.Image)]
    if len(columns) != 1:
        raise ValueError(
            f"{argument} must have one column of images, got {len(columns)} in hf:{path} "
            f"({', '.join(features)})."
        )
    labels = [name for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    class_names = tuple(features[labels[0]].names) if labels else ()

    def split(table):
        if not isinstance(table.features.get(columns[0]), datasets.Image):
            raise ValueError(
                f"{argument} must have its column of images, {columns[0]}, in all splits of "
                f"hf:{path}, got {', '.join(table.features)}."
            )
        table = table.cast_column(columns[0], datasets.Image(decode=False))
        rows = [_Row(table, columns[0], index) for index in range(len(table))]
        classes = None
        if labels and isinstance(table.features.get(labels[0]), datasets.ClassLabel):
            classes = _classes(table, labels[0], class_names, f"hf:{path}", argument)
        return folders.open_files(rows, f"hf:{path}", classes, resize, argument)

    opened = split(train), None if test is None else split(test)
    return *opened, class_names if opened[0].labels is not None else ()


def _classes(table, column, class_names, place, argument):
    """The position in `class_names` of each row's class; None if no row has one."""
    names, given = table.features[column].names, table[column][:]
    known = [label is not None and 0 <= label < len(names) for label in given]
    if not any(known):  # as in published test sets
        return None
    if not all(known):
        row = known.index(False)
        raise ValueError(
            f"{argument} must have a class in each row, got {given[row]} in row {row} of {place}."
        )
    if other := {names[label] for label in given} - {*class_names}:
        raise ValueError(
            f"{argument} must have the same classes in all splits of {place}, got {min(other)!r}, "
            "which is not among those of the training images."
        )
    return np.array([class_names.index(names[label]) for label in given])


def _tables(datasets, path):
    """The tables by the name of their split."""
    if (path / "dataset_dict.json").exists() or (path / "dataset_info.json").exists():
        saved = datasets.load_from_disk(str(path))
        return dict(saved) if isinstance(saved, dict) else {"train": saved}
    files = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
    if not files:
        raise ValueError("no Parquet files are there")
    groups: dict[str, list[str]] = {}
    for file in files:
        match = _SPLIT.search(file.stem)
        groups.setdefault(match.group(1) if match else "train", []).append(str(file))
    return {
        name: datasets.Dataset.from_parquet(paths, keep_in_memory=True)
        for name, paths in groups.items()
    }
