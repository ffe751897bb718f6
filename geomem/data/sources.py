"""Where images come from: the bundled images, TFDS, folders and arrays."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import re
import warnings
from typing import Any, NamedTuple, cast

import numpy as np

from geomem import array_files, paths
from geomem.data import bundled, folders, hugging_face
from geomem.data.datasets import Split, finite_range

__all__ = ["ArrayOptions", "is_array", "is_folder", "open_source"]

_NAMES = ("cifar10_sample", "cifar10", "celeba_gray", "digits")
_TFDS_NAME = re.compile(r"\w+(/[\w.-]+)?(:[\d.*]+)?")  # name/config:version


class ArrayOptions(NamedTuple):
    """How to read arrays from files.

    Attributes:
      layout: "NHWC" or "NCHW", the order of the axes of [N, ...] with four axes; None refuses an
        array that looks like [N, C, H, W].
      value_range: the values that stand for black and white, which become -1 and 1.
      scale: factor of the values of latents or vectors; None refuses values that look like images
        in another range.
    """

    layout: str | None = None
    value_range: tuple[float, float] | None = None
    scale: float | None = None


def open_source(
    name: str,
    resize: int | None = None,
    argument: str = "dataset",
    options: ArrayOptions = ArrayOptions(),  # noqa: B008  (immutable)
) -> tuple[Split, Split | None, tuple[str, ...]]:
    """Return the training images, test images (or None) and class names for a name or path.

    Args:
      name, resize: as in `load`.
      options: for arrays.
      argument: what errors call the images, now and when they are read.

    Raises:
      ValueError: as in `load`.
    """
    if name in _NAMES or name.startswith("tfds:"):
        train, test, class_names = _open_named(name, argument)
        test = test and _resized(test, resize, argument)
        return _resized(train, resize, argument), test, class_names
    if name.startswith("hf:"):
        return hugging_face.open_table(paths.as_path(name.removeprefix("hf:")), resize, argument)
    path = paths.as_path(name) if name else None
    if path is not None and path.is_dir():
        return folders.open_folder(path, resize, argument)
    if path is not None and path.suffix in (".npy", ".npz") and path.is_file():
        return _open_arrays(path, resize, argument, options)
    is_path = path is not None and (path.suffix in (".npy", ".npz") or "/" in name)
    if path is not None and is_path and not path.exists():
        raise ValueError(f"{argument} must be an existing file or folder, got {name}.")
    raise ValueError(
        f"{argument} must be {', '.join(_NAMES)}, tfds:NAME, hf:PATH or the path of a folder, .npy "
        f"or .npz file, got {name!r}."
    )


def is_folder(name: str) -> bool:
    """Return whether `open_source` reads this name as a folder; data set names take precedence."""
    known = name in _NAMES or name.startswith(("tfds:", "hf:"))
    return bool(name) and not known and paths.as_path(name).is_dir()


def is_array(name: str) -> bool:
    """Return whether `open_source` reads this name as the path of an array file."""
    return paths.as_path(name).suffix in (".npy", ".npz")


def _from_array(pixels, labels=None, argument="dataset"):
    return Split(pixels.__getitem__, np.arange(len(pixels)), labels, argument)


def _open_named(name, argument):
    if name == "cifar10_sample":
        return bundled.cifar10_sample()
    if name == "digits":
        return bundled.digits()
    if name == "celeba_gray":
        return _open_tfds("celeb_a", argument, lambda image: folders.square_gray(image, 32))
    return _open_tfds(name.removeprefix("tfds:"), argument)


def _open_arrays(path, resize, argument, options):
    arrays = [
        _open_array(array, path, resize, argument, options)
        for array in _load_arrays(path, argument)
    ]
    return arrays[0], arrays[1] if len(arrays) > 1 else None, ()


def _open_array(array, path, resize, argument, options):
    if array.dtype != np.uint8 and array.dtype.kind != "f":
        raise ValueError(
            f"{argument} must hold uint8 or float values, got {array.dtype} in {path}."
        )
    if array.ndim not in (2, 3, 4):
        raise ValueError(
            f"{argument} must have the shape [N, d], [N, H, W] or [N, H, W, C], got {array.shape} "
            f"in {path}."
        )
    if array.ndim == 4:
        array = _channels_last(array, path, options.layout, argument)
    elif options.layout:
        raise ValueError(f"layout must be left out for {array.ndim} axes, got {options.layout}.")
    array = array[..., None] if array.ndim == 3 else array
    if array.dtype == np.uint8:
        if array.ndim != 4 or array.shape[-1] > 4:
            raise ValueError(
                f"{argument} must have the shape [N, H, W] or [N, H, W, C] with C <= 4 if it holds "
                f"uint8, got {array.shape} in {path}."
            )
        if options.value_range:
            raise ValueError(f"range must be left out for 8-bit images, got {path}.")
        if options.scale:
            raise ValueError(f"scale must be left out for 8-bit images, got {path}.")
        split = _from_array(array, argument=argument)
    else:
        split = _open_floats(array, argument, options)
    return _resized(split, resize, argument)


def _channels_last(array, path, layout, argument):
    if layout not in (None, "NHWC", "NCHW"):
        raise ValueError(f"layout must be NHWC or NCHW, got {layout}.")
    _, channels, height, width = array.shape
    if layout is None and channels <= 4 and height == width > 4 and channels < height:
        raise ValueError(
            f"{argument} must come with --layout NCHW, or NHWC if its last axis is the channels, "
            f"because the shape {array.shape} in {path} looks like [N, C, H, W]."
        )
    return np.moveaxis(array, 1, -1) if layout == "NCHW" else array


def _open_floats(array, argument, options):
    """Floats in [-1, 1], in a stated range, or latents and vectors of any scale."""
    low, high = finite_range(array, argument)
    scale, offset = 1.0, 0.0
    if options.value_range and options.scale:
        raise ValueError("range and scale must not be given together.")
    if options.value_range:
        black, white = options.value_range
        if not -np.inf < black <= low <= high <= white < np.inf or black == white:
            raise ValueError(
                f"range must hold all values of {argument}, got {black:g} to {white:g} for values "
                f"from {low:g} to {high:g}."
            )
        scale, offset = 2 / (white - black), -(white + black) / (white - black)
    elif options.scale:
        scale = options.scale
        if not np.isfinite(scale) or scale <= 0:
            raise ValueError(f"scale must be positive and finite, got {scale:g}.")
    elif array.ndim == 4 and low >= 0 and high <= 255:
        raise ValueError(
            f"{argument} must hold images in [-1, 1] or other values, got floats in "
            f"[{low:g}, {high:g}]: --range 0 {1 if high <= 1 else 255} for images, --scale 1 for "
            "latents."
        )
    images = array.ndim == 4 and array.shape[-1] <= 4 and not options.scale
    images = images and scale * low + offset >= -1 and scale * high + offset <= 1

    def read(index):
        values = array[index].astype(np.float32, copy=False)
        return values if (scale, offset) == (1, 0) else scale * values + np.float32(offset)

    return Split(read, np.arange(len(array)), argument=argument, is_images=images)


def _resized(split, side, argument):
    if side is None:
        return split
    if not split.is_images or split.at(slice(0, 1)).dtype != np.uint8:
        raise ValueError(
            f"resize must be left out unless {argument} holds 8-bit images, got {side}."
        )

    def read(index):
        return folders.squares(split.read(index), side)

    return dataclasses.replace(split, read=read)


def _load_arrays(path, argument):
    try:
        if path.suffix == ".npy":
            return [array_files.open_npy(path)]
        names = array_files.names(path)
        for chosen in (["images"], ["train", "test"], *([names] if len(names) == 1 else [])):
            if set(chosen) <= set(names):
                arrays = array_files.read_npz(path, chosen)
                return [arrays[name] for name in chosen]
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(
            f"{argument} must be a readable {path.suffix} file, got {path} ({reason})."
        ) from None
    raise ValueError(
        f"{argument} must hold one array, or images, or train and test, got {names} in {path}."
    )


def _open_tfds(name, argument, transform=None):
    if not _TFDS_NAME.fullmatch(name):
        raise ValueError(f"{argument} must be known to TFDS, got {name!r}.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import tensorflow_datasets as tfds
    # Silence TFDS's advice to install OpenCV, and warnings that duplicate the errors below.
    logging.getLogger("absl").setLevel(logging.ERROR)

    with _tfds_errors(name, argument):
        try:
            # Passed explicitly, because TFDS reads the variable only once, at import.
            folder = os.environ.get("TFDS_DATA_DIR")
            builder = tfds.builder(name, file_format="array_record", data_dir=folder)
        except tfds.core.DatasetNotFoundError:
            raise ValueError(f"{argument} must be known to TFDS, got {name!r}.") from None
        if not builder.is_prepared():
            _prepare(builder, argument)
        features = cast(dict[str, Any], builder.info.features)
        if "image" not in features:
            raise ValueError(
                f"{argument} must have the TFDS feature 'image', got {', '.join(features)} in "
                f"{name!r}."
            )
        train = _tfds_split(builder, "train", argument, transform)
        for split in ("test", "validation"):
            if split in builder.info.splits or not builder.info.splits:
                test = _tfds_split(builder, split, argument, transform)
                break
        else:
            test = None
    return train, test, _class_names(features)


@contextlib.contextmanager
def _tfds_errors(name, argument):
    """Name the data set in whatever TFDS and its readers raise, in one line."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        if str(error).startswith(f"{argument} "):
            raise
        reason = str(error).strip().partition("\n")[0][:200] or type(error).__name__
        raise ValueError(f"{argument} must be readable by TFDS, got {name} ({reason}).") from None


def _class_names(features):
    return tuple(getattr(features["label"], "names", ())) if "label" in features else ()


def _prepare(builder, argument):
    try:
        import tensorflow  # noqa: F401
    except ImportError:
        folder = os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
        raise ValueError(
            f"{argument} {builder.name} is not prepared in {folder} (TFDS_DATA_DIR), and preparing "
            "it needs TensorFlow: pip install tensorflow-cpu, then run the same command again."
        ) from None
    builder.download_and_prepare()


def _tfds_split(builder, split, argument, transform):
    import tensorflow_datasets as tfds

    features = builder.info.features
    try:
        source = builder.as_data_source(split=split)
    except NotImplementedError:
        raise ValueError(
            f"{argument} must be prepared as array_record, got TFRecord files for {builder.name}: "
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
        with _tfds_errors(builder.name, argument):
            images = [example["image"] for example in source.__getitems__(order[index].tolist())]
            images = [transform(image) for image in images] if transform else images
            if len({image.shape for image in images}) > 1:
                raise ValueError(
                    f"{argument} must have images of one size, got several sizes in {builder.name}."
                )
            return np.stack(images)

    return Split(read, np.arange(len(source)), labels, argument)
