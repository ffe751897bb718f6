"""Commands refuse damaged and hostile files in one line that names the flag and the file."""

import json
import os
import pathlib
import shutil

import numpy as np
import pytest
from faults import files
from faults.commands import check_all, make_run, refuses  # noqa: F401
from safetensors.numpy import save_file

from geomem.experiments import danger_zone
from geomem.experiments.common import denoisers, replacements
from geomem.experiments.train import metrics_log

DATA = pathlib.Path(__file__).parents[1] / "data"
SMALL = ["--num-sigmas", "3", "--bootstrap", "2"]


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    return files.write(tmp_path_factory.mktemp("damaged"))


# Refused for their values, in messages that do not name the file.
UNNAMED = {"nan.npy", "inf.npy", "large.npy", "bool.npy", "vectors.npy", "one_value.npy"}
UNNAMED |= {"beyond_float32.npy", "squares_overflow.npy", "squares_underflow.npy"}
UNNAMED |= {"subnormal.npy", "far_from_zero.npy"}
NAMES = [*files.ARRAYS, *files.FOLDERS, "bomb.npz", "pipe.npy", "pipe.npz", "folder.npy"]


@pytest.mark.parametrize(
    "command",
    [
        ["danger-zone", "DATA", *SMALL],
        ["danger-zone", "digits", *SMALL, "--heldout", "DATA"],
        ["audit", "DATA", "--num-sigmas", "3"],
        ["train", "digits", "DATA", "--num-train", "4", "--out", "run"],
        ["evaluate", "--samples", "DATA", "--dataset", "digits"],
    ],
    ids=["danger-zone", "heldout", "audit", "train", "evaluate"],
)
def test_bad_images_are_refused(command, damaged, refuses):  # noqa: F811
    place = next(command[i - 1] for i, word in enumerate(command) if word == "DATA")
    flag = place if place.startswith("--") else "--dataset"
    rows = []
    for name in NAMES:
        if name == "one_image" and flag != "--dataset":
            continue  # one image of another size, which each command words in its own way
        words = [str(damaged[name]) if word == "DATA" else word for word in command]
        named = name not in UNNAMED
        rows.append((words, flag, name.split("/")[0] if named and flag != "--heldout" else ""))
    check_all(refuses, rows)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("run") / "run")


def test_a_repairing_run_must_fit_the_images(run):
    with pytest.raises(ValueError, match=r"^repair_with must be a run on images of shape \(9, 9"):
        replacements.make(str(run), None, shape=(9, 9, 1))
    with pytest.raises(
        ValueError, match=r"^repair_with must be the folder of a training run, got "
    ):
        replacements.make(str(run.parent), None)


def test_pipes_are_no_tables(tmp_path):
    for name in ("errors.csv", "metrics.jsonl"):
        os.mkfifo(tmp_path / name)
    with pytest.raises(ValueError, match="must be a CSV file with rows"):
        denoisers.read_table(tmp_path / "errors.csv")
    with pytest.raises(ValueError, match=r"^out must hold a file metrics\.jsonl"):
        metrics_log.MetricsLog(tmp_path, 0)


def changed(facts, path, value):
    """The JSON text of facts with one entry changed, or removed."""
    facts = json.loads(json.dumps(facts))
    *parents, last = path.split(".")
    place = facts
    for parent in parents:
        place = place[parent]
    if value is KeyError:
        del place[last]
    else:
        place[last] = value
    return json.dumps(facts).encode()


def _change_files(folder, change):
    for path in (folder / "4").rglob("*"):
        if path.is_file():
            change(path)


DAMAGES = {  # of the folder of checkpoints
    "short": lambda folder: _change_files(folder, lambda path: path.write_bytes(b"{}")),
    "emptied": lambda folder: _change_files(folder, pathlib.Path.unlink),
    "file": lambda folder: (shutil.rmtree(folder), folder.touch()),
    "file_as_step": lambda folder: (shutil.rmtree(folder / "4"), (folder / "4").touch()),
    "loop": lambda folder: (shutil.rmtree(folder), folder.symlink_to(folder.name)),
    "no_step": lambda folder: (folder / "4").rename(folder / "four"),
}


