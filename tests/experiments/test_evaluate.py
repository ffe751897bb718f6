"""The evaluate command end to end on planted copies, and its one-line errors."""

import csv
import dataclasses
import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from geomem import data
from geomem.experiments import evaluate
from geomem.experiments.common import command_line, dataclass_flags
from geomem.experiments.evaluate import Config, generated
from geomem.metrics import planted as planted_copies
from geomem.plots import pairs

SMALL = {"dataset": "digits", "num_train": 64, "num_heldout": 200, "no_self_test": True}
COLUMNS = [
    *("sample", "file", "nearest", "nearest_file", "distance", "ratio"),
    *("aligned_ratio", "transform", "group", "strict", "copy"),
]


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
    _, result = planted
    report, scores = result.report, result.frechet
    assert 20 <= report.memorized.count < 30
    assert report.without_noise.count in (29, 30)
    assert report.memorized_heldout.count <= 1
    assert result.summary["copies"].count >= report.memorized.count
    assert result.summary["copied"] == result.copies.copy.sum()
    assert set(scores) == {"train", "heldout"}
    assert scores["train"].features == "pixels"


def test_files_hold_the_result(planted):
    _, (report, copies, _, scores, folder, _) = planted
    assert {path.name for path in folder.iterdir()} == {
        "report.json",
        "samples.csv",
        "pairs.png",
        "pairs.pdf",
        "ratios.png",
        "ratios.pdf",
        "run.json",
        "evaluation.html",
    }
    saved = json.loads((folder / "report.json").read_text())
    assert saved["memorized"]["count"] == report.memorized.count
    assert saved["frechet"]["heldout"]["value"] == pytest.approx(scores["heldout"].value)
    with open(folder / "samples.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["nearest"]) for row in rows[:30]] == list(range(30))
    assert list(rows[0]) == COLUMNS
    assert [int(row["copy"]) for row in rows] == copies.copy.astype(int).tolist()
    assert [int(row["strict"]) for row in rows] == report.strict_memorized.astype(int).tolist()
    assert (rows[3]["file"], rows[3]["nearest_file"]) == ("samples.npz:3", "digits:3")
    assert np.median(report.noise[:20]) == pytest.approx(0.03, rel=0.25)
    assert json.loads((folder / "run.json").read_text())["data"]["train"]["count"] == 64
    with Image.open(folder / "pairs.png") as page:
        assert page.size[0] == 2100  # a page's 7 inches at 300 dpi


def test_reads_folder_of_8_bit_images(planted, tmp_path):
    """Quantized to 8 bits, the same samples copy the same images."""
    path, result = planted
    report = result.report
    images = np.load(path)["images"][..., 0]
    folder = tmp_path / "samples"
    folder.mkdir()
    for i, image in enumerate(images):
        pixels = np.clip(np.rint((image + 1) * 127.5), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")  # 10.png comes after 9.png
    config = Config(samples=str(folder), out=str(tmp_path / "out"), **SMALL)
    found = evaluate.run(config)
    np.testing.assert_array_equal(found.report.samples.index[:30, 0], report.samples.index[:30, 0])
    assert abs(found.report.memorized.count - report.memorized.count) <= 2
    # --resize then applies only to the samples: named data sets have a fixed size.
    enlarged = dataclasses.replace(config, resize=16)
    with pytest.raises(
        ValueError, match=r"samples must have the shape \(8, 8, 1\).* got \(16, 16, .\)"
    ):
        evaluate.run(enlarged)


def test_reads_samples_of_other_libraries(planted, tmp_path):
    """[N, C, H, W] in [0, 1], as PyTorch code writes them."""
    path, _ = planted
    images = np.moveaxis(np.clip(np.load(path)["images"] / 2 + 0.5, 0, 1), 3, 1)
    np.save(tmp_path / "samples.npy", images)
    config = Config(samples=str(tmp_path / "samples.npy"), **SMALL)
    with pytest.raises(ValueError, match=r"samples must come with --samples-layout NCHW"):
        generated.load(config)
    config = dataclasses.replace(config, samples_layout="NCHW")
    with pytest.raises(ValueError, match=r"samples must hold .*: --samples-range 0 1 for images"):
        generated.load(config)
    words = ["--samples", config.samples, "--samples-range", "0", "1", "--range", "0", "1"]
    parsed, _ = dataclass_flags.parse(Config, words, "geomem evaluate")
    assert parsed.range == parsed.samples_range == (0, 1)
    inputs = generated.load(dataclasses.replace(config, samples_range=parsed.samples_range))
    np.testing.assert_allclose(inputs.samples, np.clip(np.load(path)["images"], -1, 1), atol=1e-6)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_draws_pairs_with_any_number_of_channels(channels):
    """Draw three channels in color, and others in gray, by the mean of the channels."""
    images = np.full((1, 2, 2, channels), 100, np.uint8)
    images[..., 0] += 2 * channels
    (axes,) = pairs.pairs(images, images, ["0.10"], [True]).axes
    page = axes.images[0].get_array()
    colors, counts = np.unique(page.reshape(-1, 3), axis=0, return_counts=True)
    color = [106, 100, 100] if channels == 3 else 3 * [102]
    assert colors.tolist() == [color, 3 * [255]]
    assert counts[0] == 2 * 64**2  # the sample and the training image


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
        no_self_test=True,
    )
    result = evaluate.run(config)
    assert result.copies.nearest.tolist() == [3, 7]
    assert result.summary["copies"].count == 2
    assert result.frechet == {}
    # Weights that the user names are used, or the error names the mistake.
    monkeypatch.setenv("GEOMEM_INCEPTION", str(tmp_path / "absent.pth"))
    with pytest.raises(ValueError, match=r"inception must be .* got .*absent\.pth"):
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
        (np.full((5, 8, 8), np.nan), "samples must be finite .* got 320 values that"),
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


@pytest.mark.parametrize("heldout", [None, 0.2])
def test_every_training_image_is_found(heldout, tmp_path):
    """Without --heldout, no image of an array is left out, and no false alarms are counted."""
    images = data.load("digits").train[:100]
    np.save(tmp_path / "train.npy", images)
    config = Config(
        samples=str(tmp_path / "train.npy"),
        dataset=str(tmp_path / "train.npy"),
        heldout=heldout,
        no_self_test=True,
        features="none",
        out=str(tmp_path / "out"),
    )
    if heldout is None:
        summary = evaluate.run(config).summary
        assert (summary["copies"].count, summary["copies"].total) == (100, 100)
        assert summary["copies_heldout"] is None
        return
    inputs = generated.load(config)
    np.save(tmp_path / "kept.npy", inputs.dataset.train)
    result = evaluate.run(dataclasses.replace(config, samples=str(tmp_path / "kept.npy")))
    assert result.summary["copies"].rate == 1
    assert result.summary["copies_heldout"].total == 20


def test_names_the_change_of_each_copy(tmp_path):
    """Mirrored, shifted and brightened photographs, and near-duplicates in the training set."""
    train = data.load("cifar10_sample").train[:40]
    doubled = np.concatenate([train, train[:4] + np.float32(0.004)])
    samples = np.concatenate(
        [
            np.flip(train[8:12], 2),
            np.roll(train[16:20], 2, 1),
            0.7 * train[24:28] - 0.2,
            train[:4] + 0.02 * np.random.default_rng(0).standard_normal(train[:4].shape),
        ]
    ).astype(np.float32)
    for name, images in (("train", np.clip(doubled, -1, 1)), ("samples", samples)):
        np.save(tmp_path / f"{name}.npy", images)
    config = Config(
        samples=str(tmp_path / "samples.npy"),
        dataset=str(tmp_path / "train.npy"),
        out=str(tmp_path / "out"),
        fail_above=0.5,
    )
    result = evaluate.run(config)
    assert result.copies.copy.all()
    assert result.copies.nearest[:12].tolist() == [*range(8, 12), *range(16, 20), *range(24, 28)]
    assert result.copies.transform[:8] == 4 * ["flip"] + 4 * ["shift -2 +0"]
    assert result.copies.transform[8:] == 4 * ["brightness"] + 4 * ["none"]
    assert not result.report.strict_memorized[12:].any()  # the definition without groups
    assert result.exit_code == 1
    recall = result.summary["self_test"]
    assert recall["flip"]["pixels"].rate < 0.2 < 0.9 < recall["flip"]["verdict"].rate
    assert recall["rotation by 10 degrees"]["verdict"].rate < 0.5
    assert "rotation by 10 degrees" in " ".join(result.summary["verdict"])


@pytest.mark.parametrize("shape", [(4, 4, 16), (256,)])
def test_latents_are_compared_as_they_are(shape, tmp_path):
    rng = np.random.default_rng(0)
    train = 5 * rng.standard_normal((40, *shape)).astype(np.float32)
    np.savez(tmp_path / "latents.npz", train=train[:30], test=train[30:])
    np.save(tmp_path / "samples.npy", train[:3] + 0.1)
    config = Config(
        samples=str(tmp_path / "samples.npy"),
        dataset=str(tmp_path / "latents.npz"),
        features="none",
        out=str(tmp_path / "out"),
    )
    result = evaluate.run(config)
    assert result.copies.copy.all()
    assert list(result.summary["detectors"]) == ["pixels"]
    assert result.summary["self_test"] == {}


def test_fails_above_a_rate(planted, tmp_path, monkeypatch):
    path, _ = planted
    words = ["--samples", str(path), "--dataset", "digits", "--num-train", "64"]
    words += ["--no-self-test", "--num-heldout", "200", "--features", "none"]
    for limit, code in (("0.5", 1), ("0.9", 0)):
        command = ["evaluate", *words, "--fail-above", limit, "--out", str(tmp_path / limit)]
        monkeypatch.setattr("sys.argv", command)
        if code:
            with pytest.raises(SystemExit) as end:
                command_line.main(Config, evaluate.run)
            assert end.value.code == code
        else:
            command_line.main(Config, evaluate.run)


def test_searches_in_given_features(planted, tmp_path):
    """Features of a file, in which only the last two samples are copies."""
    path, _ = planted
    samples = np.load(path)["images"][-4:]
    np.save(tmp_path / "samples.npy", samples)
    rng = np.random.default_rng(0)
    train, heldout = rng.normal(size=(64, 5)), rng.normal(size=(200, 5))
    features = np.concatenate([heldout[:2], train[7:9] + 1e-3]).astype(np.float32)
    np.savez(tmp_path / "features.npz", samples=features, train=train, heldout=heldout)
    config = Config(
        samples=str(tmp_path / "samples.npy"),
        features=str(tmp_path / "features.npz"),
        out=str(tmp_path / "out"),
        **SMALL,
    )
    result = evaluate.run(config)
    assert result.copies.copy.tolist() == [False, False, True, True]
    assert result.copies.nearest[2:].tolist() == [7, 8]
    assert result.summary["detectors"]["features"]["copies_heldout"].total == 200
    np.savez(tmp_path / "features.npz", samples=features, train=train)
    with pytest.raises(ValueError, match="features must hold samples, train, heldout, got"):
        evaluate.run(config)
    with pytest.raises(ValueError, match=r"features must be auto, .* got pixel \(it is not"):
        evaluate.run(dataclasses.replace(config, features="pixel"))


def test_embedding_finds_and_is_tested_by_planted_copies(tmp_path):
    pytest.importorskip("onnxruntime")
    train = data.load("cifar10_sample").train[:32, ::2, ::2]
    np.save(tmp_path / "train.npy", train)
    np.save(tmp_path / "samples.npy", train[:4] + np.float32(0.01))
    config = Config(
        samples=str(tmp_path / "samples.npy"),
        dataset=str(tmp_path / "train.npy"),
        embedding=str(pathlib.Path(__file__).parents[1] / "data" / "blocks.onnx"),
        out=str(tmp_path / "out"),
    )
    summary = evaluate.run(config).summary
    assert summary["detectors"]["features"]["copies"].count == 4
    assert summary["self_test"]["exact"]["features"].rate == 1
    assert summary["self_test"]["flip"]["features"].rate < 0.5
    assert summary["quality"]["train"]["frechet"].features == "blocks.onnx"


@pytest.mark.slow
def test_finds_planted_copies_among_photographs(tmp_path):
    """Every kind of copy of CIFAR-10 images, some of which have a near-duplicate in training."""
    dataset, rng = data.load("cifar10_sample"), np.random.default_rng(0)
    train = dataset.train
    near = train[:60].copy()
    near[:20, 5, 5] = np.clip(near[:20, 5, 5] + 2 / 255, -1, 1)  # a pixel by a gray level
    near[20:40] = planted_copies.plant("JPEG 75", near[20:40])
    near[40:] = np.clip(near[40:] + 0.02 * rng.standard_normal(near[40:].shape), -1, 1)
    kinds = [kind for kind in planted_copies.kinds((32, 32, 3)) if "all" not in kind][:10]
    assert len(kinds) == 10
    parts = [train[:60] + 0.02 * rng.standard_normal((60, 32, 32, 3))]
    source = [np.arange(60)]
    for kind in kinds:
        source.append(rng.choice(1000, 20, replace=False))
        parts.append(planted_copies.plant(kind, train[source[-1]]))
    np.savez(tmp_path / "train.npz", train=np.concatenate([train, near]), test=dataset.test[:500])
    np.save(tmp_path / "samples.npy", np.float32(np.concatenate(parts)))
    config = Config(
        samples=str(tmp_path / "samples.npy"),
        dataset=str(tmp_path / "train.npz"),
        no_self_test=True,
        out=str(tmp_path / "out"),
    )
    result = evaluate.run(config)
    found = result.copies.copy & (result.copies.nearest % 1000 == np.concatenate(source))
    assert (found[:60].reshape(3, 20).sum(axis=1) >= 19).all()
    assert (found[60:].reshape(10, 20).sum(axis=1) >= 19).all()
    assert result.summary["copies_heldout"].count <= 1
    assert result.report.strict_memorized[:20].sum() == 0  # the paper's definition finds none
