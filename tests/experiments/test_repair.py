"""The repair experiment end to end on tiny networks, its variants and its comparisons."""

import csv
import dataclasses
import json

import numpy as np
import pytest

from geomem.diffusion import grids
from geomem.experiments import repair
from geomem.experiments.common import arms, gap_study, replacements
from geomem.experiments.common.arms import EvaluationSettings
from geomem.experiments.repair import measure, variants
from geomem.experiments.repair.study import compare
from geomem.experiments.train import presets

TINY = dataclasses.replace(
    presets.PRESETS["digits_fourier"],
    num_train=32,
    channels=8,
    multipliers=(1,),
    sigma_data=0.75,  # of all digits, so that all networks share a compiled step
    batch=16,
    kimg=0.64,
    log_every=20,
    checkpoint_every=20,
)
GRID = grids.edm_grid(18)
ZONE = 0.42, 1.39
CHOSEN = variants.Replacement("ls", 3)


def test_variants_have_controls_of_the_same_width():
    every = {v.name: v for v in variants.make_variants(GRID, ZONE, CHOSEN)}
    assert next(iter(every.values())) is variants.NONE
    zone, above, below = (every[f"{place}: ls 3"] for place in ("zone", "above", "below"))
    assert all(ZONE[0] <= GRID[i] <= ZONE[1] for i in range(zone.first, zone.last + 1))
    assert above.last + 1 == zone.first
    assert zone.last + 1 == below.first
    assert len({v.last - v.first for v in (zone, above, below)}) == 1
    windows = [v for name, v in every.items() if name.startswith("window")]
    assert {v.last - v.first + 1 for v in windows} == {1, 2, 4}
    assert all(0.05 <= GRID[i] <= 20 for v in windows for i in (v.first, v.last))
    kinds = {(v.replacement.kind, v.replacement.mix) for v in every.values() if v.replacement}
    assert {kind for kind, _ in kinds} == {"ls", "els", "wiener", "gaussian"}
    assert {mix for _, mix in kinds} == {"", "blend", "guide", "gate"}
    quick = {v.name: v for v in variants.make_variants(GRID, ZONE, CHOSEN, quick=True)}
    assert quick.items() <= every.items()
    assert {"none", "zone: ls 3", "above: ls 3", "below: ls 3", "zone: gaussian"} <= set(quick)
    assert len(quick) == 8
    # At the ends of the grid, controls without steps are left out.
    names = [v.name for v in variants.make_variants(GRID, (60, 90), CHOSEN)]
    assert "above: ls 3" not in names
    assert "below: ls 3" in names


def test_finer_steps_lie_inside_the_replaced_ones(digits):
    variant = variants.Variant("finer", 3, 4, CHOSEN, finer=True)
    swap, levels = variants.sampling(
        variant, replacements.make("wiener", digits.train), GRID, digits
    )
    assert len(levels) == len(GRID) + 2
    assert set(GRID) <= set(levels)
    assert (np.diff(levels) < 0).all()
    replaced = levels[sorted(swap.steps)]
    assert len(replaced) == 4
    assert GRID[3] == replaced[0]
    assert replaced[-1] > GRID[5]


@pytest.fixture(scope="module")
def digits():
    from geomem import data

    return data.load("digits").subset(count=32, heldout_count=40)


@pytest.mark.parametrize(
    ("name", "patch", "message"),
    [
        ("ls", 2, r"^repair_patch must be odd, got 2\.$"),
        ("wiener", 3, r"^repair_patch must be left out unless ls or els repairs, got 3\.$"),
        ("nothing", None, r"^repair_with must be ls, els, wiener, gaussian or the folder of a run"),
    ],
)
def test_rejects_bad_replacements(name, patch, message, digits):
    with pytest.raises(ValueError, match=message):
        replacements.make(name, digits.train, patch)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """The configuration and the result of a study with two networks and few variants."""
    few = ("none", "zone: ls 3", "above: ls 3", "window: ls 3, steps 9 to")

    def make_variants(*arguments, make=variants.make_variants, **options):
        return [
            v for v in make(*arguments, **options) if v.name in few or v.name.startswith(few[-1])
        ]

    with pytest.MonkeyPatch.context() as patch:
        preset = gap_study.Preset(TINY, EvaluationSettings(samples=16, steps=18), 1, (0.8, 0.5))
        patch.setitem(gap_study.PRESETS, "digits", preset)
        patch.setattr(variants, "make_variants", make_variants)
        out = tmp_path_factory.mktemp("repair")
        config = repair.Config(seeds=2, out=str(out), jobs=1)
        yield config, repair.run(config)


