"""Plant copies whose answer is known, run `geomem evaluate`, and count how many it finds.

Run: TFDS_DATA_DIR=... python experiments/evaluate/planted.py runs/planted

The copies are made with Pillow and NumPy, 8 bits per value, not with geomem's own
`metrics.planted`. The unseen images are those of CIFAR-10 that are not in cifar10_sample.
"""

import csv
import io
import json
import pathlib
import subprocess
import sys

import numpy as np
from PIL import Image, ImageEnhance

from geomem import data

EACH = 100  # copies of each kind
SAMPLES, HELDOUT = 2000, 1500
DIRECTIONS = [(1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1)]


def noise(image, rng, sigma):
    """Add noise to an image in [-1, 1] and round to 8 bits."""
    noised = image + 127.5 * sigma * rng.standard_normal(image.shape)
    return np.clip(np.rint(noised), 0, 255).astype(np.uint8)


def jpeg(image, quality):
    """Compress an image."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def shift(image, rng, pixels):
    """Move an image, also diagonally; its border is repeated."""
    down, right = pixels * np.array(DIRECTIONS[rng.integers(len(DIRECTIONS))])
    padded = np.pad(image, ((pixels, pixels), (pixels, pixels), (0, 0)), "edge")
    return np.roll(padded, (down, right), (0, 1))[pixels:-pixels, pixels:-pixels]


def crop(image, pixels):
    """Cut off the border and enlarge the rest."""
    height, width, _ = image.shape
    inner = Image.fromarray(image[pixels:-pixels, pixels:-pixels])
    return np.asarray(inner.resize((width, height), Image.Resampling.BICUBIC))


def pixel(image, rng):
    """Change one value by a gray level."""
    changed, place = image.copy(), tuple(rng.integers(image.shape))
    value = int(changed[place])
    changed[place] = value + 1 if value < 128 else value - 1
    return changed


CHANGES = {
    "exact": lambda x, rng: x,
    "noise 0.05": lambda x, rng: noise(x, rng, 0.05),
    "JPEG 75": lambda x, rng: jpeg(x, 75),
    "shift 1": lambda x, rng: shift(x, rng, 1),
    "shift 2": lambda x, rng: shift(x, rng, 2),
    "flip": lambda x, rng: x[:, ::-1],
    "flip, shift 1": lambda x, rng: shift(x[:, ::-1], rng, 1),
    "brightness x1.3": lambda x, rng: np.asarray(
        ImageEnhance.Brightness(Image.fromarray(x)).enhance(1.3)
    ),
    "crop 3, enlarged": lambda x, rng: crop(x, 3),
}
NEAR = {
    "one pixel by a gray level": pixel,
    "JPEG 90": lambda x, rng: jpeg(x, 90),
    "JPEG 75": lambda x, rng: jpeg(x, 75),
    "noise 0.02": lambda x, rng: noise(x, rng, 0.02),
}


def evaluate(folder, *flags):
    """Run the whole command; return the rows of samples.csv and the report."""
    common = "--features", "none", "--overwrite", "--out", str(folder)
    subprocess.run([sys.executable, "-m", "geomem", "evaluate", *flags, *common], check=True)
    with open(folder / "samples.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return rows, json.loads((folder / "report.json").read_text())


def unseen_images():
    """Return images of CIFAR-10's test set that are not in cifar10_sample."""
    known = data.load("cifar10_sample")
    seen = {x.tobytes() for split in (known.train_split, known.test_split) for x in split.pixels}
    images = [x for x in data.load("cifar10").test_split.pixels if x.tobytes() not in seen]
    return np.stack(images)


