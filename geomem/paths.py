"""The same calls for local folders and buckets (gs://name/folder), and atomic writes of files."""

import contextlib
import json
import logging
import os
import pathlib
from collections.abc import Iterator
from typing import IO, Any, cast

__all__ = ["AnyPath", "as_path", "moved", "open_whole", "read_json", "write_whole", "written"]

AnyPath = str | os.PathLike  # a local path, or one with a scheme: gs://bucket/name

_LARGEST_JSON = 2**26
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

    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it logs what it raises
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
        partial = path.with_name(f".{path.name}.partial")
        try:
            with partial.open("wb") as file:
                yield file
            partial.replace(path)
        except OSError as error:  # a full disk names no file
            error.filename = str(path)
            raise
        finally:
            with contextlib.suppress(OSError):
                partial.unlink()
    else:  # an object in a bucket appears when its upload is complete
        with path.open("wb") as file:
            yield file
    _written[path] = None


def write_whole(path: AnyPath, text: str) -> None:
    """Write a text file as `open_whole` does."""
    with open_whole(path) as file:
        # File names may hold bytes that are not UTF-8.
        file.write(text.encode(errors="backslashreplace"))


def moved(source: pathlib.Path, target: pathlib.Path) -> None:
    """Let `written` list the files of one folder in another one."""
    renamed = {target / path.name if path.parent == source else path: None for path in _written}
    _written.clear()
    _written.update(renamed)


def read_json(path: AnyPath) -> Any:
    """Return the content of a JSON file.

    Raises:
      ValueError: it cannot be read, is larger than 64 MB, or is not JSON; the message is a reason.
    """
    path = as_path(path)
    try:
        if isinstance(path, pathlib.Path) and path.exists():
            if not path.is_file():  # a pipe would wait for a writer
                raise ValueError("it is not a file")
            if path.stat().st_size > _LARGEST_JSON:
                raise ValueError("it is larger than 64 MB")
        return json.loads(path.read_text())
    except UnicodeDecodeError:
        raise ValueError("it is not text") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"it is not JSON: {error}") from None
    except OSError as error:
        raise ValueError((error.strerror or str(error)).lower()) from None


def written() -> list[pathlib.Path]:
    """Return the files that this process has written, in order."""
    return list(_written)
