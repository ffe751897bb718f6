"""Training arms end to end on tiny runs: gaps, training, tables and figures."""

import csv
import dataclasses
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest

from geomem.diffusion import checkpoints, grids, schedules
from geomem.experiments import denoiser_swap, gap_sweep, gap_training
from geomem.experiments.common import arm_tables, arms, gap_study, parallel
from geomem.experiments.common.arms import Arm, EvaluationSettings, Task
from geomem.experiments.train import configuration, loop, presets

TINY = dataclasses.replace(
    presets.PRESETS["digits_fourier"],
    num_train=32,
    channels=8,
    multipliers=(1,),
    batch=16,
    kimg=0.64,
    log_every=20,
    checkpoint_every=20,
)
EVALUATION = EvaluationSettings(samples=16, steps=6)
PRESET = gap_study.Preset(TINY, EVALUATION, 1, (0.8, 0.5))
ARMS = ("baseline", "zone-0.5")


@pytest.fixture(scope="module", autouse=True)
def tiny_preset():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(gap_study.PRESETS, "digits", PRESET)
        yield


@pytest.fixture(scope="module")
def study(tmp_path_factory, tiny_preset):
    """The configuration and the result of gap_training with two arms."""
    out = tmp_path_factory.mktemp("gap")
    config = gap_training.Config(out=str(out), arms=ARMS, jobs=1)
    return config, gap_training.run(config)


def test_arms_are_zones_and_controls_of_equal_mass():
    train = dataclasses.replace(TINY, noise_mean=-1.2, noise_std=1.2, kimg=10)
    base = schedules.lognormal()
    zones = [(0.5, 0.9), (0.4, 1.4)]
    chosen = {arm.name: arm for arm in gap_training.make_arms(train, zones, (0.8, 0.5))}
    assert list(chosen)[:4] == ["baseline", "dummy", "zone-0.8", "zone-0.5"]
    mass = base.mass(*zones[1])
    for name in ("small-noise", "far-small-noise"):
        assert base.mass(*chosen[name].gap) == pytest.approx(mass, abs=1e-6)
    assert chosen["small-noise"].gap[1] == zones[1][0]  # adjacent
    assert chosen["far-small-noise"].gap[1] < chosen["small-noise"].gap[1]
    low, high = chosen["large-noise"].gap
    assert low == zones[1][1]
    assert base.mass(0, high) == pytest.approx(1, abs=1e-6)
    # As many images as the gap of that mass leaves.
    assert dict(chosen["shorter"].changes)["kimg"] == pytest.approx(10 * (1 - mass))
    moved = [dict(chosen[f"{name}-noise"].changes)["noise_mean"] for name in ("less", "more")]
    assert moved == pytest.approx([-1.8, -0.6])


def test_own_subsets_follow_the_seed(tmp_path):
    arm = gap_study.Arm("baseline")
    shared, own = (
        [arm.configure(TINY, seed, tmp_path, flag).subset_seed for seed in range(3)]
        for flag in (False, True)
    )
    assert shared == [TINY.subset_seed] * 3
    assert own == [0, 1, 2]
    config = gap_training.Config(own_subsets=True)
    assert gap_study.resolve(config).train.subset_seed == 0


def test_pairs_of_arms_are_compared_seed_by_seed():
    values = {"a": [0.5, 0.7, 0.6], "b": [0.1, 0.4, 0.1], "c": [0.6, 0.7, 0.8]}
    rows = [
        {"arm": arm, "seed": seed, "kimg": kimg, "without_noise": value * kimg / 2}
        | {"frechet": 2.0, "recall": None, "coverage": 0.5}
        for arm, each in values.items()
        for seed, value in enumerate(each)
        for kimg in (1, 2)
    ]
    pairs = {(r["first"], r["second"], r["endpoint"]): r for r in arm_tables.compare_pairs(rows)}
    assert len(pairs) == 3 * 3  # no recall
    for first, second in (("a", "b"), ("a", "c"), ("b", "c")):
        each = np.subtract(values[second], values[first])
        row = pairs[first, second, "without_noise"]
        half = 4.302653 * each.std(ddof=1) / np.sqrt(3)  # Student's t, two degrees of freedom
        expected = each.mean(), each.mean() - half, each.mean() + half
        assert [row[k] for k in ("mean", "low", "high")] == pytest.approx(expected, rel=1e-5)


