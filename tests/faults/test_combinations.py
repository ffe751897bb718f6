"""Flags that contradict or ignore each other, other libraries' networks, and large data."""

import pathlib

import numpy as np
import pytest
from faults import files
from faults.commands import check_all, refuses  # noqa: F401

from geomem import memory
from geomem.experiments import danger_zone
from geomem.experiments.common import dataclass_flags

DENOISERS = """
import numpy as np
def same(x, sigma): return x
def one(x): return x
def fails(x, sigma): raise RuntimeError("first line\\nlast line")
def smaller(x, sigma): return x[0]
def nan(x, sigma): return x * float("nan")
def text(x, sigma): return "text"
number = 3
def first(x, sigma): return x[:1]
def complex_(x, sigma): return x * 1j
def integers(x, sigma): return (x * 0).astype("int32")
def exits(x, sigma): raise SystemExit(0)
def numpy(x, sigma): return np.asarray(x)
def none(x, sigma): return None
class Network:
    def __call__(self): return 3
network = Network()
"""


@pytest.fixture
def images(tmp_path, monkeypatch):
    """Small data sets and the module `denoisers` in the current folder."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "denoisers.py").write_text(DENOISERS)
    rng = np.random.default_rng(0)
    (tmp_path / "images.npy").write_bytes(files.saved(rng.integers(0, 256, (40, 8, 8, 1), "u1")))
    floats = rng.uniform(0, 1, (40, 8, 8, 1)).astype(np.float32)
    (tmp_path / "floats.npy").write_bytes(files.saved(floats))
    (tmp_path / "vectors.npy").write_bytes(files.saved(floats.reshape(40, 64) * 9 - 4))
    (tmp_path / "loop").symlink_to("loop")
    np.save(tmp_path / "same.npy", np.full((40, 8, 8, 1), 7, np.uint8))
    rows = rng.normal(size=(40, 4))
    np.savez(tmp_path / "other.npz", samples=rows, train=rows[:, :3])
    np.savez(tmp_path / "nan.npz", samples=rows * np.nan, train=rows)
    np.savez(tmp_path / "overflow.npz", samples=rows * 1e30, train=rows * 1e30)
    latents = rng.normal(0, 3, (40, 8, 8, 1))
    np.save(tmp_path / "latents.npy", latents)
    pixels = np.load(tmp_path / "images.npy")
    np.savez(tmp_path / "mixed.npz", train=pixels, test=latents)


def split(rows):
    """(words, expected) of rows "command flags | expected"."""
    parts = (row.split("|") for row in rows.strip().splitlines())
    return [(words.split(), expected.strip()) for words, expected in parts]


DANGER_ZONE = """
images.npy --heldout latents.npy | --heldout must hold images in [-1, 1] like training, got latents
latents.npy --heldout images.npy | --heldout must hold latents like training, got images
mixed.npz | --heldout must hold images
digits --sigma-min 1 --sigma-max 1.0000001 | --sigma-min and --sigma-max must be farther apart
digits --sigmas 1 1 | --sigmas
digits --sigmas 2 1 | --sigmas
digits --sigmas 1e-9 1 | --sigmas
digits --sigmas 1 2 --num-sigmas 4 | --num-sigmas must be left out with --sigmas
digits --sigmas 1 2 --grid edm | --grid must be left out with --sigmas
digits --sigmas 1 2 --sigma-min 0.5 | --sigma-min
digits --sigma-min 5 --sigma-max 1 | --sigma-min
digits --sigma-min 90 | --sigma-m
digits --threshold 1.5 | --threshold
digits --draws-coverage 2147483647 | --draws-coverage
digits --bootstrap 2147483647 | --bootstrap
digits --radius 3 | --radius must be left out without --band
digits --rho 3 | --rho must be left out without --grid or --protocol
digits --protocol paper --num-sigmas 5 | --num-sigmas must be left out with the paper's
digits --protocol paper --draws-weight 5 | --draws-weight must be left out with the paper's
digits --protocol paper --num-train 50 | --num-train
digits --num-base 100000 | --num-base must be between 1 and 900
digits --num-train 1 | --num-train must leave at least 2
digits --classes 0 zero | --classes
digits --layout NHWC | --layout
digits --scale 1 | --scale
digits --resize 4 | --resize
digits --heldout digits/ | --heldout
digits --heldout cifar10_sample | --heldout
digits --heldout vectors.npy | --heldout
digits digits | unexpected argument
digits --dataset digits | --dataset is given twice
digits --seed 1 2 | unexpected argument
digits --out loop | --out
digits --plot-only images.npy | --dataset must be left out with --plot-only
--plot-only images.npy | --plot-only
--plot-only . --overwrite | --overwrite must be left out
vectors.npy --scale 1 --band low | --band
vectors.npy --scale 0 | --scale
vectors.npy --layout NHWC | --layout
images.npy --scale 2 | --scale
images.npy --range 0 1 | --range
images.npy --classes 0 | --classes
floats.npy | --range 0 1
floats.npy --range 1 0 | --range
floats.npy --range 0 0.5 | --range
floats.npy --range 0 1 --scale 2 | --scale
floats.npy --layout nhwc | --layout
hf:nowhere | --dataset
hf: | --dataset
hf:images.npy | --dataset
tfds: | --dataset
tfds:../x | --dataset
/dev/null | --dataset
loop | --dataset
loop/x.npy | --dataset
"""

OTHERS = """
audit | DATASET is required
audit digits --threshold 1 | --threshold
audit digits --duplicate-threshold 1 | --duplicate-threshold
audit images.npy --num-heldout 0 | --num-heldout
audit digits --out /etc/passwd | --out
evaluate --samples images.npy | --samples
evaluate --samples images.npy --dataset vectors.npy | --samples
evaluate --samples hf:x --dataset digits | --samples
evaluate --samples digits --dataset digits --threshold 2 | --threshold
evaluate --samples digits --dataset digits --out images.npy | --out
evaluate --samples digits --dataset digits --features inception | inception
sample --weights x.npz --step 3 | --step must be left out with --weights
sample --denoiser x:y --image-shape 8 8 1 --average False | --average must be left out
sample --denoiser denoisers:same | --image-shape
sample --run x --image-shape 8 8 1 | --image-shape
sample --run x --weights y.npz | --run
sample --denoiser denoisers:same --image-shape 50000 50000 3 | --image-shape must fit in memory
sample --denoiser denoisers:same --image-shape 8 8 1 --count 2000000000 | --count must fit in
denoiser-swap --medium 3 2 | --medium
denoiser-swap --medium 0 18 | --medium must be two steps from 0 to 17
denoiser-swap --threshold 1 | --threshold
denoiser-swap --memorizing images.npy | --memorizing
denoiser-swap --generalizing nowhere | --generalizing
gap-training --arms nope | --arms must be among baseline
gap-training --arms baseline baseline | --arms must be different
gap-training --kimg 1e12 | --kimg must give fewer
gap-training --seeds 2000000000 | --seeds
gap-sweep --positions 2000000000 | --positions
gap-training --inception images.npy | --inception
gap-training --inception . | --inception
gap-training --out images.npy | --out
gap-training --samples 1 | --samples
gap-sweep --samples 1 | --samples
repair --samples 1 | --samples
repair --out loop | --out
repair --preset nope | --preset
memorization-onset --sizes | --sizes
memorization-onset --sizes 4 5 | --sizes
memorization-onset --sizes 4 5 5 | --sizes
memorization-onset --sizes 1 2 3 | --sizes
memorization-onset --sizes 5 6 100000000 | --sizes must be at most 900
memorization-onset --passes 2147483647 | --passes must give fewer
memorization-onset --out images.npy | --out
duplicates | DATASET is required
duplicates images.npy --threshold 1 | --threshold
duplicates images.npy --heldout vectors.npy | --heldout
duplicates images.npy --out loop | --out
duplicates images.npy --fail-above 2 | --fail-above
local-denoisers --sides | --sides
local-denoisers --sides 2 | --sides must be odd
local-denoisers --denoiser denoisers:same --dataset images.npy --num-calibration 9 | --num-cal
compile --target v5e | --target
compile --target v9:1 | --target
compile --target h100:2x | --target
compile --out loop | --out
evaluate --samples images.npy --dataset images.npy --embedding-size 3 | --embedding-size must be
evaluate --samples images.npy --dataset images.npy --embedding-std 1 1 1 | --embedding-std must be
evaluate --samples images.npy --dataset images.npy --embedding x --features none | --features
evaluate --samples images.npy --dataset images.npy --embedding images.npy | --embedding
evaluate --samples images.npy --dataset images.npy --features images.npy | --features
evaluate --samples images.npy --dataset images.npy --samples-range 0 1 | --samples-range
evaluate --samples digits --dataset digits --samples-layout NCHW | --samples-layout
evaluate --samples images.npy --dataset same.npy | --dataset must hold 2 or more different
evaluate --samples images.npy --dataset images.npy --features other.npz | as many columns
evaluate --samples images.npy --dataset images.npy --features nan.npz | --features must be finite
evaluate --samples images.npy --dataset images.npy --features overflow.npz | --features must be at
evaluate --samples images.npy --dataset latents.npy | --samples must be latents
evaluate --samples digits --dataset latents.npy | --samples must be latents
evaluate --samples floats.npy --dataset images.npy --samples-range 1 0 | values of samples, got 1 to
gap-sweep --masses 0.95 | --masses
gap-sweep --masses | --masses
gap-sweep --arms none | --arms
gap-sweep --out loop | --out
train | PRESET is required
train digits digits digits | unexpected argument
train digits vectors.npy --num-train 4 | --dataset
train digits --gap 1 | --gap
train digits --watch-samples 8 | --watch-samples must be left out without --watch
train digits --gap-from /dev/zero | --gap-from
train digits --gap-from . | --gap-from
train digits --out loop | --out
benchmark --only nope | --only
benchmark --only | --only must name at least one
benchmark --out /proc/x | --out
scale --temporary images.npy | --temporary
scale --temporary /proc/x | --temporary
benchmark-training --compute | --compute
benchmark-training --compute float16 | --compute
"""

COMPARISON = """
--denoiser denoisers:same | --denoiser
--dataset images.npy | --denoiser
--num-train 5 | --num-train must be left out without --denoiser
--heldout images.npy | --heldout must be left out without --denoiser
--run x --preset digits | --preset must be left out with --run
--run x --runs y | --runs must be left out with --run
--denoiser denoisers:same --dataset images.npy --run x | --run must be left out with --denoiser
--run nowhere | --run
--run images.npy | --run
--run a/x b/x | --run
--run x --plot-only y | --run must be left out with --plot-only
--plot-only images.npy | --plot-only
--sigma-min 9 --sigma-max 1 | --sigma-min
--runs images.npy | --runs
"""


def test_contradictions_are_refused(images, refuses):  # noqa: F811
    small = ["--num-sigmas", "3", "--bootstrap", "2"]
    rows = []
    for words, expected in split(DANGER_ZONE):
        alone = {"--sigmas", "--num-sigmas", "--plot-only", "paper"} & set(words)
        given = [] if alone else small
        rows.append((["danger-zone", *words, *given], expected))
    rows += split(OTHERS)
    rows.append((["danger-zone", "x" * 3000, *small], "File name too long"))
    for command in (
        "denoising-error",
        "large-noise",
        "local-denoisers",
        "noise-level-memorization",
    ):
        rows += [([command, *words], expected) for words, expected in split(COMPARISON)]
    check_all(refuses, rows)


@pytest.mark.parametrize("command", ["sample", "large-noise"])
def test_bad_denoisers_are_refused(command, images, tmp_path, refuses):  # noqa: F811
    (tmp_path / "raises.py").write_text("1 / 0")
    (tmp_path / "wrong.py").write_text("def (")
    names = ["raises:f", "wrong:f", "nowhere:f", "a..b:f", ":f", "denoisers:", "denoisers:number"]
    (tmp_path / "leaves.py").write_text("raise SystemExit(0)")
    names += ["leaves:f", "os:getcwd", "sys:exit"]
    functions = "nowhere", "one", "fails", "smaller", "text", "nan", "first", "complex_"
    functions += "integers", "exits", "numpy", "none", "Network", "network"
    names += [f"denoisers:{name}" for name in functions]
    # One command is enough for those that import diffusers.
    names += ["nowhere", "images.npy", "."] if command == "sample" else []
    for name, content in files.JSON.items() if command == "sample" else ():
        folder = pathlib.Path(f"pipeline-{name}", "scheduler")
        folder.mkdir(parents=True)
        (folder / "scheduler_config.json").write_bytes(content)
        names.append(folder.parent)
    words = {
        "sample": ["--image-shape", "8", "8", "1", "--count", "2", "--steps", "2"],
        "large-noise": ["--dataset", "images.npy", "--num-sigmas", "2"],
    }[command]
    rows = [([command, "--denoiser", name, *words], "--denoiser") for name in names]
    check_all(refuses, rows)


def test_images_beyond_the_memory_are_refused(tmp_path, monkeypatch, refuses):  # noqa: F811
    """100,000 images of 64 x 64 x 3, where 1.5 GB are free."""
    with (tmp_path / "large.npy").open("wb") as file:  # a sparse file
        file.write(files.npy((100_000, 64, 64, 3)))
        file.truncate(file.tell() + 100_000 * 64 * 64 * 3)
    monkeypatch.setattr(memory, "free", lambda: 1_500_000_000)
    small = ["--dataset", "large.npy", "--num-train", "100"]
    rows = [
        (["audit", "large.npy"], "--dataset must fit in memory"),
        (["evaluate", "--samples", "large.npy", *small], "--samples must fit in memory"),
        (["train", "digits", "--channels", "16384"], "--channels must fit in memory"),
        (["train", "digits", "--batch", "1048576"], "--batch must fit in memory"),
    ]
    check_all(refuses, rows)


def test_range_may_be_zero_or_negative():
    for values in ((0, 1), (-1, 1), (-300, -1)):
        words = ["--range", *map(str, values)]
        config, _ = dataclass_flags.parse(danger_zone.Config, words, "geomem")
        assert config.range == values