def test_damaged_runs_are_refused(run, tmp_path, refuses):  # noqa: F811
    facts = json.loads((run / "config.json").read_text())
    changes = [
        *(("config." + name, value) for name in ("channels", "patch", "blocks")
          for value in (0, -1, 1.5, "8", None, True, 10**9)),
        *(("config.multipliers", value) for value in ([], [0], ["1"], 3, [10**9], [[1]])),
        *(("config.noise_std", value) for value in (0, -1, "x", None, float("nan"), float("inf"))),
        *(("config.schedule", value) for value in ("x", 3, "gap", "dummy")),
        *(("config.embedding", value) for value in ("x", 3, None)),
        *(("config.gap", value) for value in ([1], [2, 1], ["a", "b"], "x", [True, 2])),
        ("config.unknown", 3),
        *(("data.image_shape", value) for value in ([], [8, 8], [0, 8, 1], [8.5, 8, 1], "x", None)),
        *(("data.image_shape", value) for value in ([7, 7, 1], [10**9, 8, 1], [8, 8, -1])),
        *(("data.sigma_data", value) for value in (0, -1, None, "x", float("nan"), 1e300)),
        *(("data", value) for value in (KeyError, None, [], 3)),
        *(("config", value) for value in (KeyError, None, [], 3, {"x": 1})),
        ("data.sha256", KeyError),
        ("data.sha256", 3),
    ]  # fmt: skip
    contents = [*files.JSON.values(), *(changed(facts, *change) for change in changes)]
    rows = []
    for number, content in enumerate(contents):
        folder = tmp_path / f"run{number}"
        folder.mkdir()
        (folder / "config.json").write_bytes(content)
        os.symlink(run / "checkpoints", folder / "checkpoints")
        rows.append(
            (["sample", "--run", folder, "--count", "1", "--steps", "2"], "--run", folder.name)
        )
        if number < len(files.JSON) + 12:
            samples = ["evaluate", "--samples", "digits", "--run", folder]
            rows.append((samples, "--run", folder.name))
            rows.append((["denoising-error", "--run", folder], "--run", folder.name))
            rows.append((["denoiser-swap", "--memorizing", folder, "--generalizing", run], "run"))
    for name, damage in DAMAGES.items():
        folder = tmp_path / name
        shutil.copytree(run, folder)
        damage(folder / "checkpoints")
        rows.append((["sample", "--run", folder, "--count", "1"], "--run", name))
        rows.append((["denoising-error", "--run", folder], "--run", name))
    again = ["train", "digits", "--kimg", "0.064", "--samples", "0", "--num-train", "32"]
    again += ["--channels", "8", "--batch", "16", "--log-every", "4", "--checkpoint-every", "4"]
    rows.append(([*again, "--out", tmp_path / "short"], "--out", "damaged"))
    for name in ("missing", "pipe"):
        (tmp_path / name).mkdir()
    os.mkfifo(tmp_path / "pipe" / "config.json")
    (tmp_path / "no_folder").touch()
    for name in ("missing", "pipe", "no_folder", "nowhere"):
        rows.append((["sample", "--run", tmp_path / name], "--run", name))
    repaired = ["sample", "--run", run, "--repair", "0.4", "1.4"]
    rows += [
        (["sample", "--run", run, "--step", "7"], "--step"),
        (["sample", "--run", run, "--weights", "x.npz"], "--run"),
        (["sample"], "--run"),
        (["sample", "--run", run, "--out", "/"], "--out"),
        (["sample", "--run", run, "--repair"], "--repair", "nothing"),
        (["sample", "--run", run, "--repair", "1"], "--repair", "no such file"),
        (["sample", "--run", run, "--repair", "1", "x"], "--repair", "1 x"),
        (["sample", "--run", run, "--repair", "1", "2", "3"], "--repair", "1 2 3"),
        (["sample", "--run", run, "--repair", "2", "1"], "--repair", "0 < low < high"),
        (["sample", "--run", run, "--repair", "nan", "1"], "--repair", "0 < low < high"),
        (["sample", "--run", run, "--repair", "0.5", "0.50001"], "--repair", "noise level"),
        (["sample", "--run", run, "--repair-with", "els"], "--repair-with", "without --repair"),
        (["sample", "--run", run, "--repair-patch", "3"], "--repair-patch", "without --repair"),
        ([*repaired, "--repair-with", "nowhere"], "--repair-with", "nowhere"),
        ([*repaired, "--repair-with", "wiener", "--repair-patch", "3"], "--repair-patch"),
        ([*repaired, "--repair-patch", "4"], "--repair-patch", "odd"),
        ([*repaired, "--repair-data", "cifar10_sample"], "--repair-data", "(8, 8, 1)"),
        ([*repaired, "--repair-with", run, "--repair-data", "digits"], "--repair-data"),
        (["sample", "--run", run, "--out", "x/"], "--out"),
        (["sample", "--run", run, "--out", "x.npy"], "--out"),
        (["sample", "--run", run, "--sigma-min", "5", "--sigma-max", "5"], "--sigma-min"),
        (["sample", "--run", run, "--seed", str(2**32 - 1), "--count", "2"], "--seed"),
        (["sample", "--run", run, "--out", "/proc/x.npz"], "--out"),
        (["evaluate", "--samples", "digits", "--run", run, "--num-train", "5"], "--num-train"),
        (["train", "digits", "--out", run, "--channels", "16"], "must be"),
        (["train", "digits", "--out", "/proc/x"], "--out"),
    ]
    check_all(refuses, rows)


