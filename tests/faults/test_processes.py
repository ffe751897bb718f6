"""Kills, several processes on one folder, and Ctrl-C, with real processes.

GEOMEM_KILLS in the environment sets the number of kills of each command (1).
"""

import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from faults.commands import make_run
from PIL import Image

from geomem import data
from geomem.experiments import train
from geomem.experiments.common import interruption, output

ROOT = pathlib.Path(train.__file__).parents[3]
KILLS = int(os.environ.get("GEOMEM_KILLS", "1"))
SMALL = ["--num-train", "60", "--num-heldout", "40", "--num-sigmas", "5"]


def start(words, folder, **environment):
    """Start a command in a folder."""
    return start_python(["-m", "geomem", *map(str, words)], folder, XLA_FLAGS="", **environment)


def start_python(arguments, folder=None, **environment):
    """Start Python with this geomem."""
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with a run and samples."""
    folder = tmp_path_factory.mktemp("work")
    make_run(folder / "run")
    np.save(folder / "samples.npy", data.load("digits").train[:8])
    return folder


# Two configurations of each command that writes, and its output.
COMMANDS = {
    "danger-zone": (["digits", *SMALL], ["--bootstrap", "20"], ["--bootstrap", "30"], "zone"),
    "audit": (["digits", *SMALL], ["--growth", "False"], ["--seed", "1"], "audit"),
    "evaluate": (
        ["--samples", "samples.npy", "--dataset", "digits", "--num-heldout", "40"],
        ["--num-train", "60"],
        ["--num-train", "70"],
        "evaluate",
    ),
    "sample": (["--run", "run", "--steps", "2"], ["--count", "2"], ["--count", "3"], "s/x.npz"),
    "gap-training": (
        ["--arms", "baseline", "--seeds", "1", "--kimg", "0.064"],
        ["--samples", "8"],
        ["--samples", "9"],
        "gap",
    ),
}


def contents(out):
    """What a run left, without what changes between equal runs."""
    folder = out.parent if out.suffix else out
    shown = [path for path in folder.iterdir() if path.name[0] != "." and path.name != "runs"]
    files = {path.name: path.read_bytes() for path in shown}
    for name in [name for name in files if name in ("run.json", "x.json", "audit.html")]:
        files[name] = b""  # holds times
    return files


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_a_killed_run_leaves_the_files_of_one(name, work):
    common, first, second, place = COMMANDS[name]
    common = [*common, "--out", place, *["--overwrite"] * (name != "gap-training")]
    out, seen = work / place, []
    for variant in (first, second):
        process = start([name, *common, *variant], work)
        began = time.perf_counter()
        assert process.wait() == 0, process.stderr.read()
        seen.append(contents(out))
    taken, rng = time.perf_counter() - began, random.Random(name)
    assert seen[0] != seen[1]
    kills = 0
    for number in range(5 * KILLS):
        if number % 2 and (out / "runs").exists():
            shutil.rmtree(out / "runs")  # trains and evaluates again
        process = start([name, *common, *(second, first)[number % 2]], work)
        # Half of the kills come where the files change: the record is the last file of a run.
        if number % 2 == 0:
            record = out.parent / ".x.new/x.json" if out.suffix else out / ".geomem.new/run.json"
            while process.poll() is None and not record.exists():
                time.sleep(0.0002)
            time.sleep(rng.uniform(0, 0.004))
        else:
            time.sleep(rng.uniform(0, taken))
        process.kill()
        assert process.wait() in (0, -signal.SIGKILL), process.stderr.read()
        kills += process.returncode != 0
        left = contents(out)
        assert left in seen[:2] or any(left.items() <= whole.items() for whole in seen[:2])
        if kills == KILLS:
            break
    assert kills
    process = start([name, *common, *second], work)
    assert process.wait() == 0, process.stderr.read()
    assert contents(out) == seen[1]
    assert not [path for path in out.parent.rglob(".*") if path.suffix in (".new", ".finished")]


def test_each_step_of_the_exchange_leaves_the_files_of_one_run(tmp_path, monkeypatch):
    """Stop at every rename and removal, as a kill would."""

    class Killed(BaseException):
        pass

    def write(names, text):
        result = output.Output(tmp_path / "out")
        for name in names:
            (result.folder / name).write_text(text)
        (result.folder / "run.json").write_text(json.dumps({"files": [*names, "run.json"]}))
        return result

    old, new = ["a", "b", "only_old"], ["a", "b", "only_new"]
    for limit in range(30):
        write(old, "old").commit()
        result, steps = write(new, "new"), []

        def counted(function, steps=steps, limit=limit):
            def call(*arguments, **options):
                steps.append(function)
                if len(steps) > limit:
                    raise Killed
                return function(*arguments, **options)

            return call

        with monkeypatch.context() as patch:
            for name in ("rename", "unlink", "rmdir"):
                patch.setattr(pathlib.Path, name, counted(getattr(pathlib.Path, name)))
            try:
                result.commit()
                done = True
            except Killed:
                done = False
        files = [path for path in (tmp_path / "out").iterdir() if path.name[0] != "."]
        kinds = {path.read_text() for path in files if path.name != "run.json"}
        assert len(kinds) <= 1, limit
        assert not (kinds == {"new"} and (tmp_path / "out" / "only_old").exists())
        output.release(tmp_path / "out")
        if len(steps) > 1:  # decided: the next run finishes the exchange first
            output.Output(tmp_path / "out")
            assert {p.name for p in (tmp_path / "out").iterdir()} >= {*new, "run.json"}
            output.release(tmp_path / "out")
        if done:
            break
    assert done
    assert limit > 8


HOLD = """
import sys
from geomem.experiments.common import output
for place in sys.argv[1:]:
    output.lock(place)
