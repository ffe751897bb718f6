"""Where images come from: the bundled sample, scikit-learn, TFDS, folders and arrays."""

from __future__ import annotations

import hashlib
import importlib.resources
import logging
import os
import pathlib
import warnings
import zipfile
from typing import Any, cast

import numpy as np

from geomem.data.datasets import Split

__all__ = ["image_paths", "is_folder", "open_source"]

_SAMPLE_SHA256 = "4c9ca6da920cff1963ccdd8bfc6d5d64846e68e0e09a351f4061637b9e91eb2d"
_NAMES = ("cifar10_sample", "cifar10", "celeba_gray", "digits")
_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")


def open_source(
    name: str, resize: int | None = None
) -> tuple[Split, Split | None, tuple[str, ...]]:
    """Return the training images, test images (or None) and class names for a name or path.

    Raises:
      ValueError: as in `load`.
    """
    if name == "cifar10_sample":
        return _open_cifar10_sample()
    if name == "digits":
        return _open_digits()
    if name == "celeba_gray":
        return _open_tfds("celeb_a", _celeba_gray)
    if name == "cifar10" or name.startswith("tfds:"):
        return _open_tfds(name.removeprefix("tfds:"))
    path = pathlib.Path(name).expanduser()
    if is_folder(name):
        return _open_folder(path, resize)
    if path.suffix in (".npy", ".npz") and path.is_file():
        return _open_array(path)
    is_path = path.suffix in (".npy", ".npz") or len(path.parts) > 1 or name.endswith("/")
    if is_path and not path.exists():
        raise ValueError(f"dataset must be an existing file or folder, got {name}.")
    raise ValueError(
        f"dataset must be {', '.join(_NAMES)}, tfds:NAME or the path of a folder, .npy or .npz "
        f"file, got {name!r}."
    )


def is_folder(name: str) -> bool:
    """Return whether `open_source` reads this name as a folder; data set names take precedence."""
    known = name in _NAMES or name.startswith("tfds:")
    return not known and pathlib.Path(name).expanduser().is_dir()


def image_paths(folder: str | os.PathLike) -> list[pathlib.Path]:
    """Return the PNG and JPEG files in a folder and its subfolders, in the order of their indices.

    Hidden files are skipped, because macOS writes a "._cat.png", which is not an image, beside
    "cat.png".
    """
    paths = pathlib.Path(folder).expanduser().rglob("*")
    images = (path for path in paths if path.suffix.lower() in _IMAGE_SUFFIXES)
    return sorted(path for path in images if not path.name.startswith("."))


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
        digest.update(np.ascontiguousarray(pixels).data)
        digest.update(labels.astype(np.uint8).data)
        splits.append(_from_array(pixels, labels))
    if digest.hexdigest() != _SAMPLE_SHA256:
        raise ValueError(f"The bundled files in {folder} are damaged; reinstall geomem.")
    return *splits, class_names


def _open_digits():
    from sklearn.datasets import load_digits
    from sklearn.utils import Bunch

    digits = cast(Bunch, load_digits())
    pixels = (digits.images[..., None] / 8 - 1).astype(np.float32)
    whole = _from_array(pixels, digits.target)
    # A fixed split: the first 900 are for training, the last 897 are held out.
    return whole.take(np.arange(900)), whole.take(np.arange(900, 1797)), tuple("0123456789")


