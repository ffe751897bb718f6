"""Arms of training noise: their gaps, their trainings and their tables, end to end on tiny runs."""

import csv
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import time

import numpy as np
import pytest

from geomem.diffusion import checkpoints, grids, schedules
from geomem.experiments import denoiser_swap, gap_sweep, gap_training
from geomem.experiments.common import arm_summary, arms, gap_study, parallel
from geomem.experiments.common.arms import Arm, Judging, Task
from geomem.experiments.train import run_folder

TINY = dataclasses.replace(
    run_folder.PRESETS["digits_gap"],
    num_train=32,
    channels=8,
    multipliers=(1,),
    kimg=2.56,
    log_every=20,
    checkpoint_every=20,
)
JUDGING = Judging(samples=16, steps=6)
PRESET = gap_study.Preset(TINY, JUDGING, 1, (0.8, 0.5))
ARMS = ("baseline", "zone-0.5")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """gap_training of two arms."""
    out = tmp_path_factory.mktemp("gap")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gap_training, "PRESETS", {"digits": PRESET})
        config = gap_training.Config(out=str(out), arms=ARMS, jobs=1)
        return config, gap_training.run(config)


def test_arms_are_the_zones_and_controls_of_equal_mass():
    base = schedules.lognormal()
    zones = [(0.5, 0.9), (0.4, 1.4)]
    chosen = {arm.name: arm for arm in gap_training.make_arms(base, zones, (0.8, 0.5))}
    assert list(chosen)[:4] == ["baseline", "dummy", "zone-0.8", "zone-0.5"]
    mass = base.mass(*zones[1])
    for name in ("small-noise", "far-small-noise"):
        assert base.mass(*chosen[name].gap) == pytest.approx(mass, abs=1e-6)
    assert chosen["small-noise"].gap[1] == zones[1][0]  # adjacent
    assert chosen["far-small-noise"].gap[1] < chosen["small-noise"].gap[1]
    low, high = chosen["large-noise"].gap
    assert low == zones[1][1]
    assert base.mass(0, high) == pytest.approx(1, abs=1e-6)


def test_gap_training_rows_and_files(found):
    result = found[1]
    with (result.folder / "results.csv").open() as file:
        table = list(csv.DictReader(file))
    # Two arms; checkpoints at steps 20 and 40; the last one also with the levels inside the gap.
    assert [(row["arm"], row["kimg"]) for row in table] == [
        (arm, kimg) for arm in ARMS for kimg in ("1.28", "2.56")
    ]
    assert [row["whole_grid_frechet"] == "" for row in table] == [True, False] * 2
    (baseline, gap) = (row for row in result.rows if row["kimg"] == 2.56)
    assert baseline["whole_grid_frechet"] == baseline["frechet"]
    assert gap["whole_grid_frechet"] != gap["frechet"]
    for row in result.rows:
        assert row["memorized_low"] <= row["memorized"] <= row["memorized_high"]
        assert row["frechet"] > 0
    gaps = {row["arm"]: row["gap_mass"] for row in result.rows}
    assert gaps["baseline"] == 0 < gaps["zone-0.5"]
    for name in ("training.png", "frontier.pdf", "samples_baseline.png", "summary.csv"):
        assert (result.folder / name).stat().st_size > 0
    compared = json.loads((result.folder / "comparisons.json").read_text())
    assert [one["arm"] for one in compared] == ["zone-0.5"]
    assert compared[0]["memorized"]["trainings"]["each"] == [compared[0]["memorized"]["difference"]]


def test_the_same_command_computes_nothing_again(found, monkeypatch):
    config, result = found
    monkeypatch.setattr(gap_training, "PRESETS", {"digits": PRESET})
    monkeypatch.setattr(arms, "judge", None)  # would fail if called
    assert gap_training.run(config).rows == result.rows


def test_other_samples_take_the_place_of_the_kept_ones_and_back(found, monkeypatch):
    config, result = found
    monkeypatch.setattr(gap_training, "PRESETS", {"digits": PRESET})
    runs = result.folder / "runs"
    for samples in (4, 16):
        gap_training.run(dataclasses.replace(config, samples=samples))
        assert len(arms.read_samples(runs, "baseline", 0)["images"]) == samples
        (one,) = json.loads((result.folder / "comparisons.json").read_text())
        assert one["memorized"]["first"][1] == samples
    with monkeypatch.context() as patch:  # half a line is no more than that line
        patch.setattr(arms, "judge", None)
        judged = runs / "baseline-0" / "judged.jsonl"
        judged.write_text(judged.read_text() + '{"at": [40, 16')
        assert gap_training.run(config).rows == result.rows


