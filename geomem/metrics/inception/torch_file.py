"""Tensors from files of PyTorch, read without PyTorch and without running what is in them.

A `.pth` is a pickle, and a pickle can call anything. Here it may only name what a state dict of
tensors is made of; tensors become records (storage, offset, shape, strides), checked against the
bytes that are there before any of them is looked at.
"""

from __future__ import annotations

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
    """The named tensors of an `.npz`, `.safetensors`, or PyTorch (`.pth`, `.pt`) file.

    Args:
      path: the file. Of PyTorch's, both formats: the zip archive and, before version 1.6, the
        sequence of pickles.

    Returns:
      The tensors by name; other entries of a state dict are left out.

    Raises:
      ValueError: no such file, or one that is damaged, or that asks for anything but tensors.
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
            raise ValueError(f"holds a {type(value).__name__}, wanted a state dict")
        return {
            str(name): _array(entry, contents)
            for name, entry in value.items()
            if isinstance(entry, _Tensor)
        }
    # A hostile or damaged pickle can raise almost anything.
    except Exception as error:
        raise ValueError(f"weights: {path}: {error or type(error).__name__}") from None


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
            raise pickle.UnpicklingError(
                f"refused, it asks for {module}.{name}: wanted tensors only"
            )
        return _ADMITTED[module, name]

    def persistent_load(self, identity):
        kind, dtype, key, _, count, *view = identity
        if kind != "storage" or not isinstance(dtype, np.dtype) or any(view):
            raise pickle.UnpicklingError(f"a {kind!r} of {dtype!r}, wanted a plain storage")
        return self.storages.setdefault(key, _Storage(key, dtype, count))


def _read_zip(path) -> tuple[Any, dict[str, bytes]]:
    """The object, and the bytes of each storage by key."""
    with zipfile.ZipFile(path) as archive:
        contents = {}
        for entry in archive.infolist():
            # PyTorch does not compress: a compressed entry could be a bomb.
            if entry.compress_type != zipfile.ZIP_STORED:
                raise ValueError("compressed entries, wanted an archive by torch.save")
            contents[entry.filename.partition("/")[2]] = archive.read(entry)
    if "data.pkl" not in contents:
        raise ValueError("an archive without data.pkl, wanted one by torch.save")
    if contents.get("byteorder", b"little") != b"little":
        raise ValueError("big-endian tensors, wanted little-endian ones")
    value = _Unpickler(io.BytesIO(contents["data.pkl"])).load()
    return value, {name.removeprefix("data/"): content for name, content in contents.items()}


def _read_legacy(path) -> tuple[Any, dict[str, bytes]]:
    """Five pickles (magic, protocol, system, object, keys), then each storage: count, elements."""
    with open(path, "rb") as file:
        if file.read(len(_LEGACY_START)) != _LEGACY_START:
            raise ValueError("wanted a file by torch.save")
        system, unpickler = _Unpickler(file).load(), _Unpickler(file)
        if not system["little_endian"]:
            raise ValueError("big-endian tensors, wanted little-endian ones")
        value, keys = unpickler.load(), _Unpickler(file).load()
        contents = {}
        for key in keys:
            storage = unpickler.storages[key]
            if struct.unpack("<q", file.read(8)) != (storage.count,):
                raise ValueError(f"storage {key} has another size than its tensors say")
            contents[key] = file.read(storage.count * storage.dtype.itemsize)
    return value, contents


def _array(tensor, contents):
    """The tensor as a view of its storage's bytes, all of it inside them."""
    storage, offset, shape, strides = tensor
    flat = np.frombuffer(contents[storage.key], storage.dtype)
    last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    if min(offset, *shape, *strides, 0) < 0 or (0 not in shape and last >= len(flat)):
        raise ValueError(f"a tensor of shape {shape} reaches beyond its storage")
    steps = [step * flat.itemsize for step in strides]
    return np.lib.stride_tricks.as_strided(flat[offset:], shape, steps, writeable=False)
