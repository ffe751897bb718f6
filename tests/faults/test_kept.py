"""What studies keep of finished work is checked when it is read, and made again if damaged."""

import json
import re

import numpy as np
import pytest

from geomem.experiments import memorization_onset
from geomem.experiments.common import arms

ROW = dict.fromkeys(arms.MEASURES, 0.5) | {"recall": None, "features": "pixels"}
OBSERVATION = {"step": 4, "kimg": 1, "watch/copying": 1, "watch/memorized": 0.5}
OBSERVATION |= {"watch/heldout_ratio": 0.9}


def test_damaged_evaluations_are_not_used(tmp_path):
    settings = arms.EvaluationSettings(2)
    cache = arms.EvaluationCache(tmp_path, settings)
    key = cache.key(1, np.ones(2))
    cache.put(key, ROW)
    text = (tmp_path / "judged.jsonl").read_text()
    old = re.sub(', "crc": [0-9]+', "", text)  # as geomem once wrote it
    cases = {
        text: ROW,
        old: ROW,
        "[]\n3\n" + text: ROW,
        text.replace("0.5", "0.6", 1): None,
        text.replace("recall", "recal"): None,
        text[:-9]: None,
        old.replace("0.5", "NaN", 1): None,
        old.replace("0.5", '"0.5"', 1): None,
        old.replace("recall", "recal"): None,
        old.replace('"found": {', '"found": [{').replace("}}", "}]}"): None,
    }
    for content, expected in cases.items():
        (tmp_path / "judged.jsonl").write_text(content)
        assert arms.EvaluationCache(tmp_path, settings).get(key) == expected, content


def test_damaged_samples_are_not_used(tmp_path):
    path, good = tmp_path / "a.npz", {"images": np.ones((3, 2)), "index": np.arange(3)}
    assert arms.read_arrays(path, ["images"]) is None
    arms.write_arrays(path, **good)
    content = path.read_bytes()
    assert arms.read_arrays(path, ["images", "index"]).keys() == good.keys()
    assert arms.read_arrays(path, ["images", "other"]) is None
    with np.load(path) as archive:
        crc = archive["crc"]
    np.savez(path, crc=crc, **good | {"index": np.arange(3) + 10**6})
    assert arms.read_arrays(path, ["images"]) is None
    np.savez(path, crc=crc, images=good["images"])
    assert arms.read_arrays(path, ["images"]) is None
    np.savez(path, **good)  # as geomem once wrote it
    assert arms.read_arrays(path, ["images"]) is not None
    for damaged in (b"", b"x", content[:-30], content.replace(b"\x78", b"\x79")):
        path.write_bytes(damaged)
        assert arms.read_arrays(path, ["images"]) is None


@pytest.mark.parametrize(
    "content",
    [
        "",
        "x",
        "[1]",
        "{}",
        json.dumps(OBSERVATION)[:-3],
        json.dumps({k: v for k, v in OBSERVATION.items() if k != "kimg"}),
        json.dumps(OBSERVATION | {"watch/memorized": float("nan")}),
        json.dumps(OBSERVATION | {"watch/copying": "yes"}),
        None,
    ],
)
def test_damaged_metrics_are_named(content, tmp_path):
    (tmp_path / "metrics.jsonl").write_text(json.dumps(OBSERVATION) + "\n")
    assert memorization_onset._observations(tmp_path) == [(1000, OBSERVATION)]
    if content is None:
        (tmp_path / "metrics.jsonl").unlink()
    else:
        (tmp_path / "metrics.jsonl").write_text(content)
    with pytest.raises(ValueError, match=r"out must hold runs with whole metrics, got .*jsonl"):
        memorization_onset._observations(tmp_path)
