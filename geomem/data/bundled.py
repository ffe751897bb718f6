"""The images that come with the package. They are checked whenever they are loaded."""

import gzip
import hashlib
import importlib.resources

import numpy as np

from geomem.data.datasets import Split

__all__ = ["cifar10_sample", "digits"]

_ASSETS = importlib.resources.files("geomem") / "assets"
_CIFAR10_SHA256 = "4c9ca6da920cff1963ccdd8bfc6d5d64846e68e0e09a351f4061637b9e91eb2d"
_DIGITS_SHA256 = "09f66e6debdee2cd2b5ae59e0d6abbb73fc2b0e0185d2e1957e9ebb51e23aa22"


def cifar10_sample() -> tuple[Split, Split, tuple[str, ...]]:
    """Return the first 1,000 training and test images of CIFAR-10, and its class names."""
    from PIL import Image

    folder = _ASSETS / "cifar10_sample"
    class_names = tuple((folder / "classes.txt").read_text().split())
    digest, splits = hashlib.sha256(), []
    for split in ("train", "test"):
        with (folder / f"{split}.png").open("rb") as file:
            sheet = np.asarray(Image.open(file))
        rows, columns = sheet.shape[0] // 32, sheet.shape[1] // 32
        pixels = sheet.reshape(rows, 32, columns, 32, 3).swapaxes(1, 2).reshape(-1, 32, 32, 3)
        labels = np.array([*(folder / f"{split}_labels.txt").read_text().strip()], np.int64)
        digest.update(np.ascontiguousarray(pixels).data)
        digest.update(labels.astype(np.uint8).data)
        splits.append(_split(pixels, labels))
    _check(digest, _CIFAR10_SHA256, folder)
    return *splits, class_names


def digits() -> tuple[Split, Split, tuple[str, ...]]:
    """Return scikit-learn's 8x8 digits: the first 900 for training, the other 897 held out."""
    file = _ASSETS / "digits" / "digits.csv.gz"
    packed = file.read_bytes()
    _check(hashlib.sha256(packed), _DIGITS_SHA256, file)
    rows = np.loadtxt(gzip.decompress(packed).splitlines(), delimiter=",")
    pixels = (rows[:, :64].reshape(-1, 8, 8, 1) / 8 - 1).astype(np.float32)
    whole = _split(pixels, rows[:, 64].astype(np.int64))
    return whole.take(np.arange(900)), whole.take(np.arange(900, 1797)), tuple("0123456789")


def _split(pixels, labels):
    return Split(pixels.__getitem__, np.arange(len(pixels)), labels)


def _check(digest, expected, place):
    if digest.hexdigest() != expected:
        raise ValueError(f"The bundled images in {place} are damaged; reinstall geomem.")
