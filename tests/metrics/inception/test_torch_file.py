"""PyTorch files are read without PyTorch; hostile files are rejected."""

import io
import pathlib
import pickle
import struct
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest

from geomem.metrics.inception.torch_file import load_tensors

DATA = pathlib.Path(__file__).parents[2] / "data"
# torch_zip.pth and torch_legacy.pth hold this, written by torch 2.13.0's torch.save
# (the second with _use_new_zipfile_serialization=False).
_BASE = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
EXPECTED = {
    "whole": _BASE,
    "transposed": _BASE.transpose(2, 0, 1),  # a view, by strides
    "part": _BASE[1, :, 1:3],  # a view, by offset and strides
    "parameter": np.arange(3, dtype=np.float32) / np.float32(7),
    "half": np.arange(4, dtype=np.float16) / 8,
    "brain": (np.arange(4) / 8).astype(jnp.bfloat16),
    "count": np.array(7),
    "flags": np.array([True, False]),
    "empty": np.zeros((0, 3), np.float32),
}


@pytest.mark.parametrize("name", ["torch_zip.pth", "torch_legacy.pth"])
def test_reads_torch_files(name):
    tensors = load_tensors(DATA / name)
    assert list(tensors) == list(EXPECTED)
    for key, expected in EXPECTED.items():
        assert tensors[key].dtype == expected.dtype
        np.testing.assert_array_equal(tensors[key], expected)


def test_reads_npz_and_safetensors(tmp_path):
    from safetensors.numpy import save_file

    np.savez(tmp_path / "a.npz", x=_BASE)
    save_file({"x": _BASE}, tmp_path / "a.safetensors")
    for name in ("a.npz", "a.safetensors"):
        np.testing.assert_array_equal(load_tensors(tmp_path / name)["x"], _BASE)


class _Call:
    """An object whose pickle calls a function."""

    def __init__(self, function, *args):
        self._call = function, args

    def __reduce__(self):
        return self._call


def _zip(path, pickled, compression=zipfile.ZIP_STORED, **storages):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickled)
        for key, content in storages.items():
            archive.writestr(f"archive/data/{key}", content)
    return path


def _legacy(path, pickled):
    start = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
    parts = [*(pickle.dumps(part, 2) for part in start), pickled, pickle.dumps([], 2)]
    path.write_bytes(b"".join(parts))
    return path


@pytest.mark.parametrize("write", [_zip, _legacy])
@pytest.mark.parametrize("function", ["exec", "Path.touch", "getattr"])
def test_rejects_pickled_calls_without_running_them(tmp_path, write, function):
    marker = tmp_path / "it_ran"
    payload = {
        "exec": _Call(exec, f"open({str(marker)!r}, 'w')"),
        "Path.touch": _Call(pathlib.Path.touch, marker),
        "getattr": _Call(getattr, marker, "touch"),
    }[function]
    pickled = pickle.dumps({"fc.weight": payload}, 2)
    path = write(tmp_path / "bad.pth", pickled)
    with pytest.raises(
        ValueError, match=r"cannot read .*bad.pth: it must hold only tensors, got \w+"
    ):
        load_tensors(path)
    assert not marker.exists()
    pickle.loads(pickled)  # an ordinary unpickler runs it
    assert function == "getattr" or marker.exists()


def _state(shape, strides, offset=0, count=6, kind="storage"):
    """A state dict of one tensor, as torch pickles it."""
    # Opcodes by hand, because torch's classes are not installed.
    stream = io.BytesIO()
    stream.write(b"\x80\x02}(U\x01xctorch._utils\n_rebuild_tensor_v2\n((U")
    stream.write(bytes([len(kind)]) + kind.encode())
    stream.write(b"ctorch\nFloatStorage\nU\x010U\x03cpuJ" + struct.pack("<i", count) + b"tQ")
    stream.write(b"J" + struct.pack("<i", offset))
    for numbers in (shape, strides):
        stream.write(b"(" + b"".join(b"J" + struct.pack("<i", n) for n in numbers) + b"t")
    stream.write(b"\x89ccollections\nOrderedDict\n)RtRu.")
    return stream.getvalue()


def test_rejects_tensors_outside_their_storage(tmp_path):
    content = np.arange(6, dtype=np.float32).tobytes()

    def load(*args, **kwargs):
        return load_tensors(_zip(tmp_path / "x.pth", _state(*args, **kwargs), **{"0": content}))

    np.testing.assert_array_equal(load((2, 3), (3, 1))["x"], [[0, 1, 2], [3, 4, 5]])
    np.testing.assert_array_equal(load((2,), (2,), offset=1)["x"], [1, 3])
    for shape, strides, offset in (
        ((2, 3), (4, 1), 0),
        ((2, 3), (3, 1), 1),
        ((2,), (-1,), 3),
        ((2,), (1,), -1),
        ((-2,), (1,), 0),
        ((), (), 6),
        ((2**30, 2**30), (1, 0), 0),
    ):
        with pytest.raises(ValueError, match="does not fit its storage"):
            load(shape, strides, offset)
    with pytest.raises(ValueError, match="storages must be plain, got a 'module'"):
        load((2,), (1,), kind="module")


def test_rejects_other_files(tmp_path):
    good = _state((2, 3), (3, 1))
    bomb = _zip(tmp_path / "bomb.pth", good, zipfile.ZIP_DEFLATED, **{"0": bytes(10**6)})
    with pytest.raises(ValueError, match=r"cannot read .*bomb.pth: it has compressed entries"):
        load_tensors(bomb)
    with pytest.raises(ValueError, match=r"cannot read .*absent.pth: no such file"):
        load_tensors(tmp_path / "absent.pth")
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(ValueError, match=r"cannot read .*text.pth: torch.save did not write it"):
        load_tensors(tmp_path / "text.pth")
    (tmp_path / "cut.pth").write_bytes((DATA / "torch_legacy.pth").read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"cannot read .*cut.pth: "):
        load_tensors(tmp_path / "cut.pth")
    with pytest.raises(ValueError, match="it must hold a state dict, got a list"):
        load_tensors(_zip(tmp_path / "list.pth", pickle.dumps([1], 2)))
    with zipfile.ZipFile(tmp_path / "other.pth", "w") as archive:
        archive.writestr("archive/notes.txt", "hello")
    with pytest.raises(ValueError, match=r"cannot read .*other.pth: it has no data.pkl"):
        load_tensors(tmp_path / "other.pth")
