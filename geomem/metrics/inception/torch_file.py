"""Read tensors from PyTorch files without PyTorch, and without running code in the file.

A `.pth` file is a pickle, and a pickle can call any function, or build structures that take forever
to hash. So the opcodes are read here, one by one: only those that torch.save writes, only the few
names that a state dict of tensors needs, and every value is checked. Tensors become records
(storage, offset, shape, strides), which are checked against the stored bytes before any is read.
"""

import io
import math
import os
import pathlib
import pickle
import pickletools
import struct
import zipfile
from collections.abc import Mapping
from typing import IO, Any, NamedTuple, cast

import jax.numpy as jnp
import numpy as np

from geomem import array_files, memory

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
_MOST_OPCODES = 250_000  # a state dict needs about 40 for each tensor
_INTEGERS = "BININT", "BININT1", "BININT2", "LONG1"
_TEXTS = "BINUNICODE", "SHORT_BINUNICODE", "BINSTRING", "SHORT_BINSTRING"
_VALUES = {*_INTEGERS, *_TEXTS, "BINFLOAT", "BINBYTES", "SHORT_BINBYTES"}


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
        if not path.is_file():  # a pipe would wait for a writer
            raise ValueError("it is not a file" if path.exists() else "no such file")
        if path.suffix == ".npz":
            return array_files.read_npz(path)
        if (size := path.stat().st_size) > memory.free():
            raise ValueError(f"its {size / 1e9:.3g} GB do not fit in memory")
        if path.suffix == ".safetensors":
            from safetensors.numpy import load_file

            return load_file(path)
        value, contents = _read_zip(path) if zipfile.is_zipfile(path) else _read_legacy(path)
        if not isinstance(value, Mapping):
            raise ValueError(f"it must hold a state dict, got a {type(value).__name__}")
        return {
            name: _array(entry, contents)
            for name, entry in value.items()
            if isinstance(entry, _Tensor)
        }
    except MemoryError:
        raise
    except Exception as error:  # a damaged file can raise almost anything
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


class _Global(NamedTuple):
    name: str


_CALLABLE = ("collections.OrderedDict", "torch._utils._rebuild_parameter")
_REBUILD = "torch._utils._rebuild_tensor_v2"


