"""Damaged, hostile and unusual files, by name."""

import io
import json
import os
import pathlib
import pickle
import struct
import zipfile

import numpy as np
from PIL import Image

GOOD = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 1), np.uint8)


def npy(shape, dtype="|u1", content=b"", order=False, version=b"\x01\x00"):
    """An .npy file with any header."""
    header = f"{{'descr': {dtype!r}, 'fortran_order': {order}, 'shape': {shape}, }}".encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY" + version + struct.pack("<H", len(header)) + header + content


def saved(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def npz(compression=zipfile.ZIP_STORED, **members):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name.replace("__", "."), content)
    return file.getvalue()


def png(array, **options):
    file = io.BytesIO()
    Image.fromarray(array).save(file, format="PNG", **options)
    return file.getvalue()


def png_of_size(width, height):
    """A PNG whose header promises this size."""
    import zlib

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(b"")), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def _floats(*shape, value=0.5):
    return np.full(shape, value, np.float32)


_noise = np.random.default_rng(2).normal(0, 2, (12, 64))
_rgb = np.random.default_rng(1).integers(0, 256, (8, 8, 3), np.uint8)
_whole_png = png(_rgb)
_jpeg = io.BytesIO()
Image.fromarray(_rgb).save(_jpeg, format="JPEG")
_tiff = io.BytesIO()
Image.fromarray(_rgb).save(_tiff, format="TIFF")
_wide = png_of_size(100_000, 100_000)

# Files that are no data set.
ARRAYS = {
    "empty.npy": b"",
    "text.npy": b"these are no numbers\n" * 50,
    "negative.npy": npy((-1, 8, 8, 1), content=bytes(768)),
    "huge.npy": npy((2**40, 8, 8, 1), content=bytes(768)),
    "overflow.npy": npy((2**62, 2**62, 2**62, 1)),
    "short.npy": saved(GOOD)[:-9],
    "no_images.npy": npy((0, 8, 8, 1)),
    "no_height.npy": npy((12, 0, 8, 1)),
    "no_channels.npy": npy((12, 8, 8, 0)),
    "objects.npy": npy((3,), dtype="|O", content=pickle.dumps([1, 2, 3])),
    "code.npy": npy("__import__('os').abort()"),
    "deep.npy": npy("(" * 3000),
    "version.npy": npy((12, 8, 8, 1), content=bytes(768), version=b"\x09\x00"),
    "bytes.npy": npy((12, 8, 8, 1), dtype="|S1", content=bytes(768)),
    "record.npy": saved(np.zeros((12, 8, 8), [("a", "u1"), ("b", "f4")])),
    "complex.npy": saved(np.zeros((12, 8, 8, 1), np.complex64)),
    "int.npy": saved(GOOD.astype(np.int16)),
    "bool.npy": saved(GOOD > 3),
    "nan.npy": saved(_floats(12, 8, 8, 1, value=np.nan)),
    "inf.npy": saved(_floats(12, 8, 8, 1, value=np.inf)),
    "large.npy": saved(_floats(12, 8, 8, 1, value=3)),
    "vectors.npy": saved(GOOD.reshape(12, 64)),
    "beyond_float32.npy": saved(_noise * 1e300),
    "squares_overflow.npy": saved(_noise * 1e20),
    "squares_underflow.npy": saved(_noise * 1e-30),
    "subnormal.npy": saved(_noise * 1e-310),
    "one_value.npy": saved(np.full((12, 64), 2.5)),
    "far_from_zero.npy": saved(1e6 + _noise / 10),
    "channels_first.npy": saved(np.zeros((12, 3, 8, 8), np.uint8)),
    "scalar.npy": saved(np.uint8(3)),
    "empty.npz": b"",
    "text.npz": b"PK\x03\x04 these are no numbers",
    "no_member.npz": npz(),
    "other_member.npz": npz(notes__txt="hello"),
    "damaged_member.npz": npz(images__npy=b"no array"),
    "short_member.npz": npz(images__npy=saved(GOOD)[:-9]),
    "two.npz": npz(arr_0__npy=saved(GOOD), arr_1__npy=saved(GOOD)),
    "unnamed.npz": npz(a__npy=saved(GOOD), b__npy=saved(GOOD)),
    "negative.npz": npz(images__npy=npy((-1, 8, 8, 1), content=bytes(768))),
    "lying.npz": npz(images__npy=npy((2**50, 8, 8, 1), content=bytes(768))),
    "bad_checksum.npz": npz(images__npy=saved(GOOD)).replace(GOOD[3].tobytes(), bytes(64)),
    "cut.npz": npz(images__npy=saved(GOOD))[:-30],
    "objects.npz": npz(images__npy=npy((3,), dtype="|O", content=pickle.dumps([1]))),
}
# Folders that are no data set: the files in them.
FOLDERS = {
    "nothing": {},
    "only_text": {"notes.txt": b"hello"},
    "empty_png": {"a.png": _whole_png, "b.png": b""},
    "text_png": {"a.png": _whole_png, "b.png": b"no image"},
    "cut_png": {"a.png": _whole_png, "b.png": png(_rgb)[:80]},
    "cut_jpeg": {"a.jpg": _jpeg.getvalue(), "b.jpg": _jpeg.getvalue()[:300]},
    "zeroed_jpeg": {"a.jpg": _jpeg.getvalue()[:-40] + bytes(40)},
    "tiff": {"a.png": _tiff.getvalue()},
    "line_break": {"a.png": _whole_png, "b\nc.png": _whole_png},
    "bomb": {"a.png": _whole_png, "b.png": _wide},
    "large_bomb": {"a.png": png_of_size(13_000, 13_000), "b.png": png_of_size(13_000, 13_000)},
    "two_sizes": {"a.png": _whole_png, "b.png": png(_rgb[:4])},
    "sixteen_bits": {"a.png": png(_rgb[..., 0].astype(np.uint16) * 256), "b.png": _whole_png},
    "postscript": {
        "a.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n",
        "b.png": _whole_png,
    },
    "figure": {"a.png": _whole_png, "b.png": _whole_png},  # b.png gets geomem's mark
    "one_image": {"a.png": _whole_png},
    "pipe": {"a.png": _whole_png},  # and a pipe named b.png
    "dangling": {"a.png": _whole_png},  # and a link to nothing named b.png
}


