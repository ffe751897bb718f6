"""The audit end to end: files, planted duplicates, the page, and one-line errors."""

import dataclasses
import html.parser
import json
import pathlib
import re
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
from geomem.experiments import evaluate as evaluate_command
from geomem.experiments import sample as sample_command
from geomem.experiments.audit import command, findings, recipes, verdict
from geomem.experiments.audit.command import Config
from geomem.experiments.common import dataclass_flags, image_flags
from geomem.experiments.train import PRESETS, configuration
from geomem.geometry import danger_zone, growth
from geomem.plots import audit_figures

NAME = "a $name <b>&"  # has to be escaped
PLANTED = {70: 3, 71: 4, 12: 5, 33: 6}  # copy: source; copies of odd sources are exact
REPOSITORY = pathlib.Path(__file__).parents[3]
FACTS = {"train": 50, "standard_deviation": 0.5}


def small(tmp_path, dataset, **changes):
    """Return the configuration of a quick audit."""
    config = Config(str(dataset), num_sigmas=7, max_noised=40, threshold=0.5, growth=False)
    return dataclasses.replace(config, **{"out": str(tmp_path / "out"), **changes})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """100 PNGs of digits; four are copies of others, two of them exact."""
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
    """The result of an audit that most tests share."""
    return command.run(small(tmp_path_factory.mktemp("audit"), folder, growth=True))


class Page(html.parser.HTMLParser):
    """Collects open tags, external resources and text."""

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


def test_finds_and_drops_planted_duplicates(finished):
    groups = finished.report["duplicates"]["groups"]
    expected = {frozenset({f"{a:03d}.png", f"{b:03d}.png"}) for a, b in PLANTED.items()}
    assert {frozenset(group["images"]) for group in groups} == expected
    assert sum(group["exact"] for group in groups) == 2
    dataset = finished.report["dataset"]
    dropped = sum(not heldout for group in groups for heldout in group["held_out"][1:])
    assert dataset["train"] == 80
    assert dataset["different_train"] == 80 - dropped


def test_files_agree_with_each_other(finished):
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
    assert run["config"]["dataset"] == NAME  # no absolute paths
    assert str(folder.parent) not in (folder / "run.json").read_text().replace(str(folder), "")


def test_page_is_complete_and_self_contained(finished):
    text = finished.page.read_text()
    parsed = Page(text)
    assert parsed.open == []
    assert len(parsed.loaded) == 3 + 2 * len(PLANTED)  # figures, thumbnails
    assert all(source.startswith("data:image/") for source in parsed.loaded)
    assert "http" not in text.replace("http://www.w3.org", "")
    words = " ".join(parsed.words)
    assert words.count(NAME) >= 3  # title, heading and command
    assert NAME not in text
    assert "$" not in words.replace(NAME, "")
    for text in (verdict.headline(finished.report), "78.8%", "geomem train", "arXiv 2301.13188"):
        assert text in words
    for question, answer in verdict.answers(finished.report):
        assert question in words
        assert answer in words


def test_advises_duplicates_then_early_stopping_then_a_gap(finished):
    leads = [lead for lead, _ in recipes.steps(finished.report)]
    assert [lead.split()[0] for lead in leads] == ["Remove", "Stop", "Consider"]
    advice = dict(verdict.answers(finished.report))["What should I do?"]
    parts = ("Remove duplicates", "stop training", "leave the danger zone out")
    order = [advice.index(part) for part in parts]
    assert order == sorted(order)


def test_does_not_extrapolate(finished):
    closing = finished.report["growth"]["closing"]
    assert set(closing) == {"slope", "slope_interval"}
    answer = dict(verdict.answers(finished.report))["Would more images help?"]
    largest = finished.report["dataset"]["different_train"]
    assert f"Nothing is known about more than {largest} images" in answer


@pytest.mark.parametrize(
    ("interval", "trend"),
    [
        ((-0.06, -0.04), "narrower: the ratio of its upper to its lower edge falls by 4.9%"),
        ((-0.11, 0.01), "does not clearly change"),
        ((0.01, 0.02), "wider"),
    ],
)
def test_describes_the_trend_with_more_images(finished, interval, trend):
    closing = {"slope": sum(interval) / 2, "slope_interval": interval}
    report = finished.report | {"growth": {"count": [10, 80], "closing": closing}}
    assert trend in dict(verdict.answers(report))["Would more images help?"]