def test_checkpoints_of_an_interruption_are_kept_and_not_judged(found, tmp_path):
    arm = Arm("baseline")
    config = arm.configure(TINY, 0, tmp_path)
    run_folder.run(dataclasses.replace(config, kimg=1.6))  # step 25, as where a signal ended it
    rows = arms.measure(Task(arm, config, JUDGING))
    assert [row["kimg"] for row in rows] == [1.28, 2.56]
    with checkpoints.Checkpoints(config.out, read_only=True) as saved:
        assert saved.steps() == [20, 25, 40]
    assert rows[-1]["frechet"] == found[1].rows[1]["frechet"]


def test_a_longer_training_extends_the_one_that_is_there():
    resolved = [
        gap_study.resolve(gap_training.Config(kimg=kimg), gap_training.PRESETS["digits"]).train
        for kimg in (80.0, 1000.0)
    ]
    for one in resolved:
        assert one.log_every == run_folder.PRESETS["digits_gap"].log_every
        assert one.checkpoint_every % one.log_every == 0
        assert 5 <= one.steps / one.checkpoint_every <= 9


def test_processes_side_by_side_find_the_same(found, tmp_path, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")  # one device each
    gap = next(row for row in found[1].rows if row["arm"] == ARMS[1])
    chosen = Arm(ARMS[0]), Arm(ARMS[1], (gap["gap_low"], gap["gap_high"]))
    tasks = [Task(arm, arm.configure(TINY, 0, tmp_path), JUDGING) for arm in chosen]
    rows = parallel.measure_all(tasks, jobs=2)
    assert [row["arm"] for row in rows] == [row["arm"] for row in found[1].rows]
    for row, other in zip(rows, found[1].rows, strict=True):
        assert row["frechet"] == pytest.approx(other["frechet"], rel=1e-3)


_SIDE_BY_SIDE = """
import dataclasses, pathlib, sys
from geomem.experiments import train
from geomem.experiments.common import arms, parallel

config = dataclasses.replace(
    train.PRESETS["digits_gap"], num_train=32, channels=8, multipliers=(1,), kimg=1e6, log_every=5
)
config = dataclasses.replace(config, checkpoint_every=10**9)
arm, folder = arms.Arm("a"), pathlib.Path(sys.argv[1])
tasks = [arms.Task(arm, arm.configure(config, seed, folder), arms.Judging()) for seed in (0, 1)]
parallel.measure_all(tasks, 2)
"""


@pytest.mark.slow
def test_runs_save_and_end_where_their_parent_is_killed(tmp_path):
    environment = {**os.environ, "XLA_FLAGS": ""}
    with (tmp_path / "log").open("w") as log:
        parent = subprocess.Popen(
            [sys.executable, "-c", _SIDE_BY_SIDE, str(tmp_path)], env=environment, stderr=log
        )
        _wait(lambda: len(list(tmp_path.glob("a-*/metrics.jsonl"))) == 2)
        found = subprocess.run(["pgrep", "-P", str(parent.pid)], capture_output=True, text=True)
        parent.kill()
        parent.wait()
    children = [pathlib.Path("/proc", child) for child in found.stdout.split()]
    assert len(children) >= 2
    _wait(lambda: not any(child.exists() for child in children))
    for seed in (0, 1):
        with checkpoints.Checkpoints(tmp_path / f"a-{seed}", read_only=True) as saved:
            assert saved.steps()


def _wait(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.2)


def test_summaries_are_means_with_standard_errors():
    rows = [
        {"arm": "a", "kimg": 1.0, "memorized": value, "late": late}
        for value, late in ((0.1, None), (0.5, 1.0))
    ]
    (line,) = arm_summary.summarize(rows, "memorized", "late")
    assert line["memorized"] == pytest.approx(0.3)
    assert line["memorized_error"] == pytest.approx(0.2)  # std 0.2828 / sqrt(2)
    assert line["seeds"] == 2
    assert line["late"] is None is line["late_error"]


def test_early_stopping_takes_the_least_memorized_checkpoint_that_is_as_good():
    def row(arm, kimg, frechet, memorized):
        keys = {"seed": 0, "without_noise": memorized}
        return {"arm": arm, "kimg": kimg, "frechet": frechet, **keys}

    rows = [
        row("baseline", 1, 3.0, 0.0),  # too bad
        row("baseline", 2, 2.0, 0.2),
        row("baseline", 3, 1.5, 0.8),
        row("gap", 3, 2.1, 0.3),
    ]
    found = arm_summary.early_stopping(rows, "gap", "baseline")
    assert (found["without_noise"], found["baseline_without_noise"]) == (0.3, 0.2)
    assert found["baseline_kimg"] == 2
    rows[-1]["frechet"] = 1.0
    assert arm_summary.early_stopping(rows, "gap", "baseline")["baseline_without_noise"] is None


def test_bad_flags_are_named(tmp_path):
    with pytest.raises(ValueError, match="arms: 'nothing', wanted some of baseline"):
        gap_training.run(gap_training.Config(out=str(tmp_path), arms=("nothing",)))
    with pytest.raises(ValueError, match="seeds: 0, wanted a positive number"):
        gap_training.run(gap_training.Config(out=str(tmp_path), seeds=0))
    with pytest.raises(ValueError, match="positions, masses"):
        gap_sweep.run(gap_sweep.Config(out=str(tmp_path), masses=(2.0,)))
    with pytest.raises(ValueError, match=r"inception must be .* no weights at .*nowhere\.pth"):
        gap_training.run(gap_training.Config(out=str(tmp_path), inception="nowhere.pth"))
    absent = denoiser_swap.Config(out=str(tmp_path), memorizing="absent", runs=str(tmp_path / "no"))
    with pytest.raises(ValueError, match="run: absent is not a run folder"):
        denoiser_swap.run(absent)
    assert not (tmp_path / "no").exists()  # nothing was trained first
    with pytest.raises(ValueError, match="medium: \\(8, 40\\)"):
        denoiser_swap.run(denoiser_swap.Config(out=str(tmp_path), medium=(8, 40)))
    with pytest.raises(ValueError, match="threshold: 2, wanted between 0 and 1"):
        denoiser_swap.run(denoiser_swap.Config(out=str(tmp_path), threshold=2.0))


def test_prediction_alone_trains_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(gap_training, "PRESETS", {"digits": PRESET})
    config = gap_sweep.Config(out=str(tmp_path), arms="prediction", samples=32)
    result = gap_sweep.run(config)
    rates = result.prediction.decided
    # The later the flow generalizes (the lower the edge), the more is decided already.
    assert rates[0] > 0.9 > 0.5 > rates[-1]
    assert not (tmp_path / "runs").exists()
    assert (tmp_path / "sweep.png").exists()


def test_positions_hold_the_mass_that_was_asked_for():
    base = schedules.lognormal()
    for arm in gap_sweep.make_positions(base, 3, (0.2,)):
        assert base.mass(*arm.gap) == pytest.approx(0.2, abs=1e-6)


def test_swap_windows_have_controls_of_the_same_width():
    grid = grids.edm_grid(18)
    windows = {w.name: w for w in denoiser_swap.make_windows(grid, (8, 12), (0.42, 1.39))}
    width = {name: w.last - w.first + 1 for name, w in windows.items()}
    assert width["large"] == width["medium"] == width["small"] == 5
    assert width["above-zone"] == width["zone"] == width["below-zone"] == 2
    assert all(
        0.42 <= grid[i] <= 1.39 for i in range(windows["zone"].first, windows["zone"].last + 1)
    )
    assert windows["above-zone"].last + 1 == windows["zone"].first
    # Nothing but medium takes medium steps, and nothing takes none.
    windows = denoiser_swap.make_windows(grid, (6, 13), (60, 80))
    named = {name: (first, last) for name, first, last in windows}
    assert (named["large"], named["small"]) == ((0, 5), (14, 17))
    assert "above-zone" not in named
    (only, *_) = denoiser_swap.make_windows(grid, (0, 17), (0.42, 1.39))
    assert only.name == "medium"
    # A zone between two levels still has the nearest one.
    assert denoiser_swap.make_windows(grid, (8, 12), (1.2, 1.21))[4].first == 10


def test_denoiser_swap(found, tmp_path):
    runs = found[1].folder / "runs"
    config = denoiser_swap.Config(
        memorizing=str(runs / "baseline-0"),
        generalizing=str(runs / "zone-0.5-0"),
        threshold=0.45,
        samples=16,
        out=str(tmp_path),
    )
    result = denoiser_swap.run(config)
    assert json.loads((tmp_path / "run.json").read_text())["zone"]["threshold"] == 0.45
    assert len(result.rows) == 2 * 7
    assert result.rows[0]["difference"] == 0
    assert (tmp_path / "figure.png").exists()
    assert np.isfinite([row["memorized"] for row in result.rows]).all()