def test_gap_training_writes_rows_and_figures(study):
    result = study[1]
    with (result.folder / "results.csv").open() as file:
        table = list(csv.DictReader(file))
    # Two arms; checkpoints at steps 20 and 40; the last one also with the levels inside the gap.
    assert [(row["arm"], row["kimg"]) for row in table] == [
        (arm, kimg) for arm in ARMS for kimg in ("0.32", "0.64")
    ]
    assert [row["whole_grid_frechet"] == "" for row in table] == [True, False] * 2
    (baseline, gap) = (row for row in result.rows if row["kimg"] == 0.64)
    assert baseline["whole_grid_frechet"] == baseline["frechet"]
    assert gap["whole_grid_frechet"] != gap["frechet"]
    for row in result.rows:
        assert row["memorized_low"] <= row["memorized"] <= row["memorized_high"]
        assert row["frechet"] > 0
    gaps = {row["arm"]: row["gap_mass"] for row in result.rows}
    assert gaps["baseline"] == 0 < gaps["zone-0.5"]
    for name in ("training.png", "frontier.pdf", "samples_baseline.png", "summary.csv"):
        assert (result.folder / name).stat().st_size > 0
    (comparison,) = json.loads((result.folder / "comparisons.json").read_text())
    assert comparison["arm"] == "zone-0.5"
    memorized = comparison["memorized"]
    assert memorized["trainings"]["each"] == [memorized["difference"]]
    for name, endpoint in comparison["endpoints"].items():
        assert endpoint["mean"] == gap[name] - baseline[name]
        assert endpoint["low"] is None  # one seed has no interval
    assert list(comparison["endpoints"]) == ["without_noise", "frechet", "recall", "coverage"]
    floors = json.loads((result.folder / "floors.json").read_text())
    assert floors["training_images"]["count"] == TINY.num_train
    for floor in floors.values():  # real images are better than 40 steps of training
        assert floor["frechet"] < gap["frechet"]
        assert floor["coverage"] > gap["coverage"]


def test_same_command_computes_nothing_again(study, monkeypatch):
    config, result = study
    monkeypatch.setattr(arms, "evaluate_samples", None)  # fails if called
    assert gap_training.run(config).rows == result.rows


def test_kept_samples_follow_the_settings(study, monkeypatch):
    config, result = study
    runs = result.folder / "runs"
    for samples in (4, 16):
        gap_training.run(dataclasses.replace(config, samples=samples))
        assert len(arms.read_samples(runs, "baseline", 0)["images"]) == samples
        (comparison,) = json.loads((result.folder / "comparisons.json").read_text())
        assert comparison["memorized"]["first"][1] == samples
    monkeypatch.setattr(arms, "evaluate_samples", None)
    evaluations = runs / "baseline-0" / "judged.jsonl"
    evaluations.write_text(evaluations.read_text() + '{"at": [40, 16')  # an interrupted write
    assert gap_training.run(config).rows == result.rows


def test_interruption_checkpoints_are_kept_but_not_evaluated(study, tmp_path):
    arm = Arm("baseline")
    config = arm.configure(TINY, 0, tmp_path)
    loop.run(dataclasses.replace(config, kimg=0.4))  # as if interrupted at step 25
    rows = arms.train_and_evaluate(Task(arm, config, EVALUATION))
    assert [row["kimg"] for row in rows] == [0.32, 0.64]
    with checkpoints.Checkpoints(config.out, read_only=True) as saved:
        assert saved.steps() == [20, 25, 40]
    assert rows[-1]["frechet"] == study[1].rows[1]["frechet"]


def test_kimg_sets_the_checkpoints_and_can_be_raised(monkeypatch):
    preset = PRESET._replace(train=presets.PRESETS["digits_fourier"])
    monkeypatch.setitem(gap_study.PRESETS, "digits", preset)
    for kimg in (80.0, 1000.0):
        train = gap_study.resolve(gap_training.Config(kimg=kimg)).train
        assert train.log_every == preset.train.log_every
        assert train.checkpoint_every % train.log_every == 0
        assert 5 <= train.steps / train.checkpoint_every <= 9


def test_flags_change_the_presets_images_and_network():
    config = gap_training.Config(num_train=40, channels=16, blocks=2, embedding="positional")
    changed = dataclasses.replace(TINY, num_train=40, channels=16, blocks=2, embedding="positional")
    assert gap_study.resolve(config).train == changed
    with pytest.raises(ValueError, match="blocks must be positive, got 0"):
        gap_study.resolve(gap_training.Config(blocks=0))