@pytest.mark.parametrize("edges", [(np.nan, np.nan), (2.0, np.nan), (2.0, 4.0)])
def test_growth_figure_stays_within_the_measured_sizes(edges):
    count, ones = np.array([10, 20, 40, 80]), np.ones(4)
    subsamples = growth.Growth(count, edges[0] * ones, edges[1] * ones, ones, 0.9 * ones, 0.8)
    for axes in audit_figures.growth(subsamples).axes:
        for line in axes.lines[:-1]:  # the last one is the threshold
            sizes = np.asarray(line.get_xdata())
            assert (sizes.min(), sizes.max()) == pytest.approx((10, 80))


def test_open_edges_are_null_in_the_report():
    ones = np.ones(4)
    subsamples = growth.Growth(np.arange(1, 5), ones, np.nan * ones, ones, ones, 0.8)
    report = findings.growth(subsamples, 40)
    assert report["left"] == [None] * 4
    assert report["closing"] is None
    json.dumps(report, allow_nan=False)


def test_cited_recipes_exist(finished):
    cited = set(re.findall(r"experiments/(\w+)", finished.page.read_text()))
    assert cited >= {"danger_zone", "gap_sweep", "gap_training"}
    for name in cited:
        assert (REPOSITORY / "experiments" / name / "README.md").is_file()


def test_page_without_a_zone(tmp_path, folder):
    result = command.run(small(tmp_path, folder, sigma_max=0.05))
    assert result.report["verdict"] == "none"
    assert result.report["recommendation"] is None
    words = " ".join(Page(result.page.read_text()).words)
    assert verdict.headline(result.report) in words
    assert "No gap to recommend" in words


def test_audits_three_images(tmp_path):
    images = data.load("digits").train[:3]
    np.save(tmp_path / "three.npy", images)
    result = command.run(small(tmp_path, tmp_path / "three.npy"))
    assert result.report["dataset"]["train"] == 2
    assert "only 2 training images" in dict(verdict.answers(result.report))["How sure is this?"]
    train = data.load(str(tmp_path / "three.npy")).train
    assert result.report["dataset"]["mean"] == pytest.approx(train.mean(), abs=1e-6)
    assert result.report["dataset"]["standard_deviation"] == pytest.approx(train.std(), abs=1e-6)


def test_data_set_names_take_precedence_over_folders(tmp_path, monkeypatch):
    (tmp_path / "digits").mkdir()
    monkeypatch.chdir(tmp_path)
    assert not sources.is_folder("digits")
    assert sources.is_folder("./digits")


ZONE = danger_zone.Zone(0.44, 0.66, 0.5, 0.9, 0.8, (0.4, 0.5), (0.6, 0.7), 1.0, False, False)


def test_command_names_the_data_and_a_preset():
    config = Config("my images", heldout="other.npz", resize=32, num_train=50, classes=("a b", "c"))
    command = findings.recommendation(config, ZONE, FACTS)["command"]
    assert shlex.split(command) == [
        *("geomem", "train", "edm_small", "--dataset", "my images"),
        *("--heldout", "other.npz", "--resize", "32", "--classes", "a b", "c", "--num-train", "50"),
        *("--embedding", "fourier", "--adaptive-scale", "True", "--sigma-data", "0"),
        *("--noise-mean", "-1.2", "--gap", "0.44", "0.66", "--out", "runs/gap"),
    ]
    facts = FACTS | {"train": 50_000}
    large = findings.recommendation(Config("cifar10"), ZONE, facts)["command"]
    assert "train edm_cifar10 --dataset cifar10 --num-train 50000 --embedding fourier" in large


