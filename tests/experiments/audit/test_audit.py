"""The audit end to end: its files, planted copies, its page, and one-line answers to bad input."""

import dataclasses
import html.parser
import json
import pathlib
import shlex
import subprocess
import sys
import types

import numpy as np
import pytest
from PIL import Image

from geomem import data
from geomem.data import sources
from geomem.diffusion import conventions, grids, schedules
from geomem.experiments.audit import command, findings, page, recipes
from geomem.experiments.audit.command import Config
from geomem.experiments.common import arguments, flags
from geomem.experiments.train import PRESETS, configuration
from geomem.geometry import danger_zone

NAME = "a $name <b>&"  # must come out as text
PLANTED = {70: 3, 71: 4, 12: 5, 33: 6}  # copy: source; the odd sources are exact


def small(tmp_path, dataset, **changes):
    config = Config(str(dataset), num_sigmas=7, max_noised=40, threshold=0.5, growth=False)
    return dataclasses.replace(config, **{"out": str(tmp_path / "out"), **changes})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """100 PNGs of digits; four repeat others, two of them exactly."""
    rng = np.random.default_rng(0)
    pixels = np.rint((data.load("digits").train[:100, :, :, 0] + 1) * 127.5)
    for copy, source in PLANTED.items():
        noise = rng.normal(0, 2, (8, 8)) * (source % 2 == 0)
        pixels[copy] = np.clip(np.rint(pixels[source] + noise), 0, 255)
    path = tmp_path_factory.mktemp("images") / NAME
    path.mkdir()
    for i, image in enumerate(pixels.astype(np.uint8)):
        Image.fromarray(image).save(path / f"{i:03d}.png")
    return path


@pytest.fixture(scope="module")
def finished(folder, tmp_path_factory):
    return command.run(small(tmp_path_factory.mktemp("audit"), folder, growth=True))