print("held", flush=True)
sys.stdin.read()
"""


def test_a_folder_in_use_is_refused_in_one_line(work, tmp_path, monkeypatch, capsys):
    """Another process holds the outputs; its death releases them."""
    from geomem import __main__ as front_door

    monkeypatch.chdir(work)
    places = {name: tmp_path / name for name in front_door._NAMES}
    places["sample"] = tmp_path / "sample.npz"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, *map(str, places.values())],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout.readline() == "held\n"
    needed = {
        "audit": ["digits"],
        "duplicates": ["digits"],
        "train": ["digits"],
        "sample": ["--run", "run"],
        "evaluate": ["--samples", "samples.npy", "--dataset", "digits"],
    }
    refused = 0
    for name, place in places.items():
        config = __import__(
            f"geomem.experiments.{name.replace('-', '_')}", fromlist=["Config"]
        ).Config
        if "out" not in config.__dataclass_fields__:
            continue
        monkeypatch.setattr(
            sys, "argv", ["geomem", name, *needed.get(name, []), "--out", str(place)]
        )
        with pytest.raises(SystemExit) as end:
            front_door.main()
        line = f"error: --out must not be in use by another process, got {place}.\n"
        assert (end.value.code, capsys.readouterr().err) == (2, line)
        refused += 1
    assert refused >= 10
    holder.kill()
    holder.wait()
    output.lock(places["danger-zone"])
    output.release(places["danger-zone"])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["danger-zone", "train"])
def test_ctrl_c_ends_at_any_moment_with_one_line(name, work):
    rng, codes = random.Random(0), []
    words = {
        "danger-zone": ["danger-zone", "digits", *SMALL, "--overwrite", "--out", "c"],
        "train": ["train", "digits", "--channels", "8", "--out", "c-train"],
    }[name]
    longest = 6.0
    for _ in range(3 * KILLS):
        process = start(words, work, GEOMEM_NO_COMPILATION_CACHE="1")
        # Python itself takes up to half a second before geomem's first line.
        time.sleep(delay := rng.uniform(0.5, longest))
        process.send_signal(signal.SIGINT)
        sent = time.perf_counter()
        error = process.communicate(timeout=60)[1]
        codes.append(process.returncode)
        if process.returncode == 0:  # it had ended by itself
            longest = max(1.0, delay / 2)
        assert process.returncode in (0, interruption.INTERRUPTED), error
        assert "Traceback" not in error
        assert "ignored" not in error
        if process.returncode:
            assert error.splitlines()[-1].startswith("interrupted"), error
            assert time.perf_counter() - sent < 20
    assert interruption.INTERRUPTED in codes


def test_ctrl_c_while_python_ends_is_no_failure():
    code = (
        "import time\n"
        "from geomem.experiments.common import interruption\n"
        "class Slow:\n"
        "    def __del__(self, print=print, sleep=time.sleep):\n"
        "        print('freed', flush=True)\n"
        "        sleep(1)\n"
        "interruption.install()\n"
        "slow = Slow()"
    )
    process = start_python(["-c", code])
    assert process.stdout.readline() == "freed\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60) == ("", "")
    assert process.returncode == 0


BUSY = {
    "sleep": "time.sleep(60)",
    "C": "re.match('(a+)+b', 'a' * 60)",  # never releases the lock of the interpreter
    "callback": "a = A(); r = weakref.ref(a, lambda _: time.sleep(60)); del a",  # swallows errors
    "XLA": "jax.jit(lambda x: jax.lax.fori_loop(0, 10**9, lambda i, y: jax.numpy.sin(y), x))"
    "(1.0).block_until_ready()",
}


@pytest.mark.parametrize("busy", BUSY)
def test_ctrl_c_ends_whatever_the_main_thread_does(busy):
    code = (
        "import re, signal, time, weakref\n"
        "from geomem.experiments.common import interruption\n"
        "class A: pass\n"
        "interruption.install()\n"
        f"{'import jax' if 'jax' in BUSY[busy] else ''}\n"
        f"print('ready', flush=True)\n{BUSY[busy]}"
    )
    process = start_python(["-c", code])
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    error = process.communicate(timeout=30)[1]
    assert error == "interrupted; nothing was kept.\n"
    assert process.returncode == interruption.INTERRUPTED


def test_odd_images_are_handled(tmp_path, capsys):
    """EXIF rotation is applied, alpha is said, links to folders are followed."""
    pixels = np.random.default_rng(0).integers(0, 256, (6, 4, 3), np.uint8)
    exif = Image.Exif()
    exif[274] = 6  # shown after a turn by 90 degrees
    for name in "ab":
        Image.fromarray(np.rot90(pixels)).save(tmp_path / f"{name}.png", exif=exif)
    turned = data.load(str(tmp_path), heldout="digits").train_split.pixels
    np.testing.assert_array_equal(turned, np.stack([np.rot90(np.rot90(pixels), -1)] * 2))
    assert capsys.readouterr().err == ""

    other = tmp_path / "other"
    (other / "cat").mkdir(parents=True)
    Image.new("RGBA", (4, 4)).save(other / "cat" / "a.png")
    Image.new("RGB", (4, 4)).save(other / "cat" / "b.png")
    (other / "dog").symlink_to(other / "cat")
    (other / "loop").symlink_to(other)
    data.datasets.warn.cache_clear()
    dataset = data.load(str(other), heldout="digits")
    assert len(dataset.train_split) == 2
    assert "1 of 2 images in" in capsys.readouterr().err


def test_unreadable_subfolders_are_refused(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("drops the rights of root")
    for name in ("open", "closed"):
        (tmp_path / name).mkdir()
        for file in "ab":
            Image.new("RGB", (4, 4)).save(tmp_path / name / f"{file}.png")
    (tmp_path / "closed").chmod(0)
    for folder in (tmp_path, *tmp_path.parents[:3]):
        folder.chmod(0o755)
    code = (
        "import os, sys\nfrom geomem.data import folders\nos.setuid(65534)\n"
        "try: folders.image_paths(sys.argv[1])\nexcept ValueError as error: print(error)"
    )
    process = subprocess.run(
        [sys.executable, "-c", code, tmp_path],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    line = f"dataset must be readable folders, got {tmp_path}/closed (Permission denied).\n"
    assert process.stdout == line, process.stderr


def test_a_folder_with_the_name_of_a_result_is_kept(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "theirs").touch()
    result = output.Output(tmp_path)
    (result.folder / "a").write_text("ours")
    result.commit()
    assert (tmp_path / "a").read_text() == "ours"
    assert (tmp_path / "a.folder" / "theirs").exists()