def test_command_uses_the_settings_with_which_a_gap_helped():
    """The network and training noise are those of digits_fourier, the preset of gap_training."""
    facts = {"train": 50, "standard_deviation": 0.756}
    command = findings.recommendation(Config("my images"), ZONE, facts)["command"]
    parsed, best = _parse_train(command), PRESETS["digits_fourier"]
    for name in ("embedding", "adaptive_scale", "sigma_data", "noise_mean", "noise_std"):
        assert getattr(parsed, name) == getattr(best, name)
    digits = findings.recommendation(Config("digits"), ZONE, facts)["command"]
    assert dataclasses.replace(_parse_train(digits), gap=None, num_train=128, out=best.out) == (
        dataclasses.replace(best, subset_seed=None)
    )


def _parse_train(command):
    """Return the training configuration of a command line."""
    program, name, *words = shlex.split(command)
    assert (program, name) == ("geomem", "train")
    return dataclass_flags.parse(configuration.Config, words, "geomem train", presets=PRESETS)[0]


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
def test_commands_train_on_the_audited_images(folder, changes):
    config = Config(**{"dataset": str(folder), **changes})
    audited = image_flags.load(config).train_split
    facts = FACTS | {"train": len(audited)}
    gap = _parse_train(findings.recommendation(config, ZONE, facts)["command"])
    assert configuration.resolve(gap).gap == (0.44, 0.66)
    train, sample, evaluate = findings.checkpoints(config, len(audited))
    baseline = _parse_train(train)
    assert configuration.resolve(baseline).gap is None
    for parsed in (gap, baseline):
        assert image_flags.load(parsed).train_split.sha256() == audited.sha256()
    sampling = _parse(sample, "sample", sample_command.Config)
    assert sampling.step % baseline.checkpoint_every == 0
    judging = _parse(evaluate, "evaluate", evaluate_command.Config)
    assert (judging.samples, judging.run) == (sampling.out, baseline.out)


def _parse(command, name, config):
    program, given, *words = shlex.split(command)
    assert (program, given) == ("geomem", name)
    return dataclass_flags.parse(config, words, f"geomem {name}")[0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"threshold": 1.0}, r"^threshold must be between 0 and 1, got 1\.$"),
        ({"duplicate_threshold": 0.0}, r"^duplicate_threshold must be between 0 and 1, got 0\.$"),
        ({"max_noised": 0}, r"^max_noised must be positive, got 0\.$"),
        ({"num_sigmas": 1}, "num_sigmas must be 2 or more, got 1"),
        ({"sigma_min": 90.0}, "sigma_min and sigma_max must be .*, got 90 and 80"),
        ({"heldout": "cifar10_sample"}, r"heldout must .* shape \(8, 8, 1\) .*, got \(32, 32, 3\)"),
        ({"heldout": "no_such"}, "heldout must be cifar10_sample, .*, got 'no_such'"),
    ],
)
def test_rejects_bad_settings(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message) as error:
        command.run(small(tmp_path, "digits", **changes))
    assert "\n" not in str(error.value)


def test_rejects_a_set_of_duplicates(tmp_path):
    np.save(tmp_path / "same.npy", np.full((20, 8, 8, 1), 7, np.uint8))
    message = r"^dataset must have at least 2 training images and 1 held-out .*, got 1 and 0\.$"
    with pytest.raises(ValueError, match=message):
        command.run(small(tmp_path, tmp_path / "same.npy"))


def test_command_line_prints_errors_in_one_line(tmp_path):
    for i in range(4):
        Image.fromarray(np.zeros((8, 8 + i), np.uint8)).save(tmp_path / f"{i}.png")
    command = [sys.executable, "-m", "geomem.experiments.audit"]
    process = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, check=False)
    assert process.returncode == 2
    assert process.stderr.startswith("error: --dataset must")
    assert "--resize SIDE" in process.stderr
    assert process.stderr.count("\n") == 1


def _fake_torch(rng):
    """A NumPy stand-in for the parts of torch that the settings use."""

    class Array(np.ndarray):
        def to(self, device):
            return self

        def cpu(self):
            return self

        def unique(self):
            return array(np.unique(np.asarray(self)))

        def flip(self, axis):
            return array(np.flip(np.asarray(self), axis))

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


ADVICE = {
    "edm_sigma": [1.7, 5.0],
    "ddpm_timesteps": {"linear": [383, 573], "cosine": None},
    "flow_time": [0.6296, 0.8333],
    "command": "python",
}


