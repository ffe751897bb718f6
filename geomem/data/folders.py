"""Images in a folder: found, checked by their headers, and decoded on demand."""

import contextlib
import os
import pathlib
import warnings
from collections.abc import Sequence
from typing import IO, Any, Literal, Protocol

import numpy as np
from jaxtyping import Int, UInt8

from geomem import memory, paths
from geomem.data.datasets import Split, warn

__all__ = ["ImageFile", "image_paths", "open_files", "open_folder", "square_gray", "squares"]

_SUFFIXES = (".png", ".jpg", ".jpeg")
# What PIL may take a file for. Other formats start programs (EPS) or hold no 8-bit images.
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
_MOST_PIXELS = 10**8  # of one image; GEOMEM_MAX_PIXELS changes it
_ORIENTATION, _TURNED = 274, (5, 6, 7, 8)  # EXIF: the tag, and the values that swap the sides


class ImageFile(Protocol):
    """An encoded image: a path, or a value in a table."""

    @property
    def name(self) -> str:
        """A short name."""
        ...

    def open(self, mode: Literal["rb"]) -> IO[bytes]:
        """Return the open file."""
        ...


def image_paths(folder: str | os.PathLike, argument: str = "dataset") -> list[pathlib.Path]:
    """Return the PNG and JPEG files in a folder and its subfolders, in the order of their indices.

    Hidden files are skipped, because macOS writes a "._cat.png", which is not an image, beside
    "cat.png". Links to folders are followed.

    Raises:
      ValueError: a folder that cannot be read, an image that is not a file, such as a pipe, or a
        name with a line break, which lists of files could not hold.
    """
    found, seen = [], set()

    def unreadable(error):
        raise ValueError(
            f"{argument} must be readable folders, got {error.filename} ({error.strerror})."
        )

    for root, names, files in os.walk(paths.as_path(folder), onerror=unreadable, followlinks=True):
        if (real := os.path.realpath(root)) in seen:  # a link to a folder above it
            names.clear()
            continue
        seen.add(real)
        files = [pathlib.Path(root, name) for name in files if not name.startswith(".")]
        found += [path for path in files if path.suffix.lower() in _SUFFIXES]
    for path in found:
        if not path.is_file():
            raise ValueError(f"{argument} must hold image files, got {path}, which is not a file.")
        if {*"\r\n"} & {*str(path)}:
            raise ValueError(f"{argument} must have no line breaks in paths, got {str(path)!r}.")
    return sorted(found)


def open_folder(
    folder: pathlib.Path, resize: int | None, argument: str
) -> tuple[Split, None, tuple[str, ...]]:
    """Return the images of a folder, None, and the names of its subfolders, which are the classes.

    Raises:
      ValueError: as in `data.load`.
    """
    files = image_paths(folder, argument)
    if not files:
        raise ValueError(
            f"{argument} must hold PNG or JPEG images, got none in the folder {folder}."
        )
    groups = [path.relative_to(folder).parts[0] if path.parent != folder else "" for path in files]
    class_names = tuple(sorted(set(groups))) if any(groups) else ()
    labels = np.array([class_names.index(group) for group in groups]) if class_names else None
    return open_files(files, str(folder), labels, resize, argument), None, class_names


def open_files(
    files: Sequence[ImageFile],
    place: str,
    labels: Int[np.ndarray, " images"] | None,
    resize: int | None,
    argument: str,
) -> Split:
    """Return encoded images, whose headers are read now, and what they hold on demand.

    Args:
      files: the images.
      place: what errors call all of them.
      labels: class labels, or None.
      resize, argument: as in `open_source`.

    Raises:
      ValueError: as in `data.load`.
    """
    sizes, modes, transparent, moving = {}, set(), 0, 0
    for path in files:
        with _opened(path, argument) as image:
            size, turned = image.size, "exif" in image.info and image.getexif()
            if turned and turned.get(_ORIENTATION) in _TURNED:
                size = size[::-1]
            sizes.setdefault(size, path)
            modes.add(image.mode)
            transparent += image.mode[-1:] in "Aa" or "transparency" in image.info
            # A photograph's other pictures (MPO), such as a depth map, are no frames.
            moving += image.format != "MPO" and getattr(image, "is_animated", False)
    if unusable := [mode for mode in modes if mode[0] in "IF"]:
        raise ValueError(
            f"{argument} must have 8 bits per channel, got images of mode {unusable[0]} in {place}."
        )
    if len(sizes) > 1 and resize is None:
        examples = [f"{path.name} is {w}x{h}" for (w, h), path in list(sizes.items())[:2]]
        raise ValueError(
            f"{argument} must have images of one size, got {len(sizes)} sizes in {place} "
            f"({', '.join(examples)}); --resize SIDE makes them equal."
        )
    if transparent:
        warn(f"{transparent} of {len(files)} images in {place} have transparency, which is ignored")
    if moving:
        warn(f"{moving} of {len(files)} images in {place} are animated; their first frame is used")
    mode = "L" if modes <= {"L", "1"} else "RGB"

    def read(index):
        pixels: Any = None
        for row, i in enumerate(index):
            image = _read(files[i], mode, resize, argument)
            if pixels is None:
                pixels = np.empty((len(index), *image.shape), np.uint8)
            if image.shape != pixels.shape[1:]:
                raise ValueError(
                    f"{argument} must have images of one size, got another: {files[i]}."
                )
            pixels[row] = image
        return pixels

    return Split(read, np.arange(len(files)), labels, argument)


