"""Run folders: one run each; other folders are rejected."""

import pytest

from geomem.experiments.train import run_folder


def test_folder_belongs_to_one_run(tmp_path):
    facts = {
        "config": {"lr": 0.1, "kimg": 5, "sigma_data": 0.5, "gap": (1.0, 2.0)},
        "data": {"sha256": "ab", "image_shape": [8, 8, 1], "sigma_data": 0.5},
    }
    assert not run_folder.claim(tmp_path, facts)
    assert run_folder.claim(tmp_path, facts)
    assert run_folder.read_facts(tmp_path)["config"]["gap"] == [1.0, 2.0]
    longer = {**facts, "config": {**facts["config"], "kimg": 9}}
    with pytest.raises(ValueError, match=r"^kimg must be 5 as in .*config.json, got 9"):
        run_folder.claim(tmp_path, longer)
    assert run_folder.claim(tmp_path, longer, ["config.kimg"])
    with pytest.raises(ValueError, match=r"^sha256 must be 'ab' as in .*, got 'cd'"):
        run_folder.claim(
            tmp_path,
            {**longer, "data": {"sha256": "cd", "image_shape": [8, 8, 1], "sigma_data": 0.5}},
        )


def test_rejects_a_folder_that_is_not_a_run(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(ValueError, match=r"^out must be .*, which holds thesis.tex but no config"):
        run_folder.claim(tmp_path, {})
    with pytest.raises(ValueError, match=r"^run must be the folder of a training run, got"):
        run_folder.read_facts(tmp_path)
