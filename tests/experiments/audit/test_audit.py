"""The audit end to end: files, planted duplicates, the page, and one-line errors."""

import csv
import dataclasses
import html.parser
import json
import pathlib
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from geomem import data
from geomem.data import sources
from geomem.diffusion import conventions
from geomem.experiments import evaluate as evaluate_command
from geomem.experiments import sample as sample_command
from geomem.experiments.audit import advice, command, evidence, findings, verdict
from geomem.experiments.audit.command import Config
from geomem.experiments.common import dataclass_flags, image_flags, replacements
from geomem.experiments.train import PRESETS, configuration
from geomem.geometry import danger_zone, growth
from geomem.metrics import intervals
from geomem.plots import audit_figures

NAME = "a $name <b>&"  # has to be escaped
PLANTED = {70: 3, 71: 4, 12: 5, 33: 6}  # copy: source; copies of odd sources are exact
REPOSITORY = pathlib.Path(__file__).parents[3]
FACTS = {"train": 50, "standard_deviation": 0.5, "shape": [8, 8, 1], "images": True}


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
    figures = {
        f"{name}.{suffix}"
        for name in ("scale", "curves", "growth", "training_noise", "images")
        for suffix in ("png", "pdf")
    }
    files = {
        "images.csv",
        "audit.html",
        "audit.json",
        "keep.txt",
        "zone.json",
        "curves.csv",
        "run.json",
    }
    assert names == figures | files
    report = json.loads((folder / "audit.json").read_text())
    zone = json.loads((folder / "zone.json").read_text())
    assert report["zone"] == zone
    low, high = report["gap"]["sigma"]
    wide = report["wider_zone"]
    assert (low, high) == pytest.approx((wide["low"], wide["high"]), rel=5e-3)
    noise = conventions.usual_training_noise()[2]
    assert report["training_noise"][2]["share"] == noise.share(zone["low"], zone["high"])
    sigmas = conventions.ddpm_sigmas(conventions.cosine_betas())
    first, last = report["gap"]["ddpm_timesteps"]["cosine"]
    assert sigmas[first - 1] < low <= sigmas[first] <= sigmas[last] <= high < sigmas[last + 1]
    start, end = report["gap"]["flow_time"]
    assert (start / (1 - start), end / (1 - end)) == pytest.approx((low, high), rel=1e-3)
    assert report["growth"]["count"][-1] == report["dataset"]["different_train"]
    run = json.loads((folder / "run.json").read_text())
    assert run["data"]["train"]["count"] == 80
    assert run["config"]["dataset"] == NAME  # no absolute paths
    assert str(folder.parent) not in (folder / "run.json").read_text().replace(str(folder), "")


