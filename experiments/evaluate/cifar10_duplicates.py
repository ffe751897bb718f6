"""Run `geomem duplicates` on 10,000 images of CIFAR-10 and draw every pair that it reports.

Run: TFDS_DATA_DIR=... python experiments/evaluate/cifar10_duplicates.py runs/cifar10_duplicates
"""

import csv
import pathlib
import subprocess
import sys

import numpy as np
from PIL import Image, ImageDraw

from geomem import data

COUNT, ABREAST, SIDE, GAP, LINE = 10_000, 10, 64, 10, 14


def main(folder):
    """Write duplicates.csv, the other files of the command, and pairs.jpg into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    pixels = data.load("cifar10").train_split.pixels[:COUNT]
    np.save(folder / "cifar10.npy", pixels)
    command = sys.executable, "-m", "geomem", "duplicates", str(folder / "cifar10.npy")
    subprocess.run([*command, "--overwrite", "--out", str(folder / "out")], check=True)
    with open(folder / "out" / "duplicates.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    width, height = 2 * SIDE + GAP, SIDE + LINE
    sheet = Image.new("RGB", (ABREAST * width, -(-len(rows) // ABREAST) * height), "white")
    draw = ImageDraw.Draw(sheet)
    for i, row in enumerate(rows):
        left, top = i % ABREAST * width, i // ABREAST * height
        draw.text((left, top), f"{i}: distance {float(row['distance']):.2f}", fill="black")
        for place, name in enumerate((row["image"], row["copy"])):
            image = Image.fromarray(pixels[int(name.split(":")[1])])
            image = image.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
            sheet.paste(image, (left + place * (SIDE + 1), top + LINE))
    sheet.save(folder / "pairs.jpg", quality=80)
    print(f"{len(rows)} pairs in {folder / 'pairs.jpg'}")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