def test_bad_zones_and_gaps_are_refused(tmp_path, refuses):  # noqa: F811
    rows = []
    for name, content in files.ZONES.items():
        (tmp_path / name).write_bytes(content)
        if name != "all":
            rows.append(
                (["train", "digits", "--gap-from", tmp_path / name, "--out", "r"], "--gap-from")
            )
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "nowhere", "."):
        rows.append(
            (["train", "digits", "--gap-from", tmp_path / name, "--out", "r"], "--gap-from")
        )
    for words, expected in (
        ("--gap 2 1", "--gap"),
        ("--gap 1e-12 1e12", "gap"),
        ("--gap 1 2 --gap-from x", "--gap"),
        ("--schedule gap", "--gap"),
        ("--schedule lognormal --gap 1 2", "--schedule"),
        ("--keep 0.5", "--keep"),
        ("--gap 1 2 --keep 1", "keep"),
        ("--dropout 1", "--dropout"),
        ("--augment 1", "--augment"),
        ("--log-every 3 --checkpoint-every 4", "--checkpoint-every"),
        ("--num-train 1e6", "--num-train"),
        ("--num-train 1000", "--num-train"),
        ("--num-heldout 1000", "--num-heldout"),
        ("--classes cat", "--classes"),
        ("--classes", ""),
        ("--resize 8", "--resize"),
        ("--heldout 1", "--heldout"),
        ("--heldout 1.5", "--heldout"),
        ("--kimg 1e9 --batch 1", "--kimg"),
        ("--patch 3", "patch"),
        ("--multipliers 1 1 1 1 1 1", ""),
    ):
        if expected:
            rows.append((["train", "digits", "--out", "r", *words.split()], expected))
    check_all(refuses, rows)


@pytest.fixture(scope="module")
def zone(tmp_path_factory):
    """The results of danger-zone."""
    folder = tmp_path_factory.mktemp("zone") / "zone"
    config = danger_zone.Config(
        dataset="digits", num_train=60, num_heldout=40, num_sigmas=7, bootstrap=50, out=str(folder)
    )
    danger_zone.run(config)
    return folder


def test_damaged_results_are_not_drawn(zone, tmp_path, refuses):  # noqa: F811
    table = (zone / "curves.csv").read_bytes()
    tables = {
        "empty": b"",
        "header": table.splitlines()[0],
        "bytes": b"\xff\xfe" + table,
        "texts": table.replace(b"0.", b"x."),
        "short_rows": b"\n".join(line[:20] for line in table.splitlines()),
        "no_column": table.replace(b"coverage", b"other"),
        "long_field": table + b'"' + b"9" * 200_000,
        "zeros": b"\x00" * 1000,
    }
    rows, damages = [], {"curves.csv": tables, "zone.json": files.JSON, "run.json": files.JSON}
    for file, contents in damages.items():
        for name, content in [*contents.items(), ("missing", None)]:
            folder = tmp_path / f"{file}-{name}"
            shutil.copytree(zone, folder)
            (folder / file).unlink() if content is None else (folder / file).write_bytes(content)
            rows.append((["danger-zone", "--plot-only", folder], "--plot-only", folder.name))
    for command in (
        "denoising-error",
        "large-noise",
        "local-denoisers",
        "noise-level-memorization",
    ):
        for name, content in tables.items():
            folder = tmp_path / f"{command}-{name}"
            folder.mkdir()
            (folder / "errors.csv").write_bytes(content)
            rows.append(([command, "--plot-only", folder], "--plot-only", folder.name))
        rows.append(([command, "--plot-only", tmp_path / "nowhere"], "--plot-only"))
    check_all(refuses, rows)


STUDIES = "gap-training", "gap-sweep", "repair", "memorization-onset"