def test_study_writes_rows_for_each_network(study):
    result = study[1]
    with (result.folder / "results.csv").open() as file:
        table = list(csv.DictReader(file))
    baseline = [row for row in table if row["arm"] == "baseline"]
    assert {row["seed"] for row in baseline} == {"0", "1"}
    plain = [row["kimg"] for row in baseline if row["variant"] == "none" and row["seed"] == "0"]
    assert plain == ["0.32", "0.64"]
    assert {row["variant"] for row in table if row["arm"] == "gap"} == {"none"}
    zones = json.loads((result.folder / "zones.json").read_text())
    assert zones[0]["low"] != zones[1]["low"]  # each network has its own images
    for row in table:
        for key in ("memorized", "calibrated", "aligned", "coverage", "heldout_nearer"):
            assert 0 <= float(row[key]) <= 1
    for name in ("frontier.png", "windows.pdf", "samples.png", "summary.csv", "run.json"):
        assert (result.folder / name).stat().st_size > 0


def test_comparisons_are_paired_differences(study):
    result = study[1]
    entries = {(e["first"], e["second"]): e for e in result.comparisons}
    ends = {
        (row["variant"], row["seed"]): row
        for row in result.rows
        if row["arm"] == "baseline" and row["kimg"] == 0.64
    }
    found = entries["none", "zone: ls 3"]["frechet"]
    expected = [
        ends["zone: ls 3", seed]["frechet"] - ends["none", seed]["frechet"] for seed in (0, 1)
    ]
    assert found["each"] == pytest.approx(expected)
    assert found["low"] < np.mean(expected) < found["high"]
    assert ("above: ls 3", "zone: ls 3") in entries
    assert ("gap training", "zone: ls 3") in entries
    assert max(map(abs, expected)) > 0.01  # the replacement changes the samples


def test_same_command_computes_nothing_again(study, monkeypatch):
    config, result = study
    monkeypatch.setattr(arms, "evaluate_samples", None)  # fails if called
    assert repair.run(config).rows == result.rows


def test_quick_study_has_only_the_main_comparison(study):
    config = study[0]
    quick = repair.run(dataclasses.replace(config, quick=True))
    assert {row["variant"] for row in quick.rows} == {"none", "zone: ls 3", "above: ls 3"}
    assert (quick.folder / "frontier.png").stat().st_size > 0


def test_judge_calls_training_images_copies_and_others_not(digits):
    judge = measure.Judge(digits, EvaluationSettings(samples=16))
    row = judge(digits.train)
    assert row["memorized"] == row["calibrated"] == row["aligned"] == 1
    assert row["heldout_nearer"] == 0  # no held-out image is nearer to a sample
    row = judge(digits.test)
    assert row["aligned"] <= 1 / 40  # at most 0.1% of the held-out images, by definition
    assert row["heldout_nearer"] == 1


def test_early_stopping_takes_the_checkpoint_that_copies_least():
    def row(variant, kimg, frechet, aligned):
        values = dict.fromkeys(measure.MEASURES, 0.0) | {"frechet": frechet, "aligned": aligned}
        return {"arm": "baseline", "variant": variant, "seed": 0, "kimg": kimg} | values

    rows = [
        row("none", 1, 3.0, 0.0),  # too bad
        row("none", 2, 2.0, 0.2),
        row("none", 3, 1.5, 0.8),
        row("zone: ls 3", 3, 2.1, 0.1),
    ]
    (entry,) = [e for e in compare(rows, CHOSEN) if e["first"] == "stopped early"]
    assert entry["aligned"]["mean"] == pytest.approx(-0.1)
    stops = {e["first"]: e["aligned"]["mean"] for e in compare(rows, CHOSEN) if "at" in e["first"]}
    assert stops == pytest.approx({"stopped at 1": 0.1, "stopped at 2": -0.1})
    rows[-1]["frechet"] = 1.0  # better than all checkpoints
    (entry,) = [e for e in compare(rows, CHOSEN) if e["first"] == "stopped early"]
    assert entry["aligned"] is None