class Page(html.parser.HTMLParser):
    """Collects tags, what is loaded, and text."""

    def __init__(self, text):
        super().__init__()
        self.open, self.loaded, self.words = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)
        self.loaded += [value for name, value in attributes if name in ("src", "href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def test_all_planted_copies_are_found_and_set_aside(finished):
    groups = finished.report["duplicates"]["groups"]
    expected = {frozenset({f"{a:03d}.png", f"{b:03d}.png"}) for a, b in PLANTED.items()}
    assert {frozenset(group["images"]) for group in groups} == expected
    assert sum(group["exact"] for group in groups) == 2
    dataset = finished.report["dataset"]
    left = sum(not out for group in groups for out in group["held_out"][1:])
    assert dataset["train"] == 80
    assert dataset["different_train"] == 80 - left


def test_files_and_numbers_agree(finished):
    folder = finished.page.parent
    names = {path.name for path in folder.iterdir()}
    figures = {f"{n}.{s}" for n in ("curves", "growth", "training_noise") for s in ("png", "pdf")}
    assert names == figures | {"audit.html", "audit.json", "zone.json", "curves.csv", "run.json"}
    report = json.loads((folder / "audit.json").read_text())
    zone = json.loads((folder / "zone.json").read_text())
    assert report["zone"] == zone
    low, high = report["recommendation"]["gap"]
    assert (low, high) == pytest.approx((zone["low"], zone["high"]), rel=5e-3)
    noise = conventions.usual_training_noise()[2]
    assert report["training_noise"][2]["share"] == noise.share(zone["low"], zone["high"])
    sigmas = conventions.ddpm_sigmas(conventions.cosine_betas())
    first, last = report["recommendation"]["ddpm_timesteps"]["cosine"]
    assert sigmas[first - 1] < low <= sigmas[first] <= sigmas[last] <= high < sigmas[last + 1]
    start, end = report["recommendation"]["flow_time"]
    assert (start / (1 - start), end / (1 - end)) == pytest.approx((low, high), rel=1e-3)
    assert report["growth"]["count"][-1] == report["dataset"]["different_train"]
    run = json.loads((folder / "run.json").read_text())
    assert run["data"]["train"]["count"] == 80
    assert run["config"]["dataset"] == NAME  # not the path, which tells of a machine


def test_the_page_is_whole_escaped_and_loads_nothing(finished):
    text = finished.page.read_text()
    parsed = Page(text)
    assert parsed.open == []
    assert len(parsed.loaded) == 3 + 2 * len(PLANTED)  # figures, thumbnails
    assert all(source.startswith("data:image/") for source in parsed.loaded)
    assert "http" not in text.replace("http://www.w3.org", "")
    words = " ".join(parsed.words)
    assert words.count(NAME) >= 3  # the title, the heading, the command
    assert NAME not in text
    assert "$" not in words.replace(NAME, "")
    for answer in (page.headline(finished.report), "78.8%", "geomem.experiments.train"):
        assert answer in words


def test_no_zone_is_an_answer(tmp_path, folder):
    result = command.run(small(tmp_path, folder, sigma_max=0.05))
    assert result.report["verdict"] == "none"
    assert result.report["recommendation"] is None
    words = " ".join(Page(result.page.read_text()).words)
    assert page.headline(result.report) in words
    assert "No gap to recommend" in words


def test_three_images(tmp_path):
    images = data.load("digits").train[:3]
    np.save(tmp_path / "three.npy", images)
    result = command.run(small(tmp_path, tmp_path / "three.npy"))
    assert result.report["dataset"]["train"] == 2
    assert "2 training images are few" in dict(page.answers(result.report))["How sure?"]
    train = data.load(str(tmp_path / "three.npy")).train
    assert result.report["dataset"]["mean"] == pytest.approx(train.mean(), abs=1e-6)
    assert result.report["dataset"]["standard_deviation"] == pytest.approx(train.std(), abs=1e-6)


def test_a_folder_named_as_a_data_set_is_not_it(tmp_path, monkeypatch):
    (tmp_path / "digits").mkdir()
    monkeypatch.chdir(tmp_path)
    assert not sources.is_folder("digits")
    assert sources.is_folder("./digits")


ZONE = danger_zone.Zone(0.44, 0.66, 0.5, 0.9, 0.8, (0.4, 0.5), (0.6, 0.7), 1.0, False, False)


def test_the_command_names_the_data_and_a_recipe_of_its_size():
    config = Config("my images", heldout="other.npz", resize=32, num_train=50, classes=("a b", "c"))
    command = findings.recommendation(config, ZONE, 50)["command"]
    assert shlex.split(command)[3:] == [
        *("edm_small", "--dataset", "my images", "--heldout", "other.npz", "--resize", "32"),
        *("--classes", "a b", "c", "--num-train", "50", "--gap", "0.44", "0.66"),
        *("--out", "runs/gap"),
    ]
    large = findings.recommendation(Config("cifar10"), ZONE, 50_000)["command"]
    assert "train edm_cifar10 --dataset cifar10 --num-train 50000 --gap" in large


@pytest.mark.parametrize(
    "changes",
    [
        {"dataset": "digits"},
        {"dataset": "digits", "num_train": 50},
        {"dataset": "digits", "num_train": 50, "subset_seed": 1},
        {"heldout_seed": 3},
        {"heldout": 0.5, "heldout_seed": 3, "resize": 4, "num_train": 20, "subset_seed": 2},
    ],
)
def test_the_command_trains_on_the_same_images(folder, changes):
    config = Config(**{"dataset": str(folder), **changes})
    audited = flags.load(config).train_split
    command = findings.recommendation(config, ZONE, len(audited))["command"]
    given = shlex.split(command)[3:]
    parsed, _ = arguments.parse(type(PRESETS["digits"]), given, "geomem train", presets=PRESETS)
    assert configuration.load_data(parsed).train_split.sha256() == audited.sha256()
    assert configuration.resolve(parsed).gap == (0.44, 0.66)


def test_the_pages_line_is_that_of_the_results():
    results = pathlib.Path(__file__).parents[3] / "experiments"
    report = json.loads((results / "audit/results/cifar10_sample/audit.json").read_text())
    zone = json.loads((results / "danger_zone/results/cifar10_50k/zone.json").read_text())
    grown = report["growth"]
    width = np.log(np.divide(grown["left"], grown["reached"]))
    line = np.polyfit(np.log(grown["count"]), width, 1)
    assert (min(grown["count"]), max(grown["count"])) == (125, 1000)
    predicted, measured = np.polyval(line, np.log(50_000)), np.log(zone["high"] / zone["low"])
    assert f"a width of {predicted:.2f} at 50,000, where {measured:.2f} was" in page.LINE


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"threshold": 1.0}, "threshold: 1, wanted between 0 and 1"),
        ({"duplicate_threshold": 0.0}, "duplicate_threshold: 0, wanted between 0 and 1"),
        ({"max_noised": 0}, "max_noised: 0, wanted 1 or more"),
        ({"num_sigmas": 1}, "num_sigmas must be 2 or more, got 1"),
        ({"sigma_min": 90.0}, "sigma_min and sigma_max must be .*, got 90 and 80"),
        ({"heldout": "cifar10_sample"}, r"heldout must .* shape \(8, 8, 1\) .*, got \(32, 32, 3\)"),
        ({"heldout": "no_such"}, "dataset must be cifar10_sample, .*, got 'no_such'"),
    ],
)
def test_bad_settings_are_named(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message) as error:
        command.run(small(tmp_path, "digits", **changes))
    assert "\n" not in str(error.value)


