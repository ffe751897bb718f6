"""The training benchmark at a small size."""

import dataclasses
import json

import pytest

from geomem.experiments.benchmarks import training_speed
from geomem.experiments.train import presets


@pytest.mark.slow
def test_times_the_command_and_the_bare_loop(tmp_path, monkeypatch):
    tiny = dataclasses.replace(presets.PRESETS["digits"], channels=8)
    monkeypatch.setitem(presets.PRESETS, "digits", tiny)
    config = training_speed.Config(
        batch=8, steps=2, compute=("float32",), profile=False, out=str(tmp_path)
    )
    (row,) = training_speed.run(config)
    assert row["images_per_second"] > 0
    assert row["seconds_per_step"] > 0
    assert row["compilations_after"] == 0
    assert 0 <= row["outside_device"] < 1
    written = json.loads((tmp_path / "benchmark_training.json").read_text())
    assert written["rows"] == [row]


@pytest.mark.slow
def test_times_pytorch_in_turn(tmp_path, monkeypatch):
    pytest.importorskip("torch")
    tiny = dataclasses.replace(presets.PRESETS["digits"], channels=8)
    monkeypatch.setitem(presets.PRESETS, "digits", tiny)
    config = training_speed.Config(
        batch=8, steps=2, compute=("float32",), profile=False, torch=True, out=str(tmp_path)
    )
    (row,) = training_speed.run(config)
    low, high = row["ratio_range"]
    assert 0 < low <= row["ratio_to_torch"] <= high
    assert row["torch_images_per_cpu_second"] > 0
