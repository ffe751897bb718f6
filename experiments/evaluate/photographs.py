"""Plant duplicates in 120 photographs, run `geomem duplicates`, and count what it finds.

Run: python experiments/evaluate/photographs.py runs/photographs

Needs scikit-image. The photographs are crops that do not overlap, of the pictures that scikit-image
and scikit-learn install. Pictures that need a download are left out, so SciPy has none.
"""

import csv
import importlib.resources
import json
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import sklearn.datasets
from PIL import Image, ImageEnhance
from planted import crop, jpeg

from geomem import metrics

COUNT, SIDE = 120, 96
DRAWS, SIDES = 16, (32, 64, 96, 128)
SHIFT = SIDE // 16
TILE = SIDE + 2 * SHIFT
PICTURES = (
    *("astronaut.png", "brick.png", "camera.png", "chelsea.png", "clock_motion.png"),
    *("coffee.png", "coins.png", "grass.png", "gravel.png", "hubble_deep_field.jpg", "ihc.png"),
    *("microaneurysms.png", "moon.png", "motorcycle_left.png", "retina.jpg", "rocket.jpg"),
)


def shifted(tile):
    """Return a crop of the same picture a few pixels farther."""
    return tile[2 * SHIFT :, SHIFT:-SHIFT]


CHANGES = {
    "exact": lambda x, tile: x,
    "near": lambda x, tile: jpeg(x, 75),
    "mirrored": lambda x, tile: x[:, ::-1],
    "shifted": lambda x, tile: shifted(tile),
    "cropped": lambda x, tile: crop(x, 3 * SIDE // 32),
    "brightened": lambda x, tile: np.asarray(
        ImageEnhance.Brightness(Image.fromarray(x)).enhance(1.3)
    ),
}


def load_pictures():
    """Return the pictures, uint8 [H, W, 3] each."""
    folder = importlib.resources.files("skimage") / "data"
    pictures = [np.asarray(Image.open(str(folder / name)).convert("RGB")) for name in PICTURES]
    return pictures + list(sklearn.datasets.load_sample_images().images)


def tiles(picture, side, start=(0, 0)):
    """Return the tiles of a picture [H, W, 3], side by side."""
    rows, columns = (
        range(first, length - side + 1, side)
        for first, length in zip(start, picture.shape[:2], strict=True)
    )
    return [picture[i : i + side, j : j + side] for i in rows for j in columns]


def drawn(rng, every):
    """Return 120 tiles, about as many of each picture's."""
    ranked = [
        (rank, i, j)
        for i, some in enumerate(every)
        for rank, j in enumerate(rng.permutation(len(some)))
    ]
    return [every[i][j] for _, i, j in sorted(ranked)[:COUNT]]


def false_pairs(pictures, side):
    """Return the number of false pairs of each draw, from tiles at random offsets.

    Tiles that differ by at most 2 gray levels, such as two black corners, are copies.
    """
    counts = []
    for seed in range(DRAWS):
        rng = np.random.default_rng(seed)
        every = [tiles(picture, side, rng.integers(0, 20, 2)) for picture in pictures]
        images = np.stack(drawn(rng, every))
        pairs = metrics.duplicates.find(images).pairs
        far = [np.abs(np.subtract(*np.int16(images[[p.image, p.copy]]))).max() > 2 for p in pairs]
        counts.append(sum(map(bool, far)))
    return counts


def duplicates(images, folder):
    """Run the whole command on PNG files; return the rows of duplicates.csv."""
    shutil.rmtree(folder, ignore_errors=True)  # other images may be left from an earlier run
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for name, image in images.items():
        Image.fromarray(image).save(folder / "images" / f"{name}.png")
    command = sys.executable, "-m", "geomem", "duplicates", str(folder / "images")
    flags = "--overwrite", "--out", str(folder / "out")
    subprocess.run([*command, *flags], check=True)
    with open(folder / "out" / "duplicates.csv", newline="") as file:
        return list(csv.DictReader(file))


def cut(found_tiles):
    """Return the photographs by name."""
    inner = slice(SHIFT, -SHIFT)
    return {f"{i:03d}": tile[inner, inner] for i, tile in enumerate(found_tiles)}


def planted(images, copies, folder):
    """Count which copies are found, by kind; return also the pairs that were not planted."""
    rows = duplicates({**images, **copies}, folder)
    pairs = {frozenset((row["image"], row["copy"])): row for row in rows}
    counts, missed = {}, []
    for name in copies:
        pair, kind = frozenset((f"{name[:3]}.png", f"{name}.png")), name[4:]
        count = counts.setdefault(kind, {"planted": 0, "found": 0, "named so": 0})
        row = pairs.pop(pair, None)
        count["planted"] += 1
        count["found"] += row is not None
        count["named so"] += row is not None and kind in row["kind"]
        if row is None:
            missed.append(name)
    return counts, missed, [f"{row['image']} {row['copy']}" for row in pairs.values()]


def main(folder):
    """Write results.json into the folder and print it."""
    pictures = load_pictures()
    every = [tiles(picture, TILE) for picture in pictures]
    false = {}
    for seed in range(4):
        images = cut(drawn(np.random.default_rng(seed), every))
        rows = duplicates(images, folder / "alone")
        false[f"crops {seed}"] = [f"{row['image']} {row['copy']}" for row in rows]
    found_tiles = drawn(np.random.default_rng(0), every)
    images, kinds = cut(found_tiles), list(CHANGES)
    every = {
        f"{name}-{kind}": change(image, tile)
        for kind, change in CHANGES.items()
        for (name, image), tile in zip(images.items(), found_tiles, strict=True)
    }
    # Each photograph has one copy; then each has copies of one kind at a time.
    one = {name: x for name, x in every.items() if name[4:] == kinds[int(name[:3]) % len(kinds)]}
    counts, missed, others = planted(images, one, folder / "one")
    results = {
        "photographs": len(images),
        "pictures": len(pictures),
        "flat (standard deviation below 10 of 255)": sum(
            int(x.std() < 10) for x in images.values()
        ),
        "false pairs": false,
        "false pairs by draw": {f"{side} pixels": false_pairs(pictures, side) for side in SIDES},
        "one copy of each": {"counts": counts, "missed": missed, "other pairs": others},
    }
    for kind in kinds:
        some = {name: x for name, x in every.items() if name[4:] == kind}
        counts, missed, others = planted(images, some, folder / "all")
        results[f"all {kind}"] = {**counts[kind], "missed": missed, "other pairs": len(others)}
    text = json.dumps(results, indent=1)
    (folder / "results.json").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