def test_other_results_are_kept(zone, tmp_path, monkeypatch, refuses):  # noqa: F811
    monkeypatch.setenv("GEOMEM_BUCKET_SECONDS", "0.1")
    command = ["danger-zone", "digits", *SMALL, "--num-train", "60", "--out"]
    (tmp_path / "file").touch()
    rows = [
        ([*command, zone], "--out", "--overwrite"),
        ([*command, tmp_path / "file"], "--out", "file"),
        ([*command, tmp_path / "file" / "inside"], "--out", "file"),
        ([*command, "/proc/nothing"], "--out"),
        ([*command, "gs://"], "--out"),
        ([*command, "nothing://bucket/x"], "nothing://"),
        ([*command, "x" * 300], "--out"),
        (["audit", "digits", "--out", zone], "--out"),
        (["evaluate", "--samples", "digits", "--dataset", "digits", "--out", zone], "--out"),
        (["train", "digits", "--out", zone], "--out"),
        *(([name, "--out", zone], "--out", "danger_zone") for name in STUDIES),
    ]
    before = {path.name: path.read_bytes() for path in zone.iterdir()}
    for name, content in files.JSON.items():
        folder = tmp_path / name
        folder.mkdir()
        (folder / "run.json").write_bytes(content)
        rows.append(([*command, folder], "--out", name))
    check_all(refuses, rows)
    assert before == {path.name: path.read_bytes() for path in zone.iterdir()}


def test_output_among_the_images_is_refused(damaged, tmp_path, refuses):  # noqa: F811
    images = damaged["two_sizes"]
    rows = [
        ([*command, "--out", out], "--out", "outside")
        for command in (
            ["danger-zone", images],
            ["audit", images],
            ["danger-zone", "digits", "--heldout", images],
            ["train", "digits", images],
            ["evaluate", "--samples", images, "--dataset", "digits"],
        )
        for out in (images, images / "runs", images / "a" / ".." / "b")
    ]
    check_all(refuses, rows)


def test_bad_weights_are_refused(tmp_path, refuses):  # noqa: F811
    with np.load(DATA / "songunet_tiny.npz") as archive:
        tensors = {name: archive[name] for name in archive.files if name.startswith("param")}
    tensors = tensors or dict(np.load(DATA / "songunet_tiny.npz"))
    (stem,) = (name for name in tensors if name.endswith("_conv.weight") and ".enc." in name)
    block = next(name for name in tensors if "block0.conv0.weight" in name)

    def renamed(old, new):
        return {name.replace(old, new): value for name, value in tensors.items()}

    variants = {
        "nothing": {},
        "stem": {stem: tensors[stem]},
        "no_stem": {k: v for k, v in tensors.items() if k != stem},
        "no_block": {k: v for k, v in tensors.items() if k != block},
        "nan": tensors | {block: np.full_like(tensors[block], np.nan)},
        "infinite": tensors | {stem: np.full_like(tensors[stem], np.inf)},
        "complex": tensors | {block: tensors[block].astype(np.complex64)},
        "integers": tensors | {block: tensors[block].astype(np.int32)},
        "flat": tensors | {block: tensors[block].ravel()},
        "scalar": tensors | {stem: np.float32(1)},
        "half": tensors | {block: tensors[block][:1]},
        "many_blocks": renamed("block0", "block99999999"),
        "long_block": renamed("block0", "block" + "9" * 4000),
        "zero_side": renamed(stem.split(".")[-2], "0x0_conv"),
        "long_side": renamed(stem.split(".")[-2], "9" * 3000 + "x8_conv"),
        "other_side": renamed(stem.split(".")[-2], "4096x4096_conv"),
    }
    rows = []
    for name, variant in variants.items():
        np.savez(tmp_path / f"{name}.npz", **variant)
        rows.append((["sample", "--weights", tmp_path / f"{name}.npz"], "--weights", name))
        if variant and all(np.ndim(v) and v.dtype != np.complex64 for v in variant.values()):
            save_file(
                {k: np.ascontiguousarray(v) for k, v in variant.items()},
                tmp_path / f"{name}.safetensors",
            )
            rows.append((["sample", "--weights", tmp_path / f"{name}.safetensors"], "--weights"))
    os.mkfifo(tmp_path / "pipe.npz")
    os.mkfifo(tmp_path / "pipe.pth")
    (tmp_path / "text.safetensors").write_text("hello")
    (tmp_path / "long.safetensors").write_bytes(b"\xff" * 7 + b"\x00" + b"{}")
    for name in ("pipe.npz", "text.safetensors", "long.safetensors", "x.npz", "x.pkl", "."):
        rows.append((["sample", "--weights", tmp_path / name], "--weights"))
    for path in (tmp_path / "pipe.pth", DATA / "torch_zip.pth", DATA / "torch_legacy.pth"):
        rows.append((["gap-training", "--inception", path], "--inception", path.name))
    for name in ("stem.npz", "text.safetensors", "x.pth"):
        rows.append((["gap-sweep", "--inception", tmp_path / name], "inception", name))
    check_all(refuses, rows)
