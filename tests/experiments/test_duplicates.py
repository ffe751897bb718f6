"""The command `geomem duplicates`: files, leakage, exit code."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

from geomem import data
from geomem.experiments import duplicates


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Training and held-out photographs; two repeat, one leaks."""
    pixels = data.load().train_split.pixels[:150]
    root = tmp_path_factory.mktemp("photos")
    for name, images in (("train", pixels[:110]), ("test", pixels[110:])):
        (root / name).mkdir()
        images = images.copy()
        if name == "train":
            images[100], images[101] = images[7], images[8, :, ::-1]
        else:
            images[5] = pixels[20, :, ::-1]
        for i, image in enumerate(images):
            Image.fromarray(image).save(root / name / f"{i:03d}.png")
    return root


def test_lists_copies_and_leaks(folders, tmp_path, capsys):
    config = duplicates.Config(
        str(folders / "train"), heldout=str(folders / "test"), out=str(tmp_path / "out")
    )
    result = duplicates.run(config)
    out = capsys.readouterr().out
    assert "Leakage: 1 of 40 held-out images copy training images." in " ".join(out.split())
    assert result.exit_code == 0
    with (result.folder / "duplicates.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(r["image"], r["copy"], r["copy_split"], r["kind"]) for r in rows] == [
        ("020.png", "005.png", "heldout", "mirrored"),
        ("007.png", "100.png", "train", "exact"),
        ("008.png", "101.png", "train", "mirrored"),
    ]
    assert [r["transform"] for r in rows] == ["flip", "none", "flip"]
    keep = (result.folder / "keep.txt").read_text().split()
    assert len(keep) == 108
    assert {"100.png", "101.png"}.isdisjoint(keep)
    assert len((result.folder / "keep_heldout.txt").read_text().split()) == 39
    report = json.loads((result.folder / "report.json").read_text())
    assert (report["leaked"], report["repeated"], report["groups"]) == (1, 2, 3)
    groups = json.loads((result.folder / "groups.json").read_text())
    assert {"images": ["020.png", "005.png"], "held_out": [False, True]} in groups
    page = (result.folder / "duplicates.html").read_text()
    assert page.count("data:image/png;base64") == 6
    assert "src=" not in page.replace('src="data:', "")
    assert len(list((folders / "train").iterdir())) == 110


@pytest.mark.parametrize(("limit", "code"), [(0.0, 1), (0.02, 0)])
def test_exit_code_follows_the_rate(folders, tmp_path, limit, code):
    config = duplicates.Config(
        str(folders / "train"), fail_above=limit, threshold=0.5, out=str(tmp_path / "out")
    )
    result = duplicates.run(config)
    assert result.report["heldout"] == 0
    assert result.report["repeated"] == 2
    assert result.exit_code == code
    assert not (result.folder / "keep_heldout.txt").exists()


def test_set_without_duplicates(tmp_path):
    np.save(tmp_path / "images.npy", data.load().train_split.pixels[:60])
    config = duplicates.Config(
        str(tmp_path / "images.npy"), fail_above=0.0, out=str(tmp_path / "out")
    )
    result = duplicates.run(config)
    assert result.exit_code == 0
    assert (result.folder / "duplicates.csv").read_text().count("\n") == 1
    assert result.report["verdict"] == ["No duplicates found among 60 training images."]
