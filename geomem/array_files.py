"""Read `.npy` and `.npz` files; headers and sizes are checked before memory is taken."""

import math
import os
import pathlib
import zipfile
from collections.abc import Collection
from typing import IO

import numpy as np
from jaxtyping import Shaped

from geomem import memory

__all__ = ["names", "open_npy", "read_npz"]

_UNPACKED = 4e9  # bytes; GEOMEM_MAX_GB changes it
_RATIO = 10  # an archive may always unpack to this many times its size
_CHUNK = 2**24
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def open_npy(path: pathlib.Path) -> Shaped[np.ndarray, "*shape"]:
    """Return the array of an `.npy` file as a memory map, which reads only what is used.

    Raises:
      ValueError: not such a file, Python objects, no values, or fewer values than its shape needs;
        the message is a reason that follows "got PATH:".
      OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        shape, order, dtype = _header(file, size)
        return np.memmap(path, dtype, "r", file.tell(), shape, order)


def names(path: pathlib.Path) -> list[str]:
    """Return the names of the arrays in an `.npz` file.

    Raises:
      ValueError, OSError: as in `open_npy`.
    """
    with _archive(path) as archive:
        return [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]


def read_npz(
    path: pathlib.Path, only: Collection[str] | None = None
) -> dict[str, Shaped[np.ndarray, "*shape"]]:
    """Return the arrays of an `.npz` file by name, or those in `only`.

    Raises:
      ValueError: as in `open_npy`, or the arrays are larger than 4 GB (GEOMEM_MAX_GB in the
        environment), than ten times the file, or than the free memory.
      OSError: the file cannot be read.
    """
    with _archive(path) as archive:
        entries = {
            entry.filename.removesuffix(".npy"): entry
            for entry in archive.infolist()
            if entry.filename.endswith(".npy")
        }
        entries = {name: e for name, e in entries.items() if only is None or name in only}
        unpacked = sum(entry.file_size for entry in entries.values())
        packed = path.stat().st_size
        largest = memory.setting("GEOMEM_MAX_GB", _UNPACKED / 1e9) * 1e9
        if unpacked > max(largest, _RATIO * packed):
            raise ValueError(
                f"it must unpack to at most {max(largest, _RATIO * packed) / 1e9:.3g} GB, got "
                f"{unpacked / 1e9:.3g}; the environment variable GEOMEM_MAX_GB allows more"
            )
        if unpacked > (available := memory.free()):
            raise ValueError(
                f"it must unpack to at most the {available / 1e9:.3g} GB that are free, got "
                f"{unpacked / 1e9:.3g} GB"
            )
        return {name: _read(archive, entry) for name, entry in entries.items()}


def _archive(path):
    if not path.is_file():  # a pipe would wait for a writer
        raise ValueError("it is not a file" if path.exists() else "no such file")
    try:
        return zipfile.ZipFile(path)
    except MemoryError:
        raise
    except Exception as error:  # a damaged directory raises errors of many types
        raise ValueError(str(error)) from None


def _read(archive, entry):
    try:
        with archive.open(entry) as file:
            shape, order, dtype = _header(file, entry.file_size)
            array = np.empty(shape, dtype, order)
            view = array.reshape(-1, order="A").view(np.uint8).data
            for start in range(0, len(view), _CHUNK):
                part = view[start : start + _CHUNK]
                if file.readinto(part) < len(part):
                    raise ValueError("it ends early")
            while file.read(_CHUNK):  # to the end, where the checksum is compared
                pass
            return array
    except MemoryError:
        raise
    except Exception as error:  # zipfile and its decompressors raise errors of many types
        raise ValueError(f"{entry.filename}: {error}") from None


def _header(file: IO[bytes], size: int):
    """The (shape, order, dtype) at the start of an `.npy` file of this size."""
    try:
        version = np.lib.format.read_magic(file)
        shape, fortran, dtype = _HEADERS[version](file)
    except Exception:  # the header is a Python expression, which can be damaged in many ways
        raise ValueError("it is not an array file") from None
    if dtype.hasobject:
        raise ValueError("it holds Python objects")
    if not all(type(side) is int and side >= 0 for side in shape):
        raise ValueError(f"it has the impossible shape {shape}")
    if math.prod(shape) * dtype.itemsize == 0:
        raise ValueError(f"it holds no values (shape {shape})")
    if math.prod(shape) * dtype.itemsize > size - file.tell():
        raise ValueError(f"it is too short for its shape {shape}")
    return shape, "F" if fortran else "C", dtype