@pytest.fixture
def settings(rng):
    """(code of each recipe by the start of its title, names that it may use)."""
    torch = _fake_torch(rng)
    names = {"torch": torch, "self": types.SimpleNamespace(P_mean=-1.2, P_std=1.2)}
    return {title.partition(":")[0]: code for title, code in recipes.settings(ADVICE)}, names


def test_settings_name_the_gap():
    (_, command), *others = recipes.settings(ADVICE)
    assert command == "python"
    titles = " ".join(title for title, _ in others)
    assert "sigma in [1.7, 5]" in titles
    assert "linear betas t = 383..573, cosine betas none" in titles
    assert "t in [0.6296, 0.8333]" in titles


def test_edm_settings_leave_the_gap_out(settings, rng):
    codes, names = settings
    names["sigma"] = names["torch"].array(np.exp(rng.normal(-1.2, 1.2, 4000)))
    exec(codes["EDM, training"], names)
    assert not ((names["sigma"] > 1.7) & (names["sigma"] < 5)).any()
    assert (names["sigma"] > 5).any()
    assert (names["sigma"] < 1.7).any()

    names["t_steps"] = names["torch"].array(grids.edm_grid(18))
    exec(codes["EDM, sampling"], names)
    over = grids.skip_gaps(grids.edm_grid(18), schedules.gap(schedules.lognormal(), 1.7, 5.0))
    np.testing.assert_array_equal(names["t_steps"], over)


class FakeScheduler:
    """A stand-in for the parts of diffusers' DDPMScheduler that the settings use."""

    def __init__(self, alphas_cumprod, array):
        self.alphas_cumprod, self._array = alphas_cumprod, array

    def set_timesteps(self, count=None, timesteps=None):
        if timesteps is None:
            timesteps = np.arange(count)[::-1] * (1000 // count)
        assert (np.diff(timesteps) < 0).all()  # diffusers demands it
        self.timesteps = self._array(timesteps)


def test_ddpm_settings_leave_the_gap_out(settings):
    codes, names = settings
    betas, array = conventions.linear_betas(), names["torch"].array
    sigmas = conventions.ddpm_sigmas(betas)
    names["noise_scheduler"] = FakeScheduler(array(np.cumprod(1 - betas)), array)
    names |= {"bsz": 4000, "clean_images": types.SimpleNamespace(device=None)}
    exec(codes["DDPM in diffusers, training"], names)
    drawn = sigmas[names["timesteps"]]
    assert not ((drawn > 1.7) & (drawn < 5)).any()
    assert drawn.min() < 0.1
    assert drawn.max() > 100

    exec(codes["DDPM in diffusers, sampling"], names)
    steps = names["noise_scheduler"].timesteps
    assert not ((sigmas[steps] > 1.7) & (sigmas[steps] < 5)).any()
    inside = conventions.timesteps_between(1.7, 5.0, betas)
    outside = {t for t in range(0, 1000, 20) if t not in inside}
    assert set(steps.tolist()) == outside | {inside.start - 1, inside.stop}  # the gap's edges


def test_flow_matching_settings_leave_the_gap_out(settings):
    codes, names = settings
    names["batch"] = 4000
    exec(codes["Flow matching, training"], names)
    assert not ((names["t"] > 0.6296) & (names["t"] < 0.8333)).any()
    assert names["t"].min() < 0.1
    assert names["t"].max() > 0.9

    names["times"] = names["torch"].array(np.linspace(1, 0, 11))
    exec(codes["Flow matching, sampling"], names)
    expected = [1, 0.9, 0.8333, 0.6296, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0]
    np.testing.assert_allclose(names["times"], expected, atol=1e-12)


def test_wraps_commands_before_flags():
    command = "geomem train edm_small --dataset 'my images' --classes 'a b' c --gap 0.44 0.66"
    lines = recipes.wrap(command, 46).split(" \\\n")
    assert lines == [
        "geomem train edm_small --dataset 'my images'",
        "  --classes 'a b' c --gap 0.44 0.66",
    ]
