"""The evaluate command end to end on planted copies, and its one-line errors."""

import csv
import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from geomem import data
from geomem.experiments import evaluate
from geomem.experiments.evaluate import Config
from geomem.plots import pairs

SMALL = {"dataset": "digits", "num_train": 64, "num_heldout": 200}


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """20 copies with noise .03, 10 with noise .1, 10 new digits: (npz, result of evaluating it)."""
    folder, rng = tmp_path_factory.mktemp("evaluate"), np.random.default_rng(0)
    loaded = data.load("digits")
    train, new = loaded.train[:64], loaded.test[-10:]
    noise = rng.standard_normal((30, 8, 8, 1)).astype(np.float32)
    noise *= np.repeat(np.float32([0.03, 0.1]), [20, 10])[:, None, None, None]
    samples = np.concatenate([train[:30] + noise, new])
    np.savez(folder / "samples.npz", images=samples)
    result = evaluate.run(
        Config(samples=str(folder / "samples.npz"), out=str(folder / "out"), **SMALL)
    )
    return folder / "samples.npz", result


def test_report_counts_planted_copies(planted):
    _, (report, scores, _) = planted
    assert 20 <= report.memorized.count < 30
    assert report.without_noise.count in (29, 30)
    assert report.memorized_heldout.count <= 1
    assert report.copied == report.memorized.count
    assert set(scores) == {"train", "heldout"}
    assert scores["train"].features == "pixels"


def test_files_hold_the_result(planted):
    _, (report, scores, folder) = planted
    assert {path.name for path in folder.iterdir()} == {
        "report.json",
        "samples.csv",
        "pairs.png",
        "pairs.pdf",
        "run.json",
    }
    saved = json.loads((folder / "report.json").read_text())
    assert saved["memorized"]["count"] == report.memorized.count
    assert saved["frechet"]["heldout"]["value"] == pytest.approx(scores["heldout"].value)
    with open(folder / "samples.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["nearest"]) for row in rows[:30]] == list(range(30))
    assert [int(row["memorized"]) for row in rows] == report.samples.memorized.astype(int).tolist()
    noise = [float(row["noise"]) for row in rows[:20]]
    assert np.median(noise) == pytest.approx(0.03, rel=0.25)
    assert json.loads((folder / "run.json").read_text())["data"]["train"]["count"] == 64
    with Image.open(folder / "pairs.png") as page:
        assert page.size[0] == 2100  # a page's 7 inches at 300 dpi


def test_reads_folder_of_8_bit_images(planted, tmp_path):
    """Quantized to 8 bits, the same samples copy the same images."""
    path, (report, _, _) = planted
    images = np.load(path)["images"][..., 0]
    folder = tmp_path / "samples"
    folder.mkdir()
    for i, image in enumerate(images):
        pixels = np.clip(np.rint((image + 1) * 127.5), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:03d}.png")
    config = Config(samples=str(folder), out=str(tmp_path / "out"), **SMALL)
    found = evaluate.run(config)
    np.testing.assert_array_equal(found.report.samples.index[:30, 0], report.samples.index[:30, 0])
    assert abs(found.report.memorized.count - report.memorized.count) <= 2
    # --resize then applies only to the samples: named data sets have a fixed size.
    enlarged = dataclasses.replace(config, resize=16)
    assert evaluate._load_data(enlarged).train.shape == (64, 8, 8, 1)
    with pytest.raises(
        ValueError, match=r"samples must have the shape \(8, 8, 1\).* got \(16, 16, .\)"
    ):
        evaluate.run(enlarged)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_draws_pairs_with_any_number_of_channels(channels):
    """Draw three channels in color, and others in gray, by the mean of the channels."""
    images = np.full((1, 2, 2, channels), 100, np.uint8)
    images[..., 0] += 2 * channels
    (axes,) = pairs.pairs(images, images, ["0.10"], [True]).axes
    shown = [image.get_array()[0, 0].tolist() for image in axes.images]
    assert shown == 2 * [[106, 100, 100] if channels == 3 else 3 * [102]]


def test_rgb_images_need_no_inception_weights(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("GEOMEM_INCEPTION", raising=False)
    train = data.load("cifar10_sample").train
    np.savez(tmp_path / "samples.npz", images=train[[3, 7]])
    config = Config(
        samples=str(tmp_path / "samples.npz"),
        out=str(tmp_path / "out"),
        num_train=32,
        num_heldout=8,
    )
    report, scores, _ = evaluate.run(config)
    assert report.samples.index[:, 0].tolist() == [3, 7]
    assert report.memorized.count == 2
    assert scores == {}
    # Weights that the user names are used, or the error names the mistake.
    monkeypatch.setenv("GEOMEM_INCEPTION", str(tmp_path / "absent.pth"))
    with pytest.raises(ValueError, match=r"inception must be .* no weights at .*absent\.pth"):
        evaluate.run(config)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (
            np.zeros((5, 8, 8, 3), np.uint8),
            r"samples must have the shape \(8, 8, 1\).*, got \(8, 8, 3\)",
        ),
        (
            np.linspace(0, 1, 320, dtype="f").reshape(5, 8, 8),
            r"samples must hold images in \[-1, 1\] .*, got floats in \[0, 1",
        ),
        (
            np.linspace(-0.01, 1.01, 320).reshape(5, 8, 8),
            r"samples must be in .*, got 98% of the pixels in \[0",
        ),
        (
            np.linspace(-255, 255, 320).reshape(5, 8, 8),
            r"samples must be .*, got floats in \[-255, 255\]",
        ),
        (np.full((5, 8, 8), np.nan), "samples must be finite, got 320 values that are not"),
        (
            np.zeros((0, 8, 8), np.uint8),
            "samples must be a readable .npz file, .* it holds no values",
        ),
        (np.zeros((5, 8), np.uint8), "samples must have the shape"),
    ],
)
def test_rejects_bad_samples(images, message, tmp_path):
    np.savez(tmp_path / "bad.npz", images=images)
    with pytest.raises(ValueError, match=message) as error:
        evaluate.run(Config(samples=str(tmp_path / "bad.npz"), out=str(tmp_path), **SMALL))
    assert "\n" not in str(error.value)


def test_rejects_other_bad_input(planted, tmp_path):
    path, _ = planted
    config = {"samples": str(path), "out": str(tmp_path / "out"), **SMALL}
    for changes, message in (
        (
            {"samples": str(tmp_path / "none")},
            "samples must be an existing file or folder, got .*none",
        ),
        ({"samples": "nowhere.npz"}, "samples must be an existing file or folder, got nowhere.npz"),
        ({"num_heldout": 3}, "heldout must hold 4 or more images, got 3"),
        ({"run": str(tmp_path)}, "^run must be the folder of a training run, got"),
        ({"threshold": 0.0}, "threshold must be in .0, 1., got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate.run(Config(**{**config, **changes}))
    for name, side in (("a", 8), ("b", 9)):
        Image.new("L", (side, side)).save(tmp_path / f"{name}.png")
    with pytest.raises(ValueError, match=r"samples must have images of one size, got 2 sizes"):
        evaluate.run(Config(**{**config, "samples": str(tmp_path)}))
