"""Data sets: `load(name) -> Dataset`, float32 NHWC images in [-1, 1], with exact provenance.

Pixels are read lazily: `Dataset.subset` moves indices only, and what is decoded is what is used.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.resources
import logging
import os
import pathlib
import warnings
import zipfile
from collections.abc import Callable, Sequence

import numpy as np

__all__ = [
    "Dataset",
    "Split",
    "count_duplicates",
    "count_shared",
    "load",
    "to_unit_interval",
]

_SAMPLE_SHA256 = "4c9ca6da920cff1963ccdd8bfc6d5d64846e68e0e09a351f4061637b9e91eb2d"
_HELDOUT_FRACTION = 0.2
_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")


@dataclasses.dataclass(frozen=True)
class Split:
    """Images by index, decoded on demand.

    Attributes:
      read: maps an int64 array of source indices [n] to pixels [n, H, W, C], uint8, or float32 in
        [-1, 1].
      index: int64 [N], the selected images' positions in the source's canonical order.
      labels: int64 [N] class labels, or None where the source has none.
    """

    read: Callable[[np.ndarray], np.ndarray]
    index: np.ndarray
    labels: np.ndarray | None = None

    def __len__(self) -> int:
        """The number of selected images."""
        return len(self.index)

    @functools.cached_property
    def pixels(self) -> np.ndarray:
        """The images as stored, [N, H, W, C]: uint8, or float32 in [-1, 1].

        Raises:
          ValueError: a float image has a value that is not finite or not in [-1, 1].
        """
        pixels = np.ascontiguousarray(self.read(self.index))
        return pixels if pixels.dtype == np.uint8 else _checked_floats(pixels)

    @functools.cached_property
    def images(self) -> np.ndarray:
        """The images, float32 [N, H, W, C] in [-1, 1]."""
        return to_unit_interval(self.pixels)

    def take(self, positions: np.ndarray) -> Split:
        """The split that holds only the images at `positions` (int [n], into this split)."""
        labels = None if self.labels is None else self.labels[positions]
        return Split(self.read, self.index[positions], labels)

    def sha256(self) -> str:
        """SHA-256 of the selected indices and of the images' shape, dtype and bytes."""
        digest = hashlib.sha256(f"{self.pixels.shape}{self.pixels.dtype.name}".encode())
        digest.update(self.index.astype("<i8").tobytes())
        digest.update(self.pixels)
        return digest.hexdigest()


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Training images, and held-out images of the same distribution.

    Attributes:
      name: what it was loaded from.
      train_split, test_split: the selections, with indices and labels.
      class_names: the names of the labels, empty where there are none.
    """

    name: str
    train_split: Split
    test_split: Split
    class_names: tuple[str, ...] = ()

    @property
    def train(self) -> np.ndarray:
        """Training images, float32 [N, H, W, C] in [-1, 1]."""
        return self.train_split.images

    @property
    def test(self) -> np.ndarray:
        """Held-out images, float32 [M, H, W, C] in [-1, 1]."""
        return self.test_split.images

    def subset(
        self,
        *,
        classes: Sequence[str] | None = None,
        count: int | None = None,
        heldout_count: int | None = None,
        seed: int | None = None,
    ) -> Dataset:
        """Select images; for one `seed` and `classes`, a smaller count is a prefix of a larger.

        Args:
          classes: keep only these class names (training and held-out).
          count: number of training images, default all.
          heldout_count: number of held-out images, default all.
          seed: None keeps the source's canonical order; an int >= 0 shuffles by that seed first.

        Returns:
          The smaller Dataset.

        Raises:
          ValueError: an unknown class, a negative seed, a count that is not in 1..available.
        """
        train, test = (
            _select(split, self._class_ids(classes), number, seed, argument)
            for split, number, argument in (
                (self.train_split, count, "count"),
                (self.test_split, heldout_count, "heldout_count"),
            )
        )
        return dataclasses.replace(self, train_split=train, test_split=test)

    def _class_ids(self, classes: Sequence[str] | None) -> list[int] | None:
        if not classes:
            return None
        if unknown := [name for name in classes if name not in self.class_names]:
            known = ", ".join(self.class_names) or "none"
            raise ValueError(
                f"classes: {unknown[0]!r} is not a class of {self.name} (has: {known})"
            )
        return [self.class_names.index(name) for name in classes]


def load(
    name: str = "cifar10_sample",
    *,
    heldout: str | float | None = None,
    resize: int | None = None,
    seed: int = 0,
) -> Dataset:
    """Load a data set by name or from a path.

    Args:
      name: "cifar10_sample" (bundled: the first 1,000 training and test images of CIFAR-10),
        "cifar10" and "tfds:NAME" (through TFDS, which honours TFDS_DATA_DIR), "celeba_gray" (TFDS
        celeb_a, centre crop, gray, 32x32), "digits" (scikit-learn's 8x8 digits), or a path: a
        folder of PNG/JPEG images (subfolders are classes), an `.npy` or an `.npz` file that holds
        uint8 or float images [N, H, W] or [N, H, W, C]. 8-bit values become x / 127.5 - 1; floats
        must lie in [-1, 1] and are taken as they are.
      heldout: None: the source's own test images, or a fifth of it where there are none; a
        fraction in (0, 1) of the images, by `seed`; or the name or path of other images.
      resize: side length to which a folder's images are cropped (centre square) and resized.
      seed: which images a held-out fraction takes.

    Returns:
      The Dataset, in the source's canonical order, not yet decoded.

    Raises:
      ValueError: no such data set, nothing to read, images of several sizes, unusable arrays.
    """
    name = str(name)
    train, test, class_names = _open(name, resize)
    if isinstance(heldout, str):
        test = _open(heldout, resize)[0]
    elif heldout is not None or test is None:
        train, test = _split(train, _HELDOUT_FRACTION if heldout is None else heldout, seed)
    if len(train) < 2:
        raise ValueError(f"dataset: {name} has {len(train)} training image(s), wanted 2 or more")
    return Dataset(name, train, test, class_names)


def to_unit_interval(pixels: np.ndarray) -> np.ndarray:
    """uint8 pixels as float32 x / 127.5 - 1; float32 pixels, already in [-1, 1], unchanged."""
    if pixels.dtype != np.uint8:
        return pixels
    return pixels.astype(np.float32) / np.float32(127.5) - np.float32(1)


def count_duplicates(pixels: np.ndarray) -> int:
    """The number of images [N, ...] that repeat an earlier one exactly."""
    return len(pixels) - len(_row_digests(pixels))


def count_shared(pixels: np.ndarray, others: np.ndarray) -> int:
    """The number of images [N, ...] that also occur among `others` [M, ...], exactly."""
    digests = _row_digests(others)
    return sum(_digest(row) in digests for row in pixels)


# Selections


def _select(split, class_ids, count, seed, argument):
    positions = np.arange(len(split))
    if class_ids is not None:
        positions = positions[np.isin(split.labels, class_ids)]
    if seed is not None and seed < 0:
        raise ValueError(f"seed: {seed}, wanted 0 or more")
    if seed is not None:
        positions = np.random.default_rng(seed).permutation(positions)
    if count is not None and not 1 <= count <= len(positions):
        raise ValueError(
            f"{argument}: {count}, wanted 1 to {len(positions)} (the images there are)"
        )
    return split.take(positions[:count])


def _split(split, fraction, seed):
    if not 0 < fraction < 1:
        raise ValueError(f"heldout: {fraction}, wanted a fraction between 0 and 1, or a path")
    heldout = max(1, round(fraction * len(split)))
    order = np.random.default_rng(seed).permutation(len(split))
    return split.take(np.sort(order[heldout:])), split.take(np.sort(order[:heldout]))


def _digest(row):
    return hashlib.blake2b(np.ascontiguousarray(row), digest_size=16).digest()


def _row_digests(pixels):
    return {_digest(row) for row in pixels}


# Sources: each gives (train, test or None, class names)


def _open(name, resize):
    if name == "cifar10_sample":
        return _open_cifar10_sample()
    if name == "digits":
        return _open_digits()
    if name == "celeba_gray":
        return _open_tfds("celeb_a", _celeba_gray)
    if name == "cifar10" or name.startswith("tfds:"):
        return _open_tfds(name.removeprefix("tfds:"))
    path = pathlib.Path(name).expanduser()
    if path.is_dir():
        return _open_folder(path, resize)
    if path.suffix in (".npy", ".npz") and path.is_file():
        return _open_array(path)
    raise ValueError(
        f"dataset: {name!r} is neither cifar10_sample, cifar10, celeba_gray, digits, tfds:NAME nor "
        "the path of a folder, .npy or .npz file"
    )


def _from_array(pixels, labels=None):
    return Split(pixels.__getitem__, np.arange(len(pixels)), labels)


def _open_cifar10_sample():
    from PIL import Image

    folder = importlib.resources.files("geomem") / "assets" / "cifar10_sample"
    class_names = tuple((folder / "classes.txt").read_text().split())
    digest, splits = hashlib.sha256(), []
    for split in ("train", "test"):
        with (folder / f"{split}.png").open("rb") as file:
            sheet = np.asarray(Image.open(file))
        rows, columns = sheet.shape[0] // 32, sheet.shape[1] // 32
        pixels = sheet.reshape(rows, 32, columns, 32, 3).swapaxes(1, 2).reshape(-1, 32, 32, 3)
        labels = np.array(
            [int(label) for label in (folder / f"{split}_labels.txt").read_text().strip()]
        )
        digest.update(np.ascontiguousarray(pixels))
        digest.update(labels.astype(np.uint8))
        splits.append(_from_array(pixels, labels))
    if digest.hexdigest() != _SAMPLE_SHA256:
        raise ValueError(f"dataset: the bundled files under {folder} are damaged; reinstall geomem")
    return *splits, class_names


def _open_digits():
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = (digits.images[..., None] / 8 - 1).astype(np.float32)
    whole = _from_array(pixels, digits.target)
    # A fixed split: the first 900 train, the last 897 are held out.
    return whole.take(np.arange(900)), whole.take(np.arange(900, 1797)), tuple("0123456789")


def _open_folder(folder, resize):
    from PIL import Image

    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _IMAGE_SUFFIXES)
    if not paths:
        raise ValueError(f"dataset: no PNG or JPEG image in the folder {folder}")
    sizes, modes = {}, set()
    for path in paths:
        try:
            with Image.open(path) as image:
                sizes.setdefault(image.size, path)
                modes.add(image.mode)
        except OSError as error:
            raise ValueError(f"dataset: cannot read the image {path}: {error}") from None
    if unusable := [mode for mode in modes if mode[0] in "IF"]:
        raise ValueError(
            f"dataset: {folder} has images of mode {unusable[0]}, wanted 8 bits a channel"
        )
    if len(sizes) > 1 and resize is None:
        examples = [f"{path.name} is {w}x{h}" for (w, h), path in list(sizes.items())[:2]]
        raise ValueError(
            f"dataset: {folder} has images of {len(sizes)} sizes ({', '.join(examples)}), "
            "wanted one size, or --resize SIDE"
        )
    mode = "L" if modes <= {"L", "1"} else "RGB"

    def read(index):
        return np.stack([_read_image(paths[i], mode, resize) for i in index])

    groups = [path.relative_to(folder).parts[0] if path.parent != folder else "" for path in paths]
    class_names = tuple(sorted(set(groups))) if any(groups) else ()
    labels = np.array([class_names.index(group) for group in groups]) if class_names else None
    return Split(read, np.arange(len(paths)), labels), None, class_names


def _read_image(path, mode, resize):
    from PIL import Image

    with Image.open(path) as image:
        image = image.convert(mode)
        pixels = np.asarray(image if resize is None else _square(image, resize))
    return pixels[..., None] if mode == "L" else pixels


def _square(image, side):
    """The centre square of a PIL image, resized with antialiasing to side x side."""
    edge = min(image.size)
    left, top = (image.width - edge) // 2, (image.height - edge) // 2
    # Cropped first: resize(box=...) would look beyond the box.
    return image.crop((left, top, left + edge, top + edge)).resize((side, side))


def _open_array(path):
    try:
        # Memory-mapped: a subset of a large file reads only what it selects. No pickles.
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if isinstance(array, np.lib.npyio.NpzFile):
            with array as archive:
                keys = [key for key in ("images", "arr_0") if key in archive.files] or archive.files
                if len(keys) != 1 and "images" not in keys:
                    raise ValueError(f"has the arrays {keys}, wanted one, or one named images")
                array = archive[keys[0]]
        if array.dtype.kind not in "uf" or (array.dtype.kind == "u" and array.dtype != np.uint8):
            raise ValueError(f"holds {array.dtype} values, wanted uint8 or float")
        if array.ndim == 3:
            array = array[..., None]
        if array.ndim != 4 or array.shape[-1] > 4:
            raise ValueError(
                f"has shape {array.shape}, wanted [N, H, W] or [N, H, W, C] with C <= 4"
            )
    except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
        reason = "holds Python objects" if "object" in str(error).lower() else error
        raise ValueError(f"dataset: {path}: {reason}") from None
    return _from_array(array), None, ()


def _checked_floats(pixels):
    if not np.isfinite(pixels).all():
        raise ValueError(f"dataset: {(~np.isfinite(pixels)).sum()} pixel(s) are NaN or infinite")
    low, high = pixels.min(), pixels.max()
    if low < -1 or high > 1:
        raise ValueError(
            f"dataset: float pixels span [{low:g}, {high:g}], wanted [-1, 1] (or uint8)"
        )
    if low >= 0:
        warnings.warn(
            "float pixels span [0, 1]? geomem's range is [-1, 1]; nothing was rescaled",
            stacklevel=2,
        )
    return pixels.astype(np.float32)


def _open_tfds(name, transform=None):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import tensorflow_datasets as tfds
    # TFDS recommends OpenCV, and warns of what is said in one line below.
    logging.getLogger("absl").setLevel(logging.ERROR)

    try:
        builder = tfds.builder(name, file_format="array_record")
    except tfds.core.registered.DatasetNotFoundError:
        raise ValueError(f"dataset: TFDS has no data set {name!r}") from None
    if not builder.is_prepared():
        _prepare(builder)
    features = builder.info.features
    if "image" not in features:
        raise ValueError(
            f"dataset: TFDS {name!r} has no feature 'image' (has: {', '.join(features)})"
        )
    train = _tfds_split(builder, "train", transform)
    for split in ("test", "validation"):
        if split in builder.info.splits or not builder.info.splits:
            test = _tfds_split(builder, split, transform)
            break
    else:
        test = None
    names = getattr(features["label"], "names", ()) if "label" in features else ()
    return train, test, tuple(names)


def _prepare(builder):
    try:
        import tensorflow  # noqa: F401
    except ImportError:
        place = os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
        raise ValueError(
            f"dataset: {builder.name} is not prepared under {place} (TFDS_DATA_DIR), and preparing "
            "it needs TensorFlow: pip install tensorflow-cpu, then run this again"
        ) from None
    builder.download_and_prepare()


def _tfds_split(builder, split, transform):
    import tensorflow_datasets as tfds

    features = builder.info.features
    source = builder.as_data_source(split=split)
    order, labels = np.arange(len(source)), None
    if keys := {"id", "label"} & set(features):
        skip = {"image": tfds.decode.SkipDecoding()}
        facts = builder.as_data_source(split=split, decoders=skip).__getitems__(range(len(source)))
        if "id" in keys:  # TFDS shuffles on disk; "train_16399" holds the canonical index.
            order = np.argsort([int(fact["id"].rsplit(b"_", 1)[-1]) for fact in facts])
        if "label" in keys:
            labels = np.array([fact["label"] for fact in facts])[order]

    def read(index):
        images = [example["image"] for example in source.__getitems__(order[index].tolist())]
        images = [transform(image) for image in images] if transform else images
        if len({image.shape for image in images}) > 1:
            raise ValueError(
                f"dataset: TFDS {builder.name} has images of several sizes, wanted one"
            )
        return np.stack(images)

    return Split(read, np.arange(len(source)), labels)


def _celeba_gray(image):
    """CelebA's 218x178 RGB image: centre 178x178 square, luma, 32x32 (geomem's choice)."""
    from PIL import Image

    return np.asarray(_square(Image.fromarray(image).convert("L"), 32))[..., None]
