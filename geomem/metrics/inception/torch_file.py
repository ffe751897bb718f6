"""Read tensors from PyTorch files without PyTorch, and without running code in the file.

A `.pth` file is a pickle, and a pickle can call any function. This reader allows only the few names
that a state dict of tensors needs. Tensors become records (storage, offset, shape, strides), which
are checked against the stored bytes before any value is read.
"""

import collections
import io
import os
import pathlib
import pickle
import struct
import zipfile
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

__all__ = ["load_tensors"]

_DTYPES = {
    "FloatStorage": np.dtype("<f4"),
    "DoubleStorage": np.dtype("<f8"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype(jnp.bfloat16),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}
# Two pickles: a magic number, and protocol version 1001.
_LEGACY_START = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2)


def load_tensors(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Load the named tensors of an `.npz`, `.safetensors` or PyTorch (`.pth`, `.pt`) file.

    Args:
      path: the file. Both PyTorch formats work, the zip archive and the sequence of pickles from
        before version 1.6.

    Returns:
      The tensors by name; other entries of a state dict are ignored.

    Raises:
      ValueError: if the file is missing or damaged, or asks for anything but tensors.
    """
    path = pathlib.Path(path)
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as archive:
                return dict(archive)
        if path.suffix == ".safetensors":
            from safetensors.numpy import load_file

            return load_file(path)
        value, contents = _read_zip(path) if zipfile.is_zipfile(path) else _read_legacy(path)
        if not isinstance(value, Mapping):
            raise ValueError(f"it holds a {type(value).__name__}, not a state dict")
        return {
            str(name): _array(entry, contents)
            for name, entry in value.items()
            if isinstance(entry, _Tensor)
        }
    # A hostile or damaged pickle can raise almost anything.
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise ValueError(f"cannot read {path}: {reason}.") from None


class _Storage(NamedTuple):
    key: str
    dtype: np.dtype
    count: int


class _Tensor(NamedTuple):
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # in elements


def _rebuild_tensor(storage, offset, shape, strides, *_):
    if not isinstance(storage, _Storage):
        raise pickle.UnpicklingError("a tensor without a storage")
    return _Tensor(storage, int(offset), tuple(map(int, shape)), tuple(map(int, strides)))


def _rebuild_parameter(tensor, *_):
    return tensor


_ADMITTED = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    **{("torch", name): dtype for name, dtype in _DTYPES.items()},
}


class _Unpickler(pickle.Unpickler):
    def __init__(self, stream):
        super().__init__(stream)
        self.storages = {}

    def find_class(self, module, name):
        if (module, name) not in _ADMITTED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, but may hold only tensors")
        return _ADMITTED[module, name]

    def persistent_load(self, identity):
        kind, dtype, key, _, count, *view = identity
        if kind != "storage" or not isinstance(dtype, np.dtype) or any(view):
            raise pickle.UnpicklingError(f"storages must be plain, got a {kind!r} of {dtype!r}")
        return self.storages.setdefault(key, _Storage(key, dtype, count))


def _read_zip(path) -> tuple[Any, dict[str, bytes]]:
    """The stored object, and the bytes of each storage by key."""
    with zipfile.ZipFile(path) as archive:
        contents = {}
        for entry in archive.infolist():
            # PyTorch does not compress; a compressed entry could be a zip bomb.
            if entry.compress_type != zipfile.ZIP_STORED:
                raise ValueError("it has compressed entries, which torch.save never writes")
            contents[entry.filename.partition("/")[2]] = archive.read(entry)
    if "data.pkl" not in contents:
        raise ValueError("it has no data.pkl, which torch.save always writes")
    if contents.get("byteorder", b"little") != b"little":
        raise ValueError("tensors must be little-endian")
    value = _Unpickler(io.BytesIO(contents["data.pkl"])).load()
    return value, {name.removeprefix("data/"): content for name, content in contents.items()}


def _read_legacy(path) -> tuple[Any, dict[str, bytes]]:
    """As `_read_zip`, from five pickles (magic, protocol, system, object, keys) and the storages.

    A storage is its number of elements, then the elements.
    """
    with open(path, "rb") as file:
        if file.read(len(_LEGACY_START)) != _LEGACY_START:
            raise ValueError("torch.save did not write it")
        system, unpickler = _Unpickler(file).load(), _Unpickler(file)
        if not system["little_endian"]:
            raise ValueError("tensors must be little-endian")
        value, keys = unpickler.load(), _Unpickler(file).load()
        contents = {}
        for key in keys:
            storage = unpickler.storages[key]
            if struct.unpack("<q", file.read(8)) != (storage.count,):
                raise ValueError(f"storage {key} does not have the size that its tensors need")
            contents[key] = file.read(storage.count * storage.dtype.itemsize)
    return value, contents


def _array(tensor, contents):
    """The tensor as a view of its storage, after checking that it lies inside."""
    storage, offset, shape, strides = tensor
    flat = np.frombuffer(contents[storage.key], storage.dtype)
    last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    if min(offset, *shape, *strides, 0) < 0 or (0 not in shape and last >= len(flat)):
        raise ValueError(f"a tensor of shape {shape} does not fit its storage")
    steps = [step * flat.itemsize for step in strides]
    return np.lib.stride_tricks.as_strided(flat[offset:], shape, steps, writeable=False)
