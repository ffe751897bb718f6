"""Make geomem's bundled CIFAR-10 sample from TFDS, and print the hash that geomem checks at load.

Run: TFDS_DATA_DIR=... python experiments/cifar10_sample/make.py
"""

import hashlib
import importlib.resources

import numpy as np
from PIL import Image

from geomem import data

COUNT, COLUMNS, SIDE = 1000, 40, 32


def main():
    """Write train.png, test.png, the labels and the class names under geomem/assets."""
    folder = importlib.resources.files("geomem") / "assets" / "cifar10_sample"
    dataset = data.load("cifar10").subset(count=COUNT, heldout_count=COUNT)
    digest = hashlib.sha256()
    for name, split in (("train", dataset.train_split), ("test", dataset.test_split)):
        tiles = split.pixels.reshape(-1, COLUMNS, SIDE, SIDE, 3).swapaxes(1, 2)
        sheet = Image.fromarray(tiles.reshape(-1, COLUMNS * SIDE, 3))
        sheet.save(folder / f"{name}.png", optimize=True)
        (folder / f"{name}_labels.txt").write_text("".join(map(str, split.labels)) + "\n")
        digest.update(split.pixels)
        digest.update(split.labels.astype(np.uint8))
    (folder / "classes.txt").write_text("\n".join(dataset.class_names) + "\n")
    print("sha256", digest.hexdigest())


if __name__ == "__main__":
    main()
