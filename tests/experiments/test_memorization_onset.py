"""When copying starts: real trainings of tiny networks, and the fits on known onsets."""

import csv
import dataclasses
import json
import math

import numpy as np
import pytest

from geomem.experiments import memorization_onset as onset
from geomem.experiments.common import gap_study
from geomem.experiments.common.arms import EvaluationSettings
from geomem.experiments.train import loop, presets

TINY = dataclasses.replace(
    presets.PRESETS["digits_fourier"], channels=8, multipliers=(1,), batch=16, sigma_data=0.75
)
PRESET = gap_study.Preset(TINY, EvaluationSettings(samples=8), 1, (0.5,))


def test_trains_networks_of_each_size_on_their_own_images(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(gap_study.PRESETS, "digits", PRESET)
    config = onset.Config(
        sizes=(16, 28, 48), seeds=1, fresh=1, passes=4, every=2, samples=8, jobs=1,
        out=str(tmp_path),
    )  # fmt: skip
    result = onset.run(config)
    with (tmp_path / "onset.csv").open() as file:
        rows = list(csv.DictReader(file))
    sizes = [(row["arm"], row["train_images"]) for row in rows if row["fresh"] == "False"]
    assert sizes == [(arm, size) for size in ("16", "28", "48") for arm in ("baseline", "gap")]
    assert [row["train_images"] for row in rows if row["fresh"] == "True"] == ["28"]
    # After four passes, nothing is copied yet.
    assert {row["onset"] for row in rows} == {""}
    assert [float(row["without_copies"]) for row in rows[:2]] == [64, 64]
    assert result.fits == {"baseline": None, "gap": None}
    facts = json.loads((tmp_path / "fits.json").read_text())
    assert facts["gap"] == {"networks": 3, "copied": 0}
    assert facts["delay"] == {"pairs": 3, "copied": 0}
    assert "baseline: 0 of 3 networks copied\n" in capsys.readouterr().out
    assert (tmp_path / "onset.png").stat().st_size > 0
    gaps = {row["gap_low"] for row in rows if row["arm"] == "gap"}
    assert len(gaps) == 3  # the zone of each training set
    monkeypatch.setattr(loop, "_train", None)  # nothing is trained again
    assert onset.run(config).rows == result.rows


def _rows(factor, exponent, spread, arm, mass=0.0, seeds=3):
    rng = np.random.default_rng(0)
    return [
        {
            "arm": arm,
            "train_images": size,
            "seed": seed,
            "fresh": False,
            "gap_mass": mass,
            "onset": factor * size**exponent * math.exp(spread * rng.normal()),
        }
        for size in (50, 100, 200, 400)
        for seed in range(seeds)
    ]


def test_gap_delays_by_a_factor():
    rows = _rows(500, 1, 0.1, "baseline") + _rows(1000, 1, 0.1, "gap", mass=0.5)
    delay = onset._delay(rows)
    assert delay["pairs"] == delay["copied"] == 12
    assert delay["plain"]["mean"] == pytest.approx(2)
    assert delay["matched"]["mean"] == pytest.approx(1)  # half of the steps are in the gap
    rows[-1]["onset"] = None
    delay = onset._delay(rows)
    assert (delay["pairs"], delay["copied"]) == (12, 11)
    assert onset._fit_rows(rows[12:]) is None  # a fit without it would be biased


def test_intervals_of_the_power_law_cover():
    rng, inside, predicted = np.random.default_rng(0), 0, 0
    sizes = np.repeat([50, 100, 200, 400], 3)
    for _ in range(1000):
        law = onset.fit(sizes, 300 * sizes**0.8 * np.exp(0.2 * rng.normal(size=12)))
        inside += law.exponent.low <= 0.8 <= law.exponent.high
        _, low, high = law.predict(150)
        predicted += low <= 300 * 150**0.8 * math.exp(0.2 * rng.normal()) <= high
    assert 0.93 <= inside / 1000 <= 0.97
    assert 0.93 <= predicted / 1000 <= 0.97


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sizes": (16, 32)}, "sizes must be three or more different numbers from 4, got 16 32"),
        ({"sizes": (16, 16, 32, 64)}, "sizes must be three or more different"),
        ({"sizes": (2, 16, 32)}, "sizes must be three or more"),
        ({"seeds": 0}, "seeds must be positive, got 0"),
        ({"passes": -1}, "passes must be positive, got -1"),
    ],
)
def test_rejects_bad_flags(changes, message, tmp_path):
    with pytest.raises(ValueError, match=f"^{message}"):
        onset.run(onset.Config(**changes, out=str(tmp_path)))