def write(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """Write all of them and return their paths by name."""
    paths = {}
    for name, content in ARRAYS.items():
        paths[name] = folder / name
        paths[name].write_bytes(content)
    for name, files in FOLDERS.items():
        paths[name] = folder / name
        paths[name].mkdir()
        for file, content in files.items():
            (paths[name] / file).write_bytes(content)
    from PIL.PngImagePlugin import PngInfo

    mark = PngInfo()
    mark.add_text("Software", "geomem")
    (paths["figure"] / "b.png").write_bytes(png(_rgb, pnginfo=mark))
    os.mkfifo(paths["pipe"] / "b.png")
    (paths["dangling"] / "b.png").symlink_to("nothing")
    for suffix in ("npy", "npz"):
        paths[f"pipe.{suffix}"] = folder / f"pipe.{suffix}"
        os.mkfifo(paths[f"pipe.{suffix}"])
        paths[f"folder.{suffix}"] = folder / f"folder.{suffix}"
        paths[f"folder.{suffix}"].mkdir()
    bomb = folder / "bomb.npz"  # 8 MB that hold 8 GB
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        entry = zipfile.ZipInfo("images.npy")
        entry.compress_type = zipfile.ZIP_DEFLATED
        with archive.open(entry, "w", force_zip64=True) as file:
            file.write(npy((2**27, 8, 8, 1)))
            for _ in range(2):
                file.write(bytes(2**20))
    content = bomb.read_bytes()  # the directory tells the size
    size = struct.pack("<I", len(npy((2**27, 8, 8, 1))) + 2**21)
    at = content.rindex(b"PK\x01\x02") + 24
    assert content[at : at + 4] == size
    bomb.write_bytes(content[:at] + struct.pack("<I", 0xF0000000) + content[at + 4 :])
    paths["bomb.npz"] = bomb
    return paths


# JSON that is not what it should be.
JSON = {
    "empty": b"",
    "text": b"hello",
    "bytes": b"\xff\xfe\x00\x01",
    "cut": b'{"low": 0.5, "hi',
    "deep": b"[" * 100_000,
    "list": b"[1, 2]",
    "null": b"null",
    "number": b"3",
    "string": b'"low"',
    "object": b"{}",
    "digits": b'{"low": ' + b"9" * 5000 + b"}",
    "repeated": json.dumps([{"low": 1}] * 3).encode(),
}
ZONES = JSON | {
    "true": b'{"low": true, "high": 2}',
    "texts": b'{"low": "0.5", "high": "2"}',
    "nan": b'{"low": NaN, "high": 2}',
    "infinite": b'{"low": 1, "high": Infinity}',
    "negative": b'{"low": -1, "high": 2}',
    "zero": b'{"low": 0, "high": 2}',
    "swapped": b'{"low": 2, "high": 1}',
    "equal": b'{"low": 2, "high": 2}',
    "lists": b'{"low": [1], "high": [2]}',
    "no_zone": b'{"low": null, "high": null}',
    "half": b'{"low": 1, "high": null}',
    "low_only": b'{"low": 1}',
    "large": b'{"low": 1, "high": 1e999}',
    "all": b'{"low": 1e-30, "high": 1e30}',
}