def test_only_copies_are_no_data_set(tmp_path):
    np.save(tmp_path / "same.npy", np.full((20, 8, 8, 1), 7, np.uint8))
    with pytest.raises(ValueError, match="dataset: 1 different training and 0 different held-out"):
        command.run(small(tmp_path, tmp_path / "same.npy"))


def test_the_command_line(tmp_path):
    for i in range(4):
        Image.fromarray(np.zeros((8, 8 + i), np.uint8)).save(tmp_path / f"{i}.png")
    command = [sys.executable, "-m", "geomem.experiments.audit"]
    process = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, check=False)
    assert process.returncode == 2
    assert process.stderr.startswith("error: --dataset must")
    assert "--resize SIDE" in process.stderr
    assert process.stderr.count("\n") == 1


def _fake_torch(rng):
    """As much of torch as the settings use, made of NumPy."""

    class Array(np.ndarray):
        def to(self, device):
            return self

        def exp(self):
            return np.exp(self)

        def new_tensor(self, values):
            return array(values)

        def sort(self, descending):
            return types.SimpleNamespace(values=array(np.sort(np.asarray(self))[::-1]))

    def array(values):
        return np.asarray(values).view(Array)

    return types.SimpleNamespace(
        randn_like=lambda x: array(rng.normal(size=x.shape)),
        rand=lambda n: array(rng.uniform(size=n)),
        where=lambda c, a, b: array(np.where(c, a, b)),
        nonzero=lambda c: array(np.argwhere(c)),
        randint=lambda low, high, shape: rng.integers(low, high, shape),
        cat=lambda arrays: array(np.concatenate(arrays)),
        array=array,
    )


def test_settings_run_and_leave_the_gap_out(rng):
    advice = {
        "edm_sigma": [1.7, 5.0],
        "ddpm_timesteps": {"linear": [383, 573], "cosine": None},
        "flow_time": [0.6296, 0.8333],
        "command": "python",
    }
    (_, command), (_, edm), (_, sampler), (title, ddpm), (_, flow) = recipes.settings(advice)
    assert command == "python"
    assert "linear betas t = 383..573, cosine betas none" in title
    torch = _fake_torch(rng)
    names = {"torch": torch, "self": types.SimpleNamespace(P_mean=-1.2, P_std=1.2)}
    names["sigma"] = torch.array(np.exp(rng.normal(-1.2, 1.2, 4000)))
    exec(edm, names)
    assert not ((names["sigma"] > 1.7) & (names["sigma"] < 5)).any()
    assert (names["sigma"] > 5).any()
    assert (names["sigma"] < 1.7).any()

    names["t_steps"] = torch.array(grids.edm_grid(18))
    exec(sampler, names)
    over = grids.skip_gaps(grids.edm_grid(18), schedules.gap(schedules.lognormal(), 1.7, 5.0))
    np.testing.assert_array_equal(names["t_steps"], over)

    betas = conventions.linear_betas()
    sigmas = conventions.ddpm_sigmas(betas)
    names["noise_scheduler"] = types.SimpleNamespace(
        alphas_cumprod=torch.array(np.cumprod(1 - betas))
    )
    names |= {"bsz": 4000, "clean_images": types.SimpleNamespace(device=None)}
    exec(ddpm, names)
    drawn = sigmas[names["timesteps"]]
    assert not ((drawn > 1.7) & (drawn < 5)).any()
    assert drawn.min() < 0.1
    assert drawn.max() > 100

    names["batch"] = 4000
    exec(flow, names)
    assert not ((names["t"] > 0.6296) & (names["t"] < 0.8333)).any()
