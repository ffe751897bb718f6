"""Where results lie: a local folder, or a bucket such as gs://name/folder, by the same calls."""

from __future__ import annotations

import os
import pathlib

__all__ = ["AnyPath", "as_path", "write_whole"]

AnyPath = str | os.PathLike  # of a local file, or with a scheme: gs://bucket/name


def as_path(path: AnyPath) -> pathlib.Path:
    """A path with pathlib's methods, whatever it points into.

    Args:
      path: a local path, "~" allowed, or one with a scheme; gs:// needs the package gcsfs.

    Returns:
      A pathlib.Path, or for a scheme an `etils.epath.Path`, which has the same methods as far as
      they make sense for objects in a bucket.

    Raises:
      ValueError: a scheme that etils does not know.

    >>> as_path("runs/digits").name, str(as_path("gs://bucket/runs") / "digits")
    ('digits', 'gs://bucket/runs/digits')
    """
    text = os.fspath(path)
    if "://" not in text:
        return pathlib.Path(text).expanduser()
    from etils import epath

    try:
        return epath.Path(text)
    except KeyError:
        raise ValueError(f"path: {text}, wanted a local path or gs://BUCKET/NAME") from None


def write_whole(path: pathlib.Path, text: str) -> None:
    """Write `text` so that a reader, or a kill, finds either the old file or the new one."""
    if not isinstance(path, pathlib.Path):
        path.write_text(text)  # an object in a bucket appears when its upload is complete
        return
    partial = path.with_name(f".{path.name}")
    partial.write_text(text)
    partial.replace(path)