def _unpickle(stream: io.BufferedIOBase, storages: dict[str, _Storage]) -> Any:
    """The object of the next pickle in a stream; `storages` gets those that it names."""
    stack: list[Any] = []
    marks: list[int] = []  # sizes of the stack
    memo: dict[int, Any] = {}

    def pop_mark():
        position = marks.pop()
        items = stack[position:]
        del stack[position:]
        return items

    def set_items(items):
        if type(stack[-1]) is not dict or not all(type(key) is str for key in items[::2]):
            raise ValueError("its keys are not names")
        stack[-1].update(zip(items[::2], items[1::2], strict=True))

    def named(module, name):
        known = module == "torch" and name in _DTYPES
        if not known and f"{module}.{name}" not in (*_CALLABLE, _REBUILD):
            raise ValueError(f"it must hold only tensors, got {module}.{name}")
        stack.append(_DTYPES[name] if known else _Global(f"{module}.{name}"))

    for number, (opcode, value, _) in enumerate(pickletools.genops(cast(IO[bytes], stream))):
        code, argument = opcode.name, cast(Any, value)
        if number > _MOST_OPCODES:
            raise ValueError(f"it has more than {_MOST_OPCODES:,} opcodes")
        if code in ("PROTO", "FRAME"):
            pass
        elif code == "STOP":
            return stack.pop()
        elif code == "MARK":
            marks.append(len(stack))
        elif code in ("NONE", "NEWTRUE", "NEWFALSE"):
            stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[code])
        elif code in _VALUES:
            stack.append(argument)
        elif code in ("EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE"):
            stack.append({"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}[code]())
        elif code in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memo[len(memo) if code == "MEMOIZE" else argument] = stack[-1]
        elif code in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif code == "TUPLE":
            stack.append(tuple(pop_mark()))
        elif code in ("TUPLE1", "TUPLE2", "TUPLE3"):
            stack[-int(code[-1]) :] = [tuple(stack[-int(code[-1]) :])]
        elif code in ("APPEND", "APPENDS"):
            items = [stack.pop()] if code == "APPEND" else pop_mark()
            if type(stack[-1]) is not list:
                raise ValueError("it appends to what is not a list")
            stack[-1].extend(items)
        elif code in ("SETITEM", "SETITEMS"):
            items = [stack.pop(-2), stack.pop()] if code == "SETITEM" else pop_mark()
            set_items(items)
        elif code == "GLOBAL":
            named(*argument.split(" ", 1))
        elif code == "STACK_GLOBAL":
            name, module = stack.pop(), stack.pop()
            named(module, name)
        elif code == "BINPERSID":
            stack.append(_storage(stack.pop(), storages))
        elif code == "REDUCE":
            arguments, function = stack.pop(), stack.pop()
            stack.append(_call(function, arguments))
        elif code == "BUILD":  # OrderedDict's attributes, such as torch's _metadata
            stack.pop()
        else:
            raise ValueError(f"it has the opcode {code}, which no file of tensors has")
    raise ValueError("it ends early")


def _storage(identity, storages):
    if type(identity) is not tuple or len(identity) < 5:
        raise ValueError("a storage is incomplete")
    kind, dtype, key, _, count, *view = identity
    if kind != "storage" or not isinstance(dtype, np.dtype) or view not in ([], [None]):
        raise ValueError(f"storages must be plain, got a {str(kind)[:40]!r}")
    if type(key) is not str or type(count) is not int or count < 0:
        raise ValueError("a storage is incomplete")
    return storages.setdefault(key, _Storage(key, dtype, count))


def _call(function, arguments):
    if not isinstance(function, _Global) or type(arguments) is not tuple:
        raise ValueError("it calls what is not a function")
    if function.name == "collections.OrderedDict":
        if arguments:
            raise ValueError("it has an OrderedDict with arguments")
        return {}
    if function.name != _REBUILD:  # a parameter is its tensor
        return arguments[0]
    storage, offset, shape, strides = arguments[:4]
    if not isinstance(storage, _Storage):
        raise ValueError("a tensor without a storage")
    for numbers in ((offset,), shape, strides):
        if type(numbers) is not tuple or not all(type(number) is int for number in numbers):
            raise ValueError("a tensor's shape is not made of integers")
    return _Tensor(storage, offset, shape, strides)


def _read_zip(path) -> tuple[Any, dict[str, Any]]:
    """The stored object, and the bytes of each storage by key."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        # PyTorch does not compress; a compressed entry could be a zip bomb.
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
            raise ValueError("it has compressed entries, which torch.save never writes")
        if sum(entry.file_size for entry in entries) > path.stat().st_size:
            raise ValueError("its entries overlap")
        contents = {e.filename.partition("/")[2]: archive.read(e) for e in entries}
    if "data.pkl" not in contents:
        raise ValueError("it has no data.pkl, which torch.save always writes")
    if contents.get("byteorder", b"little") != b"little":
        raise ValueError("tensors must be little-endian")
    value = _unpickle(io.BytesIO(contents["data.pkl"]), {})
    return value, {name.removeprefix("data/"): content for name, content in contents.items()}


def _read_legacy(path) -> tuple[Any, dict[str, Any]]:
    """As `_read_zip`, from five pickles (magic, protocol, system, object, keys) and the storages.

    A storage is its number of elements, then the elements.
    """
    content = memoryview(path.read_bytes())
    file, storages = io.BytesIO(content), {}
    if file.read(len(_LEGACY_START)) != _LEGACY_START:
        raise ValueError("torch.save did not write it")
    if not _unpickle(file, {})["little_endian"]:
        raise ValueError("tensors must be little-endian")
    value, keys = _unpickle(file, storages), _unpickle(file, {})
    contents, position = {}, file.tell()
    for key in keys:
        storage = storages[key]
        if struct.unpack_from("<q", content, position) != (storage.count,):
            raise ValueError(f"storage {key} does not have the size that its tensors need")
        end = position + 8 + storage.count * storage.dtype.itemsize
        contents[key], position = content[position + 8 : end], end
    return value, contents


def _array(tensor, contents):
    """The tensor as a view of its storage, after checking that it lies inside."""
    storage, offset, shape, strides = tensor
    flat = np.frombuffer(contents[storage.key], storage.dtype)
    last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    if (
        min(offset, *shape, *strides, 0) < 0
        or math.prod(shape) > len(flat)  # a stride of 0 could repeat values without end
        or (0 not in shape and last >= len(flat))
    ):
        raise ValueError(f"a tensor of shape {shape} does not fit its storage")
    steps = [step * flat.itemsize for step in strides]
    return np.lib.stride_tricks.as_strided(flat[offset:], shape, steps, writeable=False)
