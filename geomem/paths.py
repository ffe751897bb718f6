"""The same calls for local folders and buckets (gs://name/folder), and atomic writes of files."""

from __future__ import annotations

import contextlib
import os
import pathlib
from collections.abc import Iterator
from typing import IO, cast

__all__ = ["AnyPath", "as_path", "open_whole", "write_whole", "written"]

AnyPath = str | os.PathLike  # a local path, or one with a scheme: gs://bucket/name

_written: dict[pathlib.Path, None] = {}  # in the order in which they were first written


def as_path(path: AnyPath) -> pathlib.Path:
    """Return a path with pathlib's methods, local or in a bucket.

    Args:
      path: a local path, in which "~" is expanded, or one with a scheme. gs:// needs the package
        gcsfs.

    Returns:
      A pathlib.Path. For a scheme it is an `etils.epath.Path`, which has the same methods as far
      as objects in a bucket allow.

    Raises:
      ValueError: etils does not know the scheme.

    >>> as_path("runs/digits").name, str(as_path("gs://bucket/runs") / "digits")
    ('digits', 'gs://bucket/runs/digits')
    """
    text = os.fspath(path)
    if "://" not in text:
        try:
            return pathlib.Path(text).expanduser()
        except RuntimeError:  # "~name" of an unknown user stays as it is, as in a shell
            return pathlib.Path(text)
    from etils import epath

    try:
        return cast(pathlib.Path, epath.Path(text))
    except KeyError:
        raise ValueError(f"path must be a local path or gs://BUCKET/NAME, got {text}.") from None


@contextlib.contextmanager
def open_whole(path: AnyPath) -> Iterator[IO[bytes]]:
    """Open a file for writing bytes; it appears under its name at the end of the block.

    Readers see the old file or the new one, never a part of it, even if the process is killed.
    """
    path = as_path(path)
    if isinstance(path, pathlib.Path):
        partial = path.with_name(f".{path.name}")
        try:
            with partial.open("wb") as file:
                yield file
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    else:  # an object in a bucket appears when its upload is complete
        with path.open("wb") as file:
            yield file
    _written[path] = None


def write_whole(path: AnyPath, text: str) -> None:
    """Write a text file as `open_whole` does."""
    with open_whole(path) as file:
        # File names may hold bytes that are not UTF-8.
        file.write(text.encode(errors="backslashreplace"))


def written() -> list[pathlib.Path]:
    """Return the files that this process has written, in order."""
    return list(_written)
