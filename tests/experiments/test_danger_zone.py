"""The danger-zone command end to end, and its one-line errors."""

import csv
import dataclasses
import json
import re
import shutil
import subprocess
import sys
from concurrent.futures import BrokenExecutor

import jax
import numpy as np
import pytest
from PIL import Image

import geomem
from geomem.experiments import danger_zone
from geomem.experiments.common import command_line, results
from geomem.experiments.danger_zone import Config
from geomem.plots import style
from geomem.plots import zone as zone_plot

COLUMNS = (
    "sigma,coverage,coverage_low,coverage_high,coverage_lower_bound,coverage_upper_bound,"
    "max_weight,max_weight_low,max_weight_high,own_weight,own_weight_lower_bound,"
    "own_weight_upper_bound,entropy,entropy_low,entropy_high,effective_size,effective_size_low,"
    "effective_size_high"
)
# Small: digits, a coarse grid.
SMALL = Config(
    dataset="digits", num_train=60, num_heldout=40, num_sigmas=7, bootstrap=50, threshold=0.5
)


def small(tmp_path, **changes):
    return dataclasses.replace(SMALL, **{"out": str(tmp_path / "out"), **changes})


def command(*arguments, folder=None):
    return subprocess.run(
        [sys.executable, "-m", "geomem.experiments.danger_zone", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The command on digits: (completed process, its folder)."""
    out = tmp_path_factory.mktemp("run") / "deep" / "out"
    flags = "--dataset digits --num-train 60 --num-heldout 40 --num-sigmas 7 --bootstrap 50"
    return command(*flags.split(), "--threshold", "0.5", "--out", str(out)), out


def test_command_lists_the_files_it_writes(finished):
    process, out = finished
    assert process.returncode == 0, process.stderr
    assert {path.name for path in out.iterdir()} == {
        "curves.csv",
        "zone.json",
        "run.json",
        "figure.png",
        "figure.pdf",
    }
    lines = process.stdout.splitlines()
    wrote = {line.removeprefix("wrote ") for line in lines if line.startswith("wrote ")}
    assert wrote == {str(path) for path in out.iterdir()}
    assert lines[-len(wrote) - 1].startswith("Danger zone at threshold 0.5: sigma from")
    with Image.open(out / "figure.png") as image:
        assert image.size[0] > 900  # 3.4 inches at 300 dpi


def test_files_agree_with_each_other_and_with_python(finished, tmp_path):
    _, out = finished
    result = danger_zone.run(small(tmp_path))
    assert (out / "curves.csv").read_text().splitlines()[0] == COLUMNS
    columns, zone, run = zone_plot.read_run(out)
    np.testing.assert_allclose(columns["sigma"], np.geomspace(0.02, 80, 7), rtol=1e-6)
    # Another process with one device instead of eight finds the same numbers.
    np.testing.assert_allclose(columns["coverage"], result.curves.coverage.mean, atol=1e-6)
    np.testing.assert_allclose(columns["max_weight"], result.curves.max_weight.mean, atol=1e-5)
    assert zone["low"] == pytest.approx(result.zone.low, rel=1e-4)
    assert zone["low_interval"][0] <= zone["low"] <= zone["low_interval"][1]
    assert run["data"]["train"]["count"] == 60
    assert len(run["data"]["train"]["sha256"]) == 64
    assert run["config"]["num_sigmas"] == 7
    assert set(run["seconds"]) == {"data", "curves", "zone", "files", "figure"}
    assert run["environment"]["packages"]["jax"]


def test_plot_only_redraws_the_figure(finished, tmp_path):
    _, out = finished
    before = (out / "figure.pdf").read_bytes()
    (out / "figure.pdf").unlink()
    assert danger_zone.run(Config(plot_only=str(out))) is None
    assert (out / "figure.pdf").read_bytes() == before
    with pytest.raises(ValueError, match=r"plot_only must be a danger-zone run, got .*"):
        danger_zone.run(Config(plot_only=str(tmp_path)))


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("zone.json", r'"low": [\d.]+', '"low": NaN'),
        ("zone.json", r'"low": [\d.]+', '"low": 1e9'),
        ("zone.json", r'"high": [\d.]+', '"high": null'),
        ("zone.json", r'"threshold": [\d.]+', '"threshold": 5'),
        ("curves.csv", r"\n[\d.]+,[\d.]+", "\n0.02,1.5"),
        ("curves.csv", r"\n[\d.]+", "\nnan"),
        ("curves.csv", r"(?s)(\n.*?)(\n.*?)\n", r"\2\1\n"),
    ],
)
def test_plot_only_refuses_impossible_results(finished, tmp_path, name, old, new):
    folder = shutil.copytree(finished[1], tmp_path / "copy")
    text, count = re.subn(old, new, (folder / name).read_text(), count=1)
    assert count
    (folder / name).write_text(text)
    with pytest.raises(ValueError, match=r"^plot_only must be a danger-zone run, got "):
        danger_zone.run(Config(plot_only=str(folder)))


def test_names_with_dollar_signs_are_no_formulas(finished, tmp_path):
    columns, zone, facts = zone_plot.read_run(finished[1])
    facts["data"]["name"] = "a$_$b.npy"
    figure = zone_plot.danger_zone(columns, zone, danger_zone._title(facts))
    files = style.save(figure, tmp_path)
    assert all(file.stat().st_size for file in files)


def test_legend_explains_every_line(finished):
    columns, zone, _ = zone_plot.read_run(finished[1])
    figure = zone_plot.danger_zone(columns, zone)
    (axes,) = figure.axes
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert {line.get_label() for line in axes.lines} < set(labels)
    assert len(axes.lines) == 6  # two curves, two bounds, the noised image's weight, the threshold
    assert {"threshold 0.5", "danger zone"} < set(labels)
    assert len(labels) == len(set(labels))


def test_images_lists_every_training_image(tmp_path, capsys):
    """The most exposed image first, with its nearest other image and its copies."""
    images = geomem.load("digits").train_split.pixels[:50].copy()
    images[30] = images[20]
    np.save(tmp_path / "train.npy", images)
    data = {"dataset": str(tmp_path / "train.npy"), "heldout": "digits", "num_train": None}
    config = small(tmp_path, **data, images=True, draws_weight=64)
    result = danger_zone.run(config)
    with open(result.folder / "images.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert sorted(int(row["image"]) for row in rows) == list(range(50))
    levels = [float(row["exposed_up_to"]) for row in rows]
    assert levels == sorted(levels, reverse=True)
    vectors = np.float64(images.reshape(50, -1))
    for row in rows:
        i, nearest = int(row["image"]), int(row["nearest"])
        assert int(row["copies"]) == (i in (20, 30))
        squares = ((vectors - vectors[i]) ** 2).sum(axis=1)
        squares[i] = np.inf
        assert nearest == squares.argmin()
        assert float(row["distance"]) == pytest.approx(np.sqrt(squares.min()), abs=1e-5)
    # A far image keeps its weight longer: 0.5 has probability 0.02% for unrelated ranks.
    ranks = np.argsort([float(row["distance"]) for row in rows])
    assert np.corrcoef(ranks.argsort(), np.arange(50)[::-1])[0, 1] > 0.5
    assert f"Image {rows[0]['image']} is exposed up to the most noise" in capsys.readouterr().out
    with Image.open(result.folder / "images.png") as image:
        assert image.width == 2100
        assert image.height > 1800  # with the images


def test_classes_and_subsets_have_their_own_curves(tmp_path, capsys):
    config = small(
        tmp_path, num_train=60, num_heldout=None, by_class=True, subsets=3, sigmas=(0.3, 1.0, 3.0)
    )
    result = danger_zone.run(dataclasses.replace(config, classes=("0", "1")))
    tables = {}
    for name in ("class_zones", "class_curves", "subset_zones", "subset_curves"):
        with open(result.folder / f"{name}.csv", newline="") as file:
            tables[name] = list(csv.DictReader(file))
    assert [row["class"] for row in tables["class_zones"]] == ["0", "1"]
    assert sum(int(row["train"]) for row in tables["class_zones"]) == 60
    # The last class is estimated as if it were given alone.
    alone = small(tmp_path, classes=("1",), num_heldout=None, sigmas=config.sigmas)
    count = int(tables["class_zones"][1]["train"])
    alone = danger_zone.run(dataclasses.replace(alone, num_train=count, out=str(tmp_path / "one")))
    assert len(tables["class_curves"]) == 6
    assert [row["train"] for row in tables["subset_zones"]] == ["60"] * 3
    another = json.loads((result.folder / "another_set.json").read_text())
    values = np.reshape([float(row["max_weight"]) for row in tables["subset_curves"]], (3, 3))
    for s, (low, high) in enumerate(another["max_weight"]):
        assert low <= values[:, s].mean() <= high
        assert 0 <= low <= high <= 1
    assert "Another training set of 60 images" in capsys.readouterr().out
    ours = [float(row["coverage"]) for row in tables["class_curves"][3:]]
    np.testing.assert_allclose(ours, alone.curves.coverage.mean, atol=1e-6)


def test_empty_zone_has_null_edges_and_a_figure(tmp_path):
    result = danger_zone.run(small(tmp_path, sigma_max=0.05))
    assert result.zone.low is None
    assert json.loads((result.folder / "zone.json").read_text())["low"] is None
    assert (result.folder / "figure.png").exists()


def test_band_sets_the_dimension(tmp_path):
    low = danger_zone.run(small(tmp_path, band="low", radius=1.0))
    assert json.loads((low.folder / "run.json").read_text())["dimensions"] == 5


def test_paper_protocol_at_small_scale(tmp_path, monkeypatch):
    """The paper's protocol with smaller counts: fresh subsets and base points, 40 EDM levels."""
    monkeypatch.setattr(danger_zone, "_PAPER_TRIALS", 40)
    monkeypatch.setattr(danger_zone, "_PAPER_WEIGHT_DRAWS", 8)
    config = small(tmp_path, protocol="paper", num_train=120, num_sigmas=32)
    result = danger_zone.run(config)
    levels = np.linspace(0.002 ** (1 / 7), 80 ** (1 / 7), 40) ** 7
    np.testing.assert_allclose(result.curves.sigma, levels, rtol=1e-5)
    run = json.loads((result.folder / "run.json").read_text())
    assert run["data"]["train"]["count"] == 900  # the pool that subsets come from
    # The same curves as a standard estimate with subsets of that size, within sampling error.
    standard = danger_zone.run(
        small(tmp_path, num_train=120, subset_seed=1, sigmas=tuple(levels[15:30].tolist()))
    )
    for name in ("coverage", "max_weight"):
        one = getattr(result.curves, name).mean[15:30]
        other = getattr(standard.curves, name).mean
        assert np.abs(one - other).max() < 0.25
        assert np.abs(one - other).mean() < 0.05


def test_devices_and_streams_match_one_device(tmp_path, monkeypatch, capsys):
    """Use 90 images of 64 pixels: enough for the command to place them itself."""
    settings = {"num_train": 90, "num_sigmas": 3, "bootstrap": 5, "draws_coverage": 2}

    def found():
        curves = danger_zone.run(small(tmp_path, **settings)).curves
        return curves, capsys.readouterr().out

    sharded, said = found()
    assert "streamed" not in said
    monkeypatch.setattr(danger_zone.placement, "_memory", lambda device: 1000)
    streamed, said = found()
    assert "90 images do not fit in memory and are streamed" in said
    monkeypatch.setattr(danger_zone.placement, "place", lambda split: split.images.reshape(90, 64))
    one, _ = found()
    for curves in (sharded, streamed):
        for ours, wanted in zip(jax.tree.leaves(curves), jax.tree.leaves(one), strict=True):
            np.testing.assert_allclose(ours, wanted, rtol=2e-4, atol=2e-6)


def test_explicit_and_edm_grids(tmp_path):
    grid = danger_zone.sigma_grid(small(tmp_path, sigmas=(0.5, 1.0, 3.0)))
    np.testing.assert_array_equal(grid, np.float32([0.5, 1, 3]))
    edm = danger_zone.sigma_grid(small(tmp_path, grid="edm", num_sigmas=18, sigma_min=0.002))
    # EDM's 18 steps, from the paper: sigma_1 = 80 * ... ; the ends and the rho-spacing define it.
    assert (edm[0], edm[-1]) == pytest.approx((0.002, 80), rel=1e-5)
    np.testing.assert_allclose(
        np.diff(np.float64(edm) ** (1 / 7)), np.diff(edm ** (1 / 7))[0], rtol=1e-3
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sigmas": (0.0, 1.0)}, "sigmas must be positive and finite, got 0"),
        ({"sigmas": (float("nan"),)}, "sigmas must be positive and finite, got nan"),
        ({"sigmas": (2.0, 1.0)}, "sigmas must be ascending, got 2 before 1"),
        ({"num_sigmas": 0}, "num_sigmas must be 2 or more, got 0"),
        ({"sigma_min": 0.0}, "sigma_min and sigma_max must be .*, got 0 and 80"),
        ({"sigma_max": 0.01}, "sigma_min and sigma_max must be .*, got 0.02 and 0.01"),
        ({"rho": 0.0}, "rho must be positive, got 0"),
        ({"shell_c": 0.0}, "shell_c must be positive and finite, got 0"),
        ({"threshold": 1.0}, "threshold must be between 0 and 1, got 1"),
        ({"num_train": 901}, r"count \(--num-train\) must be between 1 and 900, .*, got 901"),
        ({"num_train": 1}, "num_train must leave at least 2 training images, got 1"),
        ({"bootstrap": 0}, "bootstrap must be at least 1, got 0"),
        ({"classes": ("car",)}, "classes must be among those of digits .*, got 'car'"),
        ({"heldout": "cifar10_sample"}, r"heldout must .* shape \(8, 8, 1\) .*, got \(32, 32, 3\)"),
        (
            {"protocol": "paper", "num_sigmas": 32, "num_train": 99},
            "num_train must be between 100 and 900 .* 99",
        ),
        (
            {"protocol": "paper", "num_sigmas": 32, "images": True},
            "images must be left out with the paper's protocol",
        ),
        ({"subsets": 16}, "subsets must be at least 3, and .* fit in 900, got 16 of 60"),
        ({"radius": -1.0, "band": "low"}, "radius must leave a frequency in the low band, got -1"),
    ],
)
def test_rejects_bad_settings(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message) as error:
        danger_zone.run(small(tmp_path, **changes))
    assert "\n" not in str(error.value)


def test_warns_about_copies(tmp_path, capsys):
    pixels = np.random.default_rng(0).integers(0, 256, (60, 8, 8, 1), dtype=np.uint8)
    pixels[5] = pixels[3]
    np.save(tmp_path / "train.npy", pixels)
    config = small(
        tmp_path, dataset=str(tmp_path / "train.npy"), heldout=str(tmp_path / "train.npy")
    )
    danger_zone.run(config)
    with pytest.raises(ValueError, match=r"by_class must have images with classes, got .*npy"):
        danger_zone.run(dataclasses.replace(config, by_class=True))
    warnings = capsys.readouterr().err
    assert "warning: 1 of 60 training images are exact copies of others" in warnings
    assert "warning: 40 of 40 held-out images are also training images" in warnings


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--dataset", "no_such"], "error: --dataset must be cifar10_sample, cifar10,"),
        (["--out", "/proc/geomem"], "error: --out must be a writable folder, got /proc/geomem"),
    ],
)
def test_reports_errors_in_one_line(flags, line, tmp_path):
    process = command(*flags, folder=tmp_path)  # without the runs of a newcomer
    assert process.returncode == 2
    assert process.stderr.startswith(line)
    assert process.stderr.count("\n") == 1
    assert process.stdout == ""