def _open_folder(folder, resize):
    from PIL import Image

    paths = image_paths(folder)
    if not paths:
        raise ValueError(f"dataset must hold PNG or JPEG images, got none in the folder {folder}.")
    sizes, modes = {}, set()
    for path in paths:
        try:
            with Image.open(path) as image:
                sizes.setdefault(image.size, path)
                modes.add(image.mode)
        except OSError as error:
            raise ValueError(f"dataset must hold readable images, got {path}: {error}.") from None
    if unusable := [mode for mode in modes if mode[0] in "IF"]:
        raise ValueError(
            f"dataset must have 8 bits per channel, got images of mode {unusable[0]} in {folder}."
        )
    if len(sizes) > 1 and resize is None:
        examples = [f"{path.name} is {w}x{h}" for (w, h), path in list(sizes.items())[:2]]
        raise ValueError(
            f"dataset must have images of one size, got {len(sizes)} sizes in {folder} "
            f"({', '.join(examples)}); --resize SIDE makes them equal."
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
    """The center square of a PIL image, resized with antialiasing to side x side."""
    edge = min(image.size)
    left, top = (image.width - edge) // 2, (image.height - edge) // 2
    # Crop first, because resize(box=...) would use pixels outside the box.
    return image.crop((left, top, left + edge, top + edge)).resize((side, side))


def _open_array(path):
    array = _load_array(path)
    if array.dtype != np.uint8 and array.dtype.kind != "f":
        raise ValueError(f"dataset must hold uint8 or float values, got {array.dtype} in {path}.")
    if array.ndim == 3:
        array = array[..., None]
    if array.ndim != 4 or array.shape[-1] > 4:
        raise ValueError(
            "dataset must have the shape [N, H, W] or [N, H, W, C] with C <= 4, "
            f"got {array.shape} in {path}."
        )
    return _from_array(array), None, ()


def _load_array(path):
    try:
        # Memory-mapped, so that a subset of a large file reads only its own images.
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(array, np.lib.npyio.NpzFile):
            return array
        with array as archive:
            keys = [key for key in ("images", "arr_0") if key in archive.files] or archive.files
            if len(keys) == 1 or "images" in keys:
                return archive[keys[0]]
    except (OSError, EOFError, ValueError, zipfile.BadZipFile):
        raise ValueError(
            f"dataset must be a readable {path.suffix} file without Python objects, got {path}."
        ) from None
    raise ValueError(f"dataset must hold one array, or one named images, got {keys} in {path}.")


def _open_tfds(name, transform=None):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import tensorflow_datasets as tfds
    # Silence TFDS's advice to install OpenCV, and warnings that duplicate the errors below.
    logging.getLogger("absl").setLevel(logging.ERROR)

    try:
        # Passed explicitly, because TFDS reads the variable only once, at import.
        folder = os.environ.get("TFDS_DATA_DIR")
        builder = tfds.builder(name, file_format="array_record", data_dir=folder)
    except tfds.core.DatasetNotFoundError:
        raise ValueError(f"dataset must be known to TFDS, got {name!r}.") from None
    if not builder.is_prepared():
        _prepare(builder)
    features = cast(dict[str, Any], builder.info.features)
    if "image" not in features:
        raise ValueError(
            f"dataset must have the TFDS feature 'image', got {', '.join(features)} in {name!r}."
        )
    train = _tfds_split(builder, "train", transform)
    for split in ("test", "validation"):
        if split in builder.info.splits or not builder.info.splits:
            test = _tfds_split(builder, split, transform)
            break
    else:
        test = None
    return train, test, _class_names(features)


def _class_names(features):
    return tuple(getattr(features["label"], "names", ())) if "label" in features else ()


def _prepare(builder):
    try:
        import tensorflow  # noqa: F401
    except ImportError:
        folder = os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
        raise ValueError(
            f"dataset {builder.name} is not prepared in {folder} (TFDS_DATA_DIR), and preparing it "
            "needs TensorFlow: pip install tensorflow-cpu, then run the same command again."
        ) from None
    builder.download_and_prepare()


def _tfds_split(builder, split, transform):
    import tensorflow_datasets as tfds

    features = builder.info.features
    try:
        source = builder.as_data_source(split=split)
    except NotImplementedError:
        raise ValueError(
            f"dataset must be prepared as array_record, got TFRecord files for {builder.name}: "
            "prepare it again with file_format='array_record'."
        ) from None
    order, labels = np.arange(len(source)), None
    keys = {key for key in ("id", "label") if key in features}
    if keys:
        skip = {"image": tfds.decode.SkipDecoding()}
        rows = builder.as_data_source(split=split, decoders=skip).__getitems__(range(len(source)))
        numbers = [row["id"].rsplit(b"_", 1)[-1] for row in rows] if "id" in keys else [b""]
        if all(number.isdigit() for number in numbers):
            # TFDS stores images in shuffled order; an id such as "train_16399" has the original
            # one.
            order = np.argsort([int(number) for number in numbers])
        if _class_names(features):
            labels = np.array([row["label"] for row in rows])[order]

    def read(index):
        images = [example["image"] for example in source.__getitems__(order[index].tolist())]
        images = [transform(image) for image in images] if transform else images
        if len({image.shape for image in images}) > 1:
            raise ValueError(
                f"dataset must have images of one size, got several sizes in {builder.name}."
            )
        return np.stack(images)

    return Split(read, np.arange(len(source)), labels)


def _celeba_gray(image):
    """The center square of a CelebA image (218x178 RGB) in gray, 32x32 (geomem's choice)."""
    from PIL import Image

    return np.asarray(_square(Image.fromarray(image).convert("L"), 32))[..., None]