def test_ranks_exposed_images_without_duplicates(finished):
    exposed = finished.report["exposed"]
    with (finished.page.parent / "images.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == finished.report["dataset"]["noised_train"] == 40
    levels = [float(row["exposed_up_to"]) for row in rows]
    assert levels == sorted(levels, reverse=True)
    assert [entry["file"] for entry in exposed] == [row["file"] for row in rows[:10]]
    listed = {row["file"]: int(row["copies"]) for row in rows}
    for group in finished.report["duplicates"]["groups"]:
        pairs = zip(group["images"], group["held_out"], strict=True)
        names = [name for name, heldout in pairs if not heldout]
        shown = [listed.pop(name) for name in names if name in listed]
        assert shown in ([], [len(names) - 1])  # one of the group at most
    assert set(listed.values()) == {0}
    assert f"{exposed[0]['file']}" in finished.page.read_text()


def test_page_is_complete_and_self_contained(finished):
    text = finished.page.read_text()
    parsed = Page(text)
    assert parsed.open == []
    assert len(parsed.loaded) == 5 + 2 * len(PLANTED)  # figures, thumbnails
    assert all(source.startswith("data:image/") for source in parsed.loaded)
    assert "http" not in text.replace("http://www.w3.org", "")
    words = " ".join(parsed.words)
    assert words.count(NAME) >= 3  # title, heading and command
    assert NAME not in text
    assert "$" not in words.replace(NAME, "")
    decision = finished.report["verdict"]
    shown = [decision["headline"], decision["why"], verdict.RULE, "geomem train", "2301.13188"]
    for item in finished.report["advice"]:
        shown += item.values()
    for text in shown:
        assert text in words


def test_keeps_one_image_of_each_group(finished):
    kept = (finished.page.parent / "keep.txt").read_text().splitlines()
    assert len(kept) == len(set(kept)) == finished.report["dataset"]["different_train"]
    groups = finished.report["duplicates"]["groups"]
    assert all(sum(name in kept for name in group["images"]) <= 1 for group in groups)


def test_report_follows_its_schema(finished):
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads((REPOSITORY / "docs" / "audit.schema.json").read_text())
    report = json.loads((finished.page.parent / "audit.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(report, schema)
    assert set(schema["required"]) == set(report) == set(schema["properties"])


def test_evidence_equals_the_results_it_cites():
    stored = evidence.evidence()
    for row in stored["references"]:
        zone = _json(row["file"])
        assert row["zone"] == pytest.approx([zone["low"], zone["high"]], abs=1e-3)
        folder = (REPOSITORY / row["file"]).parent
        assert _json(folder / "run.json")["data"]["train"]["count"] == row["count"]
    digits = stored["networks"][0]
    rows = [row for row in _rows(digits["file"]) if row["arm"] == "baseline"]
    assert digits["seen"] == [int(float(row["kimg"]) * 1000 / 128) for row in rows]
    assert digits["copied"] == pytest.approx([float(row["memorized"]) for row in rows], abs=1e-4)
    large = stored["networks"][1]
    alone = [row for row in _rows(large["file"]) if row["window"] == "none"]
    memorizing, generalizing = (
        [float(row[name]) for name in ("memorized", "memorized_low", "memorized_high")]
        for row in alone
    )
    assert large["copied"] == generalizing[:1]
    more = stored["more_images"]
    assert more["from"] == pytest.approx(memorizing, abs=1e-4)
    assert more["to"] == pytest.approx(generalizing, abs=1e-4)
    for row in stored["gaps"]:
        arms = {arm["arm"]: arm["memorized"]["trainings"] for arm in _json(row["file"])}
        values = [arms[row["arm"]][name] for name in ("mean", "low", "high")]
        assert row["change"] == pytest.approx(values, abs=1e-4)
    for repair, chosen in ((stored["repair"], "ls 3"), (stored["repair_natural"], "els 5")):
        (change,) = [
            entry
            for entry in _json(repair["file"])
            if (entry["first"], entry["second"]) == ("none", f"zone: {chosen}")
        ]
        for name in ("memorized", "frechet", "coverage", "recall"):
            values = [change[name][edge] for edge in ("mean", "low", "high")]
            found = repair["change" if name == "memorized" else name]
            assert found == pytest.approx(values, abs=1e-4)
        means = {
            row["variant"]: [float(row[name]) for name in ("memorized", "aligned")]
            for row in _rows(pathlib.Path(repair["file"]).with_name("summary.csv"))
            if row["arm"] == "baseline"  # the last of a variant's rows is the end of the training
        }
        before, after = means["none"], means[f"zone: {chosen}"]
        assert repair["calibrated"] == pytest.approx([before[1], after[1]], abs=1e-4)
        assert [repair["from"], repair["to"]] == pytest.approx([before[0], after[0]], abs=1e-4)
        assert repair["runs"] == len(change["memorized"]["each"]) == 6
    onset = stored["onset"]
    rows = [row for row in _rows(onset["file"]) if row["arm"] == "baseline"]
    passes = {
        fresh: [
            int(float(row["onset"]) / int(row["train_images"]))
            for row in rows
            if row["fresh"] == fresh
        ]
        for fresh in ("False", "True")
    }
    assert onset["passes"] == [min(passes["False"]), max(passes["False"])]
    assert onset["networks"] == len(passes["False"])
    # Fresh trainings, of other images, start where the audit says.
    first, last = evidence.onset()
    assert sum(first <= value <= last for value in passes["True"]) >= 4
    assert len(passes["True"]) == 5
    early = stored["early_stopping"]
    runs = [row for row in _rows(early["file"]) if row["arm"] == "baseline"]
    first, last = (
        np.array([float(row["memorized"]) for row in runs if row["kimg"] == kimg])
        for kimg in (runs[0]["kimg"], runs[-1]["kimg"])
    )
    assert [early["from"], early["to"]] == pytest.approx([last.mean(), first.mean()], abs=1e-4)
    assert early["change"] == pytest.approx(intervals.mean(first - last), abs=1e-4)
    assert early["runs"] == len(first) == 5


def _json(path):
    return json.loads((REPOSITORY / path).read_text())


def _rows(path):
    with (REPOSITORY / path).open() as file:
        return list(csv.DictReader(file))


def zone(low, high, confidence=1.0):
    edges = (None, None) if low is None else ((low, low), (high, high))
    return danger_zone.Zone(low, high, 1.0, 0.9, 0.8, *edges, confidence, False, False)


@pytest.mark.parametrize(
    ("different", "train", "found", "expected"),
    [
        (2, 2, zone(3, 29), ("high", "few")),
        (1000, 1000, zone(1.62, 5.1), ("high", "small")),
        (900, 900, zone(0.43, 0.66), ("moderate", "narrow")),
        (10_000, 10_000, zone(1.5, 4.2), ("moderate", "between")),
        (50_000, 50_000, zone(1.42, 3.75), ("low", "large")),
        (48_536, 50_000, zone(1.42, 3.75), ("low", "large")),  # CIFAR-10 without duplicates
        (48_000, 50_000, zone(1.42, 3.75), ("moderate", "between")),
        (1000, 1000, zone(None, None, 0.0), ("none", "zone")),
        (1000, 1000, zone(None, None, 0.5), ("low", "borderline")),
        (112, 160, zone(1.7, 6), ("high", "duplicates")),
        (900, 1000, zone(0.43, 0.66), ("high", "duplicates")),
        (990, 1000, zone(0.43, 0.66), ("moderate", "narrow")),
    ],
)
def test_verdict_follows_the_rule(different, train, found, expected):
    decision = verdict.decide(different, train, found)
    assert (decision["risk"], decision["reason"]) == expected
    risk = "No" if expected[0] == "none" else expected[0].capitalize()
    assert decision["headline"].startswith(f"{risk} risk: ")


def test_fails_above_a_limit(tmp_path):
    risks = [verdict.exceeds(risk, "low") for risk in verdict.RISKS]
    assert risks == [False, False, True, True]
    assert not verdict.exceeds("high", None)
    settings = {"num_sigmas": 5, "max_noised": 20, "growth": False, "out": str(tmp_path / "out")}
    assert command.run(Config("digits", fail_above="low", **settings)).exit_code == 1


def test_advice_is_in_order_of_the_measured_effect(finished):
    """Duplicates of this set come first; what was not measured comes last."""
    effects = [item["effect"] for item in finished.report["advice"]]
    assert finished.report["advice"][0]["action"] == "Remove duplicates and leaks"
    unmeasured = [effect.startswith("Not measured") for effect in effects]
    assert unmeasured == sorted(unmeasured)
    stored = evidence.evidence()
    early, more, repair = stored["early_stopping"], stored["more_images"], stored["repair"]
    left = [
        early["to"] / early["from"],
        more["to"][0] / more["from"][0],
        repair["to"] / repair["from"],
        1 + stored["gaps"][0]["change"][0] / early["from"],
    ]
    assert left == sorted(left)
    clean = {"removed": 0, "leaked": 0}
    assert advice.advise(clean, None)[0].action == "Stop training early"


def test_scale_holds_this_set_between_the_references(finished):
    rows = finished.report["scale"]
    assert [row["count"] for row in rows] == sorted(row["count"] for row in rows)
    assert {row["count"] for row in rows} >= {900, 1000, 2000, 50_000}
    this = [row["count"] for row in rows if row["this_set"]]
    assert this[-1] == finished.report["dataset"]["different_train"]


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
    assert result.report["verdict"]["risk"] == "none"
    assert result.report["gap"] is None
    words = " ".join(Page(result.page.read_text()).words)
    assert result.report["verdict"]["headline"] in words
    assert "EDM, sampling" not in words
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads((REPOSITORY / "docs" / "audit.schema.json").read_text())
    jsonschema.validate(json.loads((result.page.parent / "audit.json").read_text()), schema)


def test_audits_three_images(tmp_path):
    images = data.load("digits").train[:3]
    np.save(tmp_path / "three.npy", images)
    result = command.run(small(tmp_path, tmp_path / "three.npy"))
    assert result.report["dataset"]["train"] == 2
    assert result.report["verdict"]["reason"] == "few"
    train = data.load(str(tmp_path / "three.npy")).train
    assert result.report["dataset"]["mean"] == pytest.approx(train.mean(), abs=1e-6)
    assert result.report["dataset"]["standard_deviation"] == pytest.approx(train.std(), abs=1e-6)


def test_data_set_names_take_precedence_over_folders(tmp_path, monkeypatch):
    (tmp_path / "digits").mkdir()
    monkeypatch.chdir(tmp_path)
    assert not sources.is_folder("digits")
    assert sources.is_folder("./digits")


GAP = {"sigma": [0.44, 0.66]}


def test_command_names_the_data_and_a_preset():
    config = Config("my images", heldout="other.npz", resize=32, num_train=50, classes=("a b", "c"))
    command = advice.commands(config, FACTS, GAP)[-1]
    assert shlex.split(command) == [
        *("geomem", "train", "edm_small", "--dataset", "my images"),
        *("--heldout", "other.npz", "--resize", "32", "--classes", "a b", "c", "--num-train", "50"),
        *("--embedding", "fourier", "--adaptive-scale", "True", "--sigma-data", "0"),
        *("--noise-mean", "-1.2", "--gap", "0.44", "0.66", "--watch", "True", "--out", "runs/gap"),
    ]
    facts = FACTS | {"train": 50_000}
    large = advice.commands(Config("cifar10"), facts, GAP)[-1]
    assert "train edm_cifar10 --dataset cifar10 --num-train 50000 --embedding fourier" in large


def test_command_uses_the_settings_with_which_a_gap_helped():
    """The network and training noise are those of digits_fourier, the preset of gap_training."""
    facts = FACTS | {"standard_deviation": 0.756}
    command = advice.commands(Config("my images"), facts, GAP)[-1]
    parsed, best = _parse_train(command), PRESETS["digits_fourier"]
    for name in ("embedding", "adaptive_scale", "sigma_data", "noise_mean", "noise_std"):
        assert getattr(parsed, name) == getattr(best, name)
    digits = _parse_train(advice.commands(Config("digits"), facts, GAP)[-1])
    assert dataclasses.replace(
        digits, gap=None, num_train=128, watch=False, out=best.out
    ) == dataclasses.replace(best, subset_seed=None)


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
    train, sample, evaluate, repair, gap = advice.commands(config, facts, GAP)
    gap = _parse_train(gap)
    assert configuration.resolve(gap).gap == (0.44, 0.66)
    baseline = _parse_train(train)
    assert configuration.resolve(baseline).gap is None
    for parsed in (gap, baseline):
        assert image_flags.load(parsed).train_split.sha256() == audited.sha256()
    sampling = _parse(sample, "sample", sample_command.Config)
    assert (baseline.watch, sampling.run) == (True, baseline.out)
    judging = _parse(evaluate, "evaluate", evaluate_command.Config)
    assert (judging.samples, judging.run) == (sampling.out, baseline.out)
    repairing = _parse(repair, "sample", sample_command.Config)
    assert repairing.run == baseline.out
    assert replacements.read_edges(repairing.repair) == (0.44, 0.66)


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


def test_wraps_commands_before_flags():
    command = "geomem train edm_small --dataset 'my images' --classes 'a b' c --gap 0.44 0.66"
    lines = advice.wrap(command, 46).split(" \\\n")
    assert lines == [
        "geomem train edm_small --dataset 'my images'",
        "  --classes 'a b' c --gap 0.44 0.66",
    ]


def test_audits_latents_and_vectors_in_their_units(tmp_path, rng):
    values = rng.normal(size=(90, 4, 4, 4)).astype(np.float32)
    gaps = []
    for name, data_, factor in (
        ("latents", values, 1),
        ("large", values, 10),
        ("vectors", values.reshape(90, -1), 1),
    ):
        np.save(tmp_path / f"{name}.npy", factor * data_)
        config = small(tmp_path, tmp_path / f"{name}.npy", threshold=0.3, num_sigmas=9)
        config = dataclasses.replace(config, layout="NHWC" if data_.ndim == 4 else None)
        result = command.run(dataclasses.replace(config, out=str(tmp_path / name)))
        gaps.append((result.report["zone"]["low"], result.report["zone"]["high"]))
        commands = " ".join(result.report["commands"])
        assert ("--sigma-data 0" in commands) == (data_.ndim == 4)
        assert Page(result.page.read_text()).open == []
    np.testing.assert_allclose(gaps[1], 10 * np.array(gaps[0]), rtol=5e-3)
    np.testing.assert_allclose(gaps[2], gaps[0], rtol=5e-3)
