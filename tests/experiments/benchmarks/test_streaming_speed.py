"""The scale command at a small size, and its roofline against sums by hand."""

import json

import pytest

from geomem.experiments.benchmarks import streaming_speed, timing
from geomem.experiments.common import chips


@pytest.mark.parametrize("stored", ["uint8", "float32"])
def test_writes_results_and_removes_temporary_files(tmp_path, stored, monkeypatch):
    monkeypatch.setattr(timing, "_SIDE", 256)  # timing means nothing at this size
    (tmp_path / "temporary").mkdir()
    config = streaming_speed.Config(
        counts=(60, 100),
        stored=stored,
        queries=8,
        repeats=1,
        temporary=str(tmp_path / "temporary"),
        out=str(tmp_path / "out"),
    )
    rows = streaming_speed.run(config)
    assert [row.points for row in rows] == [60, 100]
    assert not list((tmp_path / "temporary").iterdir())
    facts = json.loads((tmp_path / "out" / "scale.json").read_text())
    assert facts["relative_difference_to_memory"] <= 1e-6
    assert (tmp_path / "out" / "figure.png").exists()


def test_roofline_matches_sums_by_hand():
    """Two devices of 1 Tflop/s, 1 GB/s; 1,000 points of dimension 10; 4 queries."""
    chip = chips.Chip("toy", "toy", 1e9, 1e9, 1e9, {"float32": 1, "bfloat16": 1})
    least = streaming_speed.roofline(chip, 2, 1000, 10, 4)
    assert least["gigabytes_held"] == pytest.approx(500 * 10 * 4 / 1e9)
    assert least["product_seconds"] == pytest.approx(4 * 4 * 500 * 10 / 1e12)
    assert least["memory_seconds"] == pytest.approx(4 * 500 * 10 * 4 / 1e9)
    assert least["link_seconds"] == pytest.approx((2 * 4 * 10 * 4 + 4 * 16 * 8) / 1e9)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"counts": (100, 50)}, r"^counts must ascend from at least 8 .*, got \[100, 50\]\.$"),
        ({"counts": (4, 50)}, r"^counts must ascend from at least 8 .*, got \[4, 50\]\.$"),
        ({"repeats": 0}, r"^repeats must be at least 1, got 0\.$"),
    ],
)
def test_rejects_bad_flags(tmp_path, flags, message):
    with pytest.raises(ValueError, match=message):
        streaming_speed.run(streaming_speed.Config(queries=8, out=str(tmp_path), **flags))