@pytest.mark.slow
def test_parallel_processes_give_the_same_rows(study, tmp_path, monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "")  # one device each
    gap = next(row for row in study[1].rows if row["arm"] == ARMS[1])
    chosen = Arm(ARMS[0]), Arm(ARMS[1], (gap["gap_low"], gap["gap_high"]))
    tasks = [Task(arm, arm.configure(TINY, 0, tmp_path), EVALUATION) for arm in chosen]
    rows = parallel.train_and_evaluate_all(tasks, jobs=2)
    assert [row["arm"] for row in rows] == [row["arm"] for row in study[1].rows]
    for row, expected in zip(rows, study[1].rows, strict=True):
        assert row["frechet"] == pytest.approx(expected["frechet"], rel=1e-3)


_PARALLEL_RUNS = """
import dataclasses, pathlib, sys
from geomem.experiments import train
from geomem.experiments.common import arms, parallel

config = dataclasses.replace(
    train.PRESETS["digits_fourier"], num_train=32, channels=8, multipliers=(1,), kimg=1e6,
    log_every=5,
)
config = dataclasses.replace(config, checkpoint_every=10**9)
arm, folder = arms.Arm("a"), pathlib.Path(sys.argv[1])
settings = arms.EvaluationSettings()
tasks = [arms.Task(arm, arm.configure(config, seed, folder), settings) for seed in (0, 1)]
parallel.train_and_evaluate_all(tasks, 2)
"""


@pytest.mark.slow
def test_parallel_runs_save_and_stop_when_their_parent_is_killed(tmp_path):
    environment = {**os.environ, "XLA_FLAGS": ""}
    with (tmp_path / "log").open("w") as log:
        parent = subprocess.Popen(
            [sys.executable, "-c", _PARALLEL_RUNS, str(tmp_path)], env=environment, stderr=log
        )
        logs = [tmp_path / f"a-{seed}" / "metrics.jsonl" for seed in (0, 1)]
        _wait(lambda: all(path.exists() and path.stat().st_size for path in logs))
        listed = subprocess.run(["pgrep", "-P", str(parent.pid)], capture_output=True, text=True)
        parent.kill()
        parent.wait()
    children = [pathlib.Path("/proc", child) for child in listed.stdout.split()]
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


def test_summary_holds_means_and_standard_errors():
    rows = [
        {"arm": "a", "kimg": 1.0, "memorized": value, "late": late}
        for value, late in ((0.1, None), (0.5, 1.0))
    ]
    (line,) = arm_tables.summarize(rows, "memorized", "late")
    assert line["memorized"] == pytest.approx(0.3)
    assert line["memorized_error"] == pytest.approx(0.2)  # std 0.2828 / sqrt(2)
    assert line["seeds"] == 2
    assert line["late"] is None is line["late_error"]


def test_early_stopping_picks_the_least_memorized_checkpoint():
    def row(arm, kimg, frechet, memorized):
        keys = {"seed": 0, "without_noise": memorized}
        return {"arm": arm, "kimg": kimg, "frechet": frechet, **keys}

    rows = [
        row("baseline", 1, 3.0, 0.0),  # too bad
        row("baseline", 2, 2.0, 0.2),
        row("baseline", 3, 1.5, 0.8),
        row("gap", 3, 2.1, 0.3),
    ]
    comparison = gap_training.compare_early_stopping(rows, "gap", "baseline")
    assert (comparison["without_noise"], comparison["baseline_without_noise"]) == (0.3, 0.2)
    assert comparison["baseline_kimg"] == 2
    rows[-1]["frechet"] = 1.0
    assert (
        gap_training.compare_early_stopping(rows, "gap", "baseline")["baseline_without_noise"]
        is None
    )