@pytest.mark.parametrize("kind", [BrokenExecutor, jax.errors.JaxRuntimeError, MemoryError])
def test_reports_short_memory_in_one_line(kind, capsys, monkeypatch):
    def run(config):
        raise kind("no room\nfor this")

    monkeypatch.setattr(sys, "argv", ["command"])
    with pytest.raises(SystemExit) as end:
        command_line.main(Config, run)
    assert end.value.code == 2
    assert capsys.readouterr().err == f"error: {kind.__name__}: no room\n"


def test_help_lists_every_flag():
    assert command("--no-such-flag").returncode == 2
    process = command("--help")
    assert process.returncode == 0
    for field in dataclasses.fields(Config):
        assert f"--{field.name.replace('_', '-')}" in process.stdout


def test_curves_csv_has_one_row_for_each_sigma(finished):
    with open(finished[1] / "curves.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert len(rows) == 8
    assert {len(row) for row in rows} == {18}


def test_written_results_do_not_make_the_commit_dirty(tmp_path, monkeypatch):
    code, saved = tmp_path / "geomem/__init__.py", tmp_path / "experiments/x/results/a.csv"
    for path in (code, saved):
        path.parent.mkdir(parents=True)
        path.write_text("1")
    author = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "."], [*author, "commit", "-qm", "1"]):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True)
    monkeypatch.delenv("GEOMEM_COMMIT", raising=False)
    monkeypatch.setattr(geomem, "__file__", str(code))
    saved.write_text("2")
    clean = results.environment()["commit"]
    assert len(clean) == 12
    code.write_text("2")
    assert results.environment()["commit"] == f"{clean}-dirty"