def changed_copies(train, unseen, folder, rng):
    """Plant copies of each kind among unseen images; return the counts."""
    source = rng.permutation(len(train))[: EACH * len(CHANGES)].reshape(len(CHANGES), EACH)
    copies = [
        change(train[i], rng)
        for change, chosen in zip(CHANGES.values(), source, strict=True)
        for i in chosen
    ]
    clean = SAMPLES - len(copies)
    np.save(folder / "samples.npy", np.concatenate([copies, unseen[:clean]]))
    np.save(folder / "heldout.npy", unseen[clean : clean + HELDOUT])
    rows, report = evaluate(
        folder / "copies",
        *("--samples", str(folder / "samples.npy"), "--dataset", "cifar10_sample"),
        *("--heldout", str(folder / "heldout.npy")),
    )
    copied = np.array([row["copy"] == "1" for row in rows])
    nearest = np.array([int(row["nearest"]) for row in rows])
    right = copied[: source.size] & (nearest[: source.size] == source.ravel())
    counts = dict(zip(CHANGES, right.reshape(source.shape).sum(axis=1).tolist(), strict=True))
    missed = [
        {"kind": kind, "source": int(i), "aligned_ratio": rows[at]["aligned_ratio"]}
        for at, (kind, i) in enumerate(
            zip(np.repeat(list(CHANGES), EACH), source.flat, strict=True)
        )
        if not right[at]
    ]
    false = [rows[at] for at in np.flatnonzero(copied[source.size :]) + source.size]
    return {
        "found of 100": counts,
        "missed": missed,
        f"false among {clean} unseen samples": false,
        f"false among {HELDOUT} held-out images": report["copies_heldout"]["count"],
    }


def near_duplicates(train, folder, rng):
    """Double some training images; plant noised copies of them; return the counts."""
    source = rng.permutation(len(train))[: EACH * len(NEAR)].reshape(len(NEAR), EACH)
    doubles = [
        change(train[i], rng)
        for change, chosen in zip(NEAR.values(), source, strict=True)
        for i in chosen
    ]
    np.save(folder / "train.npy", np.concatenate([train, doubles]))
    np.save(folder / "near.npy", np.stack([noise(train[i], rng, 0.05) for i in source.flat]))
    rows, _ = evaluate(
        folder / "near",
        *("--samples", str(folder / "near.npy"), "--dataset", str(folder / "train.npy")),
        "--no-self-test",
    )
    nearest = np.array([int(row["nearest"]) for row in rows])
    right = (nearest == source.ravel()) | (nearest == len(train) + np.arange(source.size))
    counts = {}
    for name, column in (("found of 100", "copy"), ("by the strict definition", "strict")):
        found = right & np.array([row[column] == "1" for row in rows])
        found = found.reshape(source.shape).sum(axis=1)
        counts[name] = dict(zip(NEAR, found.tolist(), strict=True))
    return counts


def training_images(train, folder):
    """Take all training images for samples, with and without held-out images."""
    np.save(folder / "whole.npy", train)
    whole, counts = str(folder / "whole.npy"), {}
    for name, flags in {
        "no held-out images": ("--dataset", whole),
        "cifar10_sample's test images": ("--dataset", "cifar10_sample"),
        "a fifth held out": ("--dataset", whole, "--heldout", "0.2"),
    }.items():
        rows, _ = evaluate(folder / "all", "--samples", whole, *flags, "--no-self-test")
        searched = json.loads((folder / "all" / "run.json").read_text())["data"]["train"]["count"]
        # Both files are named NAME:POSITION.
        places = [(row["file"].split(":")[1], row["nearest_file"].split(":")[1]) for row in rows]
        found = sum(
            row["copy"] == "1" and own == nearest
            for row, (own, nearest) in zip(rows, places, strict=True)
        )
        counts[name] = {"training images searched": searched, "found": found}
    return counts


def main(folder):
    """Write results.json into the folder and print it."""
    folder.mkdir(parents=True, exist_ok=True)
    rng, train = np.random.default_rng(0), data.load("cifar10_sample").train_split.pixels
    results = {
        "changed copies": changed_copies(train, unseen_images(), folder, rng),
        "near-duplicates in training": near_duplicates(train, folder, rng),
        "training images as samples": training_images(train, folder),
    }
    text = json.dumps(results, indent=1)
    (folder / "results.json").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
