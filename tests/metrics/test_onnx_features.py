"""Features of ONNX files against the same sums in NumPy."""

import pathlib

import numpy as np
import pytest

from geomem.metrics import onnx_features

pytest.importorskip("onnxruntime")
DATA = pathlib.Path(__file__).parents[1] / "data"
# Built with onnx.helper: blocks.onnx averages 4 x 4 pixels of [N, 3, 16, 16] to [N, 48], and
# blocks_of_four.onnx does so with N = 4;
# tokens.onnx averages the rows of [N, H, W, 3] to tokens [N, W, 3].


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_features_are_those_of_the_normalized_image(rng):
    mean, std = np.float32([0.1, 0.2, 0.3]), np.float32([0.5, 0.6, 0.7])
    images = rng.integers(0, 256, (70, 16, 16, 3), dtype=np.uint8)  # more than two batches
    extract = onnx_features.load(DATA / "blocks.onnx", mean=mean, std=std)
    normal = (images / 255 - mean) / std
    blocks = normal.reshape(70, 4, 4, 4, 4, 3).mean(axis=(2, 4))  # [N, rows, columns, RGB]
    expected = unit(np.moveaxis(blocks, 3, 1).reshape(70, -1))
    np.testing.assert_allclose(extract(images), expected, atol=1e-6)
    assert extract.name == "blocks.onnx"
    fixed = onnx_features.load(DATA / "blocks_of_four.onnx", mean=mean, std=std)
    np.testing.assert_allclose(fixed(images), expected, atol=1e-6)  # the last batch has two images


def test_takes_the_first_token_and_the_given_side(rng):
    gray = rng.uniform(-1, 1, (5, 8, 8, 1)).astype(np.float32)
    extract = onnx_features.load(DATA / "tokens.onnx", side=8, mean=(0, 0, 0), std=(1, 1, 1))
    column = (gray[:, :, 0] + 1).mean(axis=1) / 2
    np.testing.assert_allclose(extract(gray), unit(column.repeat(3, axis=1)), atol=1e-6)
    enlarged = onnx_features.load(DATA / "tokens.onnx", side=32, mean=(0, 0, 0), std=(1, 1, 1))
    assert enlarged(gray).shape == (5, 3)


def test_rejects_other_files(tmp_path):
    (tmp_path / "bad.onnx").write_bytes(b"nothing")
    for path in (tmp_path / "bad.onnx", tmp_path / "absent.onnx"):
        with pytest.raises(ValueError, match=r"embedding must be an ONNX file, got .*\.onnx"):
            onnx_features.load(path)
    with pytest.raises(ValueError, match=r"embedding_size must be 16, as in .*, got 32"):
        onnx_features.load(DATA / "blocks.onnx", side=32)