def square_gray(
    pixels: UInt8[np.ndarray, "height width 3"], side: int
) -> UInt8[np.ndarray, "side side 1"]:
    """Return the center square of an RGB image in gray, side x side (geomem's choice: CelebA)."""
    from PIL import Image

    return np.asarray(_square(Image.fromarray(pixels).convert("L"), side))[..., None]


def square(pixels: UInt8[np.ndarray, "height width channels"], side: int) -> np.ndarray:
    """Return the center square of an image, resized with antialiasing to side x side."""
    from PIL import Image

    channels = [
        np.asarray(_square(Image.fromarray(channel), side))
        for channel in np.moveaxis(pixels, -1, 0)
    ]
    return np.stack(channels, axis=-1)


def squares(
    images: UInt8[np.ndarray, "images height width channels"], side: int
) -> UInt8[np.ndarray, "images side side channels"]:
    """Return the `square` of each image; only one of these is in memory twice."""
    pixels = np.empty((len(images), side, side, images.shape[-1]), np.uint8)
    for row, image in zip(pixels, images, strict=True):
        row[:] = square(image, side)
    return pixels


@contextlib.contextmanager
def _opened(path, argument):
    """Yield a PIL image; name the file in whatever PIL raises."""
    from PIL import Image, UnidentifiedImageError

    default, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, _most_pixels()
    try:
        with warnings.catch_warnings(), path.open("rb") as file:
            warnings.simplefilter("ignore", UserWarning)  # about damaged EXIF data
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            head = file.read(25)
            if head[:4] == b"\x89PNG" and head[24:] == b"\x10":
                raise ValueError("it must have 8 bits per channel, got 16")
            with Image.open(file, formats=_FORMATS) as image:
                if image.info.get("Software") == "geomem":
                    raise ValueError("it is a figure that geomem drew")
                yield image
    except MemoryError:
        raise
    except Exception as error:  # PIL's decoders raise errors of many types
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        if isinstance(error, UnidentifiedImageError):  # PIL's text names a file object
            reason = f"it is none of {', '.join(_FORMATS)}"
        raise ValueError(f"{argument} must hold readable images, got {path} ({reason}).") from None
    finally:
        Image.MAX_IMAGE_PIXELS = default


def _most_pixels():
    return int(memory.setting("GEOMEM_MAX_PIXELS", _MOST_PIXELS))


def _read(path, mode, resize, argument):
    from PIL import ImageOps

    with _opened(path, argument) as image:
        if image.format in ("JPEG", "MPO"):
            with path.open("rb") as file:
                _check_end(file.read())
        image = ImageOps.exif_transpose(image).convert(mode)
        pixels = np.asarray(image if resize is None else _square(image, resize))
    return pixels[..., None] if mode == "L" else pixels


def _check_end(jpeg):
    """Refuse a JPEG whose end is lost: decoders make up the missing pixels if zeros follow."""
    at = 2
    while at < len(jpeg) and jpeg[at + 1 : at + 2] != b"\xda":  # the first scan
        fill = jpeg[at + 1 : at + 2] == b"\xff"
        at += 1 if fill else 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
    if at < len(jpeg) and jpeg.find(b"\xff\xd9", at) < 0:
        raise ValueError("its end is missing")


def _square(image, side):
    """The center square of a PIL image, resized with antialiasing to side x side."""
    edge = min(image.size)
    left, top = (image.width - edge) // 2, (image.height - edge) // 2
    # Crop first, because resize(box=...) would use pixels outside the box.
    return image.crop((left, top, left + edge, top + edge)).resize((side, side))