@pytest.mark.parametrize(
    ("command", "flags", "message"),
    [
        (gap_training, {"arms": ("nothing",)}, r"^arms must be among baseline, .*got 'nothing'\.$"),
        (gap_training, {"seeds": 0}, r"^seeds must be positive, got 0\.$"),
        (gap_training, {"inception": "nowhere.pth"}, r"inception must be .* got .*nowhere\.pth"),
        (gap_sweep, {"masses": (2.0,)}, r"^masses must be fractions between 0 and 0\.9, got "),
        (gap_sweep, {"masses": ()}, r"^masses must be fractions between 0 and 0\.9, got "),
        (gap_sweep, {"positions": 0}, r"^positions must be at least 1, got 0\.$"),
        (
            denoiser_swap,
            {"medium": (8, 40)},
            r"^medium must be two steps from 0 to 17, got \(8, 40\)",
        ),
        (denoiser_swap, {"threshold": 2.0}, r"^threshold must be between 0 and 1, got 2\.$"),
        (denoiser_swap, {"samples": 0}, r"^samples must be at least 1, got 0\.$"),
    ],
)
def test_rejects_bad_flags(command, flags, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        command.run(command.Config(out=str(tmp_path), **flags))


def test_swap_reports_a_missing_run_before_training(tmp_path):
    runs = tmp_path / "runs"
    config = denoiser_swap.Config(out=str(tmp_path), memorizing="absent", runs=str(runs))
    with pytest.raises(
        ValueError, match=r"^memorizing must be the folder of a training run, got absent"
    ):
        denoiser_swap.run(config)
    assert not runs.exists()


def test_prediction_trains_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(gap_sweep, "_PREDICTION_STEPS", 16)
    config = gap_sweep.Config(out=str(tmp_path), arms="prediction", samples=32)
    decided = gap_sweep.run(config).prediction.decided
    # The later the flow generalizes (the lower the edge), the more is already decided.
    assert decided[0] > 0.9 > 0.5 > decided[-1]
    assert not (tmp_path / "runs").exists()
    assert (tmp_path / "sweep.png").exists()


def test_sweep_compares_each_gap_with_the_baseline_and_with_fewer_steps(tmp_path, monkeypatch):
    monkeypatch.setattr(gap_sweep, "_PREDICTION_STEPS", 16)
    config = gap_sweep.Config(
        out=str(tmp_path), arms="positions", positions=1, masses=(0.3,), jobs=1
    )
    rows = gap_sweep.run(config).rows
    (gap,) = gap_sweep.make_positions(configuration.base_schedule(TINY), 1, (0.3,))
    ends = {row["arm"]: row["kimg"] for row in rows}
    assert ends["shorter-0.3"] == pytest.approx(0.7 * ends["baseline"], abs=0.064)
    with open(tmp_path / "pairs.csv", newline="") as file:
        pairs = {(row["first"], row["second"]) for row in csv.DictReader(file)}
    assert pairs >= {("baseline", gap.name), ("shorter-0.3", gap.name)}


def test_one_arm_has_no_pairs(study, tmp_path):
    config, _ = study
    alone = dataclasses.replace(config, out=str(tmp_path), arms=("baseline",))
    shutil.copytree(pathlib.Path(config.out) / "runs", tmp_path / "runs")
    gap_training.run(alone)
    assert not (tmp_path / "pairs.csv").exists()


def test_gap_positions_hold_the_requested_mass():
    base = schedules.lognormal()
    for arm in gap_sweep.make_positions(base, 3, (0.2,)):
        assert base.mass(*arm.gap) == pytest.approx(0.2, abs=1e-6)


def test_swap_controls_are_as_wide_as_their_window():
    grid = grids.edm_grid(18)
    windows = {w.name: w for w in denoiser_swap.make_windows(grid, (8, 12), (0.42, 1.39))}
    width = {name: w.last - w.first + 1 for name, w in windows.items()}
    assert width["large"] == width["medium"] == width["small"] == 5
    assert width["above-zone"] == width["zone"] == width["below-zone"] == 2
    assert all(
        0.42 <= grid[i] <= 1.39 for i in range(windows["zone"].first, windows["zone"].last + 1)
    )
    assert windows["above-zone"].last + 1 == windows["zone"].first
    # Controls share no step with medium; controls without steps are left out.
    windows = denoiser_swap.make_windows(grid, (6, 13), (60, 80))
    named = {name: (first, last) for name, first, last in windows}
    assert (named["large"], named["small"]) == ((0, 5), (14, 17))
    assert "above-zone" not in named
    (only, *_) = denoiser_swap.make_windows(grid, (0, 17), (0.42, 1.39))
    assert only.name == "medium"
    # A zone between two levels still has the step nearest to it.
    assert denoiser_swap.make_windows(grid, (8, 12), (1.2, 1.21))[4].first == 10


def test_denoiser_swap_writes_a_row_for_each_window(study, tmp_path):
    runs = study[1].folder / "runs"
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
