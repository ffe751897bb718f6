"""Parity of the Inception port with the reference at every tap; loading of its weights."""

import functools
import hashlib
import pathlib
import zlib

import jax
import numpy as np
import pytest

from geomem import data
from geomem.experiments import evaluate
from geomem.experiments.evaluate import representation
from geomem.metrics import frechet
from geomem.metrics.inception import network, weights

ORACLE = pathlib.Path(__file__).parents[2] / "data" / "inception_random.npz"


@pytest.fixture(scope="module")
def oracle():
    with np.load(ORACLE) as archive:
        return dict(archive)


@pytest.fixture(scope="module")
def tensors(oracle):
    """The oracle's weights, drawn by name."""

    def draw(name, shape):
        n = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
        if name.endswith("conv.weight"):
            return n * np.sqrt(2 / np.prod(shape[1:]))
        if name.endswith("running_var"):
            return 1 + 0.1 * np.abs(n)
        if name.endswith("bn.weight"):
            return 1 + 0.1 * n
        return (0.02 if name == "fc.weight" else 0.1) * n

    shapes = [tuple(int(n) for n in shape.strip("(),").split(",")) for shape in oracle["shapes"]]
    names = map(str, oracle["names"])
    return {name: draw(name, shape).astype("f4") for name, shape in zip(names, shapes, strict=True)}


@pytest.fixture(scope="module")
def params(tensors):
    return weights.from_tensors(tensors)


def test_matches_reference_at_every_tap(oracle, params):
    apply = jax.jit(lambda params, images: network.Inception().apply({"params": params}, images))
    taps = apply(params, oracle["images"])
    assert set(taps) == set(network.TAPS)
    for name in network.TAPS:
        expected = np.float64(oracle[name])
        worst = np.abs(taps[name] - expected).max(axis=1) / np.abs(expected).max(axis=1)
        print(name, worst)
        assert worst.max() < 1e-4, name


def test_resizes_like_tensorflow_1(rng):
    """Output i comes from input i * size / 299: no half-pixel shift, corners not aligned."""
    images = rng.uniform(0, 255, (1, 5, 8, 2))
    expected = np.empty((1, 299, 299, 2))
    for i in range(299):
        for j in range(299):
            y, x = i * 5 / 299, j * 8 / 299
            a, b = int(y), int(x)
            c, d = min(a + 1, 4), min(b + 1, 7)
            top = images[0, a, b] + (x - b) * (images[0, a, d] - images[0, a, b])
            bottom = images[0, c, b] + (x - b) * (images[0, c, d] - images[0, c, b])
            expected[0, i, j] = top + (y - a) * (bottom - top)
    np.testing.assert_allclose(network._resize(np.float32(images)), expected, atol=2e-3)


def test_accepts_any_batch_size_and_dtype(oracle, params):
    """Eight devices, an uneven last batch, floats converted to uint8, gray repeated three times."""
    extract = network.features(params, "feat_64", batch=3)
    assert (extract.name, extract.batch) == ("inception-2015 feat_64", 8)
    images = np.tile(oracle["images"], (3, 1, 1, 1))[:11]
    expected = np.tile(oracle["feat_64"], (3, 1))[:11]
    np.testing.assert_allclose(extract(images), expected, rtol=1e-4)
    floats = images.astype(np.float32) / 127.5 - 1
    np.testing.assert_allclose(extract(floats[:4]), expected[:4], rtol=1e-4)
    gray = images[:4, :, :, :1]
    np.testing.assert_array_equal(extract(gray), extract(np.repeat(gray, 3, axis=-1)))
    assert network.features(params).name == network.NAME
    assert str(frechet.Score(1.0, 9, "x", 9, network.NAME)).startswith("FID 1 (9 samples")
    with pytest.raises(ValueError, match=r"tap must be one of feat_64, .*, got fc\."):
        network.features(params, "fc")


def test_finds_weights_by_argument_environment_and_cache(tensors, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("GEOMEM_INCEPTION", raising=False)
    with pytest.raises(ValueError, match=r"inception .*got .*cache/geomem/pt_inception"):
        weights.load()
    path = tmp_path / "weights.npz"
    np.savez(path, **{"fc.weight": tensors["fc.weight"][:, :7]})
    message = r"inception must be a file .*npz: it must be .* Conv2d_1a_3x3.* is missing; .*more\)"
    with pytest.raises(ValueError, match=message):
        weights.load(path)
    np.savez(path, **tensors | {"Conv2d_1a_3x3.bn.num_batches_tracked": np.array(3)})
    monkeypatch.setenv("GEOMEM_INCEPTION", str(path))
    # The folded normalization, by hand.
    kernel = weights.load()["Mixed_7c"]["branch3x3_2b"]["conv"]["kernel"]
    name = "Mixed_7c.branch3x3_2b"
    scale = tensors[f"{name}.bn.weight"] / np.sqrt(tensors[f"{name}.bn.running_var"] + 1e-3)
    weight = tensors[f"{name}.conv.weight"]  # [out, in, height, width]
    np.testing.assert_allclose(kernel[2, 0, 5], weight[:, 5, 2, 0] * scale, rtol=1e-6)
    for kind in ("auto", "inception"):
        chosen = representation.extractor(kind, (32, 32, 3))
        assert chosen.name == network.NAME


def test_rejects_download_with_wrong_hash(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source = tmp_path / "file.pth"
    source.write_bytes(b"something else")
    with pytest.raises(ValueError, match=r"published file \(SHA-256 6726825d\.\.\.\).*, got file:"):
        weights.download(source.as_uri())
    assert not weights.cache_path().exists()
    digest = hashlib.sha256(b"something else").hexdigest()
    monkeypatch.setattr(weights, "_SHA256", digest)
    assert weights.download(source.as_uri()).read_bytes() == b"something else"


def test_rejects_other_torch_files(tmp_path):
    with pytest.raises(ValueError, match=r"inception must be the published file .*got .*zip.pth"):
        weights.load(pathlib.Path(__file__).parents[2] / "data" / "torch_zip.pth")


def test_evaluate_uses_the_weights_it_finds(tensors, tmp_path, monkeypatch):
    np.savez(tmp_path / "weights.npz", **tensors)
    monkeypatch.setenv("GEOMEM_INCEPTION", str(tmp_path / "weights.npz"))
    # The last tap takes a minute; a batch of 8 needs no padding.
    narrow = functools.partial(network.features, tap="feat_64", batch=8)
    monkeypatch.setattr(network, "features", narrow)
    np.savez(tmp_path / "samples.npz", images=data.load("cifar10_sample").train[:8])
    config = evaluate.Config(
        samples=str(tmp_path / "samples.npz"),
        out=str(tmp_path),
        num_train=8,
        num_heldout=8,
        no_self_test=True,
    )
    scores = evaluate.run(config).frechet
    assert scores["train"].features == "inception-2015 feat_64"
    assert abs(scores["train"].value) < 1e-6 < scores["heldout"].value
