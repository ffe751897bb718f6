"""Configurations: presets, gaps, groups of flags, and errors that name their argument."""

import dataclasses
import json
import re
import subprocess
import sys

import pytest

from geomem.experiments.common import dataclass_flags
from geomem.experiments.train import PRESETS, Config, configuration, loop, presets

TINY = dataclasses.replace(PRESETS["digits"], channels=8, batch=16, num_train=32, kimg=0.32)


def test_gaps_reach_the_recipe(tmp_path):
    zone = tmp_path / "zone.json"
    zone.write_text('{"low": 0.5, "high": 2.0}')

    def schedule(**changes):
        config = configuration.resolve(dataclasses.replace(TINY, **changes))
        fields = dataclasses.asdict(config)
        return configuration.build({"config": fields, "data": {"sigma_data": 0.5}})[1].schedule

    assert schedule().edges == ()
    assert schedule(gap=(0.5, 2.0)).mass(0.5, 2.0) == 0
    assert schedule(gap_from=str(zone)) == schedule(gap=(0.5, 2.0))
    assert schedule(gap=(0.5, 2.0), keep=0.5).weights == (1, 0.5, 1)
    assert schedule(gap=(0.5, 2.0), schedule="dummy").dummy == (0.5, 2.0)


def test_presets_have_descriptions_and_old_name_works():
    assert presets.ABOUT.keys() == PRESETS.keys()
    assert PRESETS["digits_gap"] == PRESETS["digits_fourier"]
    for config in PRESETS.values():
        assert configuration.resolve(config).schedule == "lognormal"


def test_help_lists_everyday_flags_first():
    text = dataclass_flags.build(Config, "train").format_help()
    headings = re.findall(r"^(\w+):$", text, re.MULTILINE)
    assert headings == ["options", "data", "noise", "network", "training", "output", "advanced"]
    everyday = text.index("--out"), text.index("--dataset"), text.index("--gap ")
    assert everyday == tuple(sorted(everyday))
    assert set(dataclass_flags.field_help(Config)) == {
        field.name for field in dataclasses.fields(Config)
    }


ZONES = {
    "empty.json": '{"low": null, "high": null}',
    "other.json": "[]",
}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gap": (2.0, 1.0)}, "^gap must satisfy 0 < low < high, got 2.0 to 1.0"),
        ({"gap": (0.001, 1000.0)}, "^gap must leave .* got 0.001 to 1000, which leaves 0.00%"),
        (
            {"gap": (1.0, 2.0), "schedule": "lognormal"},
            "^schedule must be gap or dummy .*lognormal",
        ),
        ({"schedule": "dummy"}, "^gap must be given for the schedule dummy"),
        ({"gap": (1.0, 2.0), "gap_from": "x.json"}, "^gap and gap_from must not both be given"),
        (
            {"gap_from": "empty.json"},
            "^gap_from must hold a danger zone, got .*: low and high are null",
        ),
        ({"gap_from": "other.json"}, "^gap_from must be a JSON file with low and high, got"),
        ({"gap": (1.0, 2.0), "keep": 1.5}, r"^keep must be in \[0, 1\), got 1.5"),
        ({"keep": 0.5}, "^keep must be 0 without a gap to thin, got 0.5"),
        ({"batch": 12}, "^batch must be a multiple of the 8 devices, got 12"),
        ({"multipliers": (1, 1, 1, 1)}, "^images must have sides .* multiples of 16 .* got 8x8"),
        ({"channels": 6}, "^channels must be a multiple of 4, got 6"),
        ({"channels": -4}, "^channels must be positive, got -4"),
        ({"noise_std": -1.0}, "^noise_std must be positive, got -1.0"),
        ({"patch": 0}, "^patch must be positive, got 0"),
        ({"dropout": 1.0}, r"^dropout must be in \[0, 1\), got 1.0"),
        ({"attention": (4, 7)}, r"^attention must hold .* \[4\], got \(4, 7\)"),
        ({"gap_from": "nowhere.json"}, r"^gap_from must be .*, got nowhere\.json \(No such file"),
        ({"channels": 100}, "^channels and multipliers must make layers .*, got a layer of 200"),
        (
            {"log_every": 4, "checkpoint_every": 6},
            r"^checkpoint_every must .* log_every \(4\), got 6",
        ),
        ({"num_train": 10_000}, "num-train.* must be between 1 and 900, .*, got 10000"),
        ({"kimg": 0}, "^kimg must be positive, got 0"),
    ],
)
def test_rejects_bad_configurations(changes, message, tmp_path):
    for name, text in ZONES.items():
        (tmp_path / name).write_text(text)
    if changes.get("gap_from") in ZONES:
        changes = {**changes, "gap_from": str(tmp_path / changes["gap_from"])}
    with pytest.raises(ValueError, match=message) as error:
        loop.run(dataclasses.replace(TINY, out=str(tmp_path / "out"), **changes))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()  # rejected before anything is written


def test_reads_configurations_of_older_versions():
    fields = json.loads(json.dumps(dataclasses.asdict(configuration.resolve(TINY))))
    for name in ("heldout_seed", "num_heldout"):
        del fields[name]
    assert configuration.from_facts({"config": fields}) == configuration.resolve(TINY)


def test_commands_report_errors_in_one_line(tmp_path):
    (tmp_path / "notes.txt").touch()
    for module, flags, message in [
        ("train", ["digits", "--out", tmp_path, "--kimg", "1"], "notes.txt"),
        ("sample", ["--run", tmp_path], "config.json"),
        ("sample", [], "--run, --weights or --denoiser must be given, and only one of them"),
    ]:
        command = [sys.executable, "-m", f"geomem.experiments.{module}", *map(str, flags)]
        result = subprocess.run(command, capture_output=True, text=True)
        assert result.returncode == 2
        (line,) = result.stderr.splitlines()
        assert line.startswith("error: ")
        assert message in line
