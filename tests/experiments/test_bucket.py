"""Runs whose folders are in a bucket, with the real clients and a local server."""

import os
import subprocess
import sys

import numpy as np
import pytest

from geomem import paths
from geomem.experiments.common import output

pytestmark = pytest.mark.slow

# The emulator, with the header that tensorstore expects from Google's server.
SERVER = """
import signal
from gcp_storage_emulator.handlers import objects
from gcp_storage_emulator import server

plain = objects.download

def download(request, response, storage, *rest, **named):
    place = request.params["bucket_name"], request.params["object_id"]
    try:
        response["x-goog-generation"] = storage.get_file_obj(*place)["generation"]
    except Exception:
        pass  # the answer below says what is missing
    plain(request, response, storage, *rest, **named)

objects.download = download
served = server.create_server("localhost", 0, in_memory=True, default_bucket="geomem")
served.start()
print(served._api._httpd.server_address[1], flush=True)
signal.pause()
"""

RUNS = """
import dataclasses
from geomem.experiments import danger_zone, sample, train
from geomem.experiments.train import configuration

small = dataclasses.replace(
    train.PRESETS["digits"], out="gs://geomem/train", channels=8, batch=16, num_train=32,
    log_every=4, checkpoint_every=4, samples=4,
)
assert train.run(dataclasses.replace(small, kimg=0.064)).step == 4
assert train.run(dataclasses.replace(small, kimg=0.128)).step == 8
sample.run(sample.Config(run=small.out, out="gs://geomem/samples", count=2, steps=2))
settings = dict(dataset="digits", num_train=60, num_heldout=40, num_sigmas=7, bootstrap=50)
danger_zone.run(danger_zone.Config(**settings, threshold=0.5, out="gs://geomem/zone"))
danger_zone.run(danger_zone.Config(plot_only="gs://geomem/zone"))
assert configuration.read_zone("gs://geomem/zone/zone.json")[0] > 0
"""

EVALUATIONS = """
import dataclasses
import numpy as np
from geomem import data
from geomem.experiments import denoiser_swap, denoising_error, evaluate, gap_training, train
from geomem.experiments.common import gap_study
from geomem.experiments.common.arms import EvaluationSettings

run = "gs://geomem/train"
np.save("samples.npy", data.load("digits").train[:8])
evaluate.run(evaluate.Config(samples="samples.npy", run=run, out="gs://geomem/evaluate"))
denoising_error.run(denoising_error.Config(
    run=(run,), num_images=8, num_sigmas=2, batch=8, draws=1, out="gs://geomem/errors"))
denoising_error.run(denoising_error.Config(plot_only="gs://geomem/errors"))
denoiser_swap.run(denoiser_swap.Config(
    memorizing=run, generalizing=run, samples=2, out="gs://geomem/swap"))
tiny = dataclasses.replace(
    train.PRESETS["digits_fourier"], num_train=32, channels=8, multipliers=(1,), kimg=0.256,
    log_every=2, checkpoint_every=2,
)
evaluation = EvaluationSettings(samples=8, steps=4)
gap_study.PRESETS["digits"] = gap_study.Preset(tiny, evaluation, 1, (0.5,))
for _ in range(2):  # the second time from what the bucket holds
    gap_training.run(gap_training.Config(out="gs://geomem/gap", arms=("baseline", "zone-0.5")))
"""


@pytest.fixture(scope="module")
def bucket():
    """Environment variables that send gs:// to a local server."""
    pytest.importorskip("gcp_storage_emulator")
    pytest.importorskip("gcsfs")
    command = [sys.executable, "-c", SERVER]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        address = f"http://localhost:{int(process.stdout.readline())}"
        yield {
            **os.environ,
            "STORAGE_EMULATOR_HOST": address,
            "TENSORSTORE_GCS_HTTP_URL": address,
            "GOOGLE_CLOUD_PROJECT": "geomem",
            "NO_GCE_CHECK": "true",  # no search for credentials
        }
        process.terminate()


def test_training_sampling_and_zones_use_a_bucket(bucket):
    ran = subprocess.run(
        [sys.executable, "-c", RUNS], env=bucket, capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    code = (
        "from geomem import paths\n"
        "for name in ('train', 'zone'):\n"
        "    print(*sorted(path.name for path in paths.as_path(f'gs://geomem/{name}').iterdir()))\n"
        "print((paths.as_path('gs://geomem/train') / 'metrics.jsonl').read_text())"
    )
    listed = subprocess.run(
        [sys.executable, "-c", code], env=bucket, capture_output=True, text=True, check=True
    )
    trained, zone, *lines = listed.stdout.splitlines()
    names = "checkpoints config.json metrics.jsonl run.json samples_0000004.png samples_0000008.png"
    assert trained.split() == [*names.split(), "tensorboard"]
    assert zone.split() == ["curves.csv", "figure.pdf", "figure.png", "run.json", "zone.json"]
    assert len([line for line in lines if line]) == 2


def test_evaluations_and_arms_use_a_bucket(bucket, tmp_path):
    """Use one device, so that two arms run in two processes."""
    ran = subprocess.run(
        [sys.executable, "-c", EVALUATIONS],
        env={**bucket, "XLA_FLAGS": ""},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["samples.npy"]  # nothing elsewhere


def test_reports_an_unwritable_bucket_in_one_line(bucket, monkeypatch):
    for name in ("STORAGE_EMULATOR_HOST", "GOOGLE_CLOUD_PROJECT"):
        monkeypatch.setenv(name, bucket[name])
    with pytest.raises(
        ValueError, match=r"out must be a writable folder, got gs://no-such-bucket/x \("
    ) as error:
        output.make_folder("gs://no-such-bucket/x")
    assert "\n" not in str(error.value)


def test_rejects_an_unknown_scheme():
    with pytest.raises(ValueError, match=r"path must be a local path or gs://.*, got ftp://host/x"):
        paths.as_path("ftp://host/x")


def test_samples_in_a_bucket_are_whole(bucket):
    code = (
        "import numpy as np; from geomem import paths\n"
        "with paths.as_path('gs://geomem/samples.npz').open('rb') as file:\n"
        "    print(*np.load(file)['images'].shape)"
    )
    read = subprocess.run(
        [sys.executable, "-c", code], env=bucket, capture_output=True, text=True, check=True
    )
    np.testing.assert_array_equal([int(n) for n in read.stdout.split()], [2, 8, 8, 1])
