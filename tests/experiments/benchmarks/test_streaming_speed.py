"""The scale command at a small size, and its arithmetic against sums done by hand."""

import json

import pytest

from geomem.experiments.benchmarks import streaming_speed


@pytest.mark.parametrize("stored", ["uint8", "float32"])
def test_the_command_measures_and_leaves_no_file_behind(tmp_path, stored):
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


def test_floors_are_the_sums_of_the_readme():
    """Two devices of 1 Tflop/s, 1 GB/s; 1,000 points of dimension 10; 4 queries."""
    machine = streaming_speed.Machine("toy", 2, 1e12, 1e9, 1e9, 1e9)
    found = streaming_speed.floors(machine, 1000, 10, 4)
    assert found["gigabytes_held"] == pytest.approx(500 * 10 * 4 / 1e9)
    assert found["product_seconds"] == pytest.approx(4 * 4 * 500 * 10 / 1e12)
    assert found["memory_seconds"] == pytest.approx(4 * 500 * 10 * 4 / 1e9)
    assert found["link_seconds"] == pytest.approx((2 * 4 * 10 * 4 + 4 * 16 * 8) / 1e9)


def test_bad_counts_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"counts: \[100, 50\], wanted ascending"):
        streaming_speed.run(streaming_speed.Config(counts=(100, 50), queries=8, out=str(tmp_path)))
