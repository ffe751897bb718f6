"""Data sets: values, order, origin, selections, and one-line errors."""

import hashlib
import pathlib
import types

import numpy as np
import pytest
import sklearn.datasets
from PIL import Image

from geomem import data
from geomem.data import bundled, folders, sources


@pytest.fixture
def folder(tmp_path, rng):
    """Twelve 6x5 RGB images in two class folders, as PNG (lossless) and one JPEG."""
    pixels = rng.integers(0, 256, (12, 5, 6, 3), dtype=np.uint8)
    for i, image in enumerate(pixels):
        path = tmp_path / "images" / ("cat" if i % 2 else "dog") / f"{i:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return tmp_path / "images", pixels


def test_sample_is_cifar10_in_canonical_order():
    dataset = data.load()
    assert dataset.train.shape == dataset.test.shape == (1000, 32, 32, 3)
    assert dataset.train.dtype == np.float32
    # The published facts of CIFAR-10: the first training images are frog, truck, truck, deer,
    # automobile; the first test images cat, ship, ship, airplane, frog.
    names = [
        [dataset.class_names[label] for label in split.labels[:5]]
        for split in (dataset.train_split, dataset.test_split)
    ]
    assert names[0] == ["frog", "truck", "truck", "deer", "automobile"]
    assert names[1] == ["cat", "ship", "ship", "airplane", "frog"]
    # ... and the first pixel of the first training image is (59, 62, 63).
    np.testing.assert_array_equal(dataset.train_split.pixels[0, 0, 0], [59, 62, 63])


def test_values_are_x_over_127_5_minus_1():
    pixels = np.arange(256, dtype=np.uint8)
    values = data.to_float(pixels)
    assert values.dtype == np.float32
    np.testing.assert_allclose(values, np.arange(256) / 127.5 - 1, atol=1e-7)
    assert (values[0], values[-1]) == (-1, 1)


def test_rejects_damaged_sample(monkeypatch):
    monkeypatch.setattr(bundled, "_CIFAR10_SHA256", "0" * 64)
    with pytest.raises(ValueError, match=r"bundled images .* are damaged"):
        data.load()


def test_digits_are_those_of_scikit_learn_in_a_fixed_split(monkeypatch):
    dataset = data.load("digits")
    original = sklearn.datasets.load_digits()
    pixels = np.concatenate([dataset.train, dataset.test])[..., 0]
    np.testing.assert_array_equal(8 * (pixels + 1), original.images)
    labels = np.concatenate([dataset.train_split.labels, dataset.test_split.labels])
    np.testing.assert_array_equal(labels, original.target)
    assert dataset.train.shape == (900, 8, 8, 1)
    assert dataset.test.shape == (897, 8, 8, 1)
    assert (dataset.train.min(), dataset.train.max()) == (-1, 1)
    monkeypatch.setattr(bundled, "_DIGITS_SHA256", "0" * 64)
    with pytest.raises(ValueError, match=r"bundled images .*csv.gz are damaged"):
        data.load("digits")


def test_subsets_are_nested_seeded_and_by_class():
    dataset = data.load()
    small = dataset.subset(count=10, heldout_count=5, seed=3)
    large = dataset.subset(count=200, heldout_count=50, seed=3)
    np.testing.assert_array_equal(large.train_split.index[:10], small.train_split.index)
    np.testing.assert_array_equal(large.test[:5], small.test)
    assert len(set(large.train_split.index)) == 200
    other = dataset.subset(count=10, seed=4)
    assert set(other.train_split.index) != set(small.train_split.index)
    np.testing.assert_array_equal(dataset.subset(count=7).train, dataset.train[:7])

    cars = dataset.subset(classes=["automobile", "truck"], count=20, seed=0)
    assert {dataset.class_names[label] for label in cars.train_split.labels} == {
        "automobile",
        "truck",
    }
    np.testing.assert_array_equal(cars.train, dataset.train[cars.train_split.index])
    again = dataset.subset(classes=["automobile", "truck"], seed=0)
    np.testing.assert_array_equal(again.train_split.index[:20], cars.train_split.index)


def test_warns_if_subset_misses_classes(folder, capsys):
    dataset = data.load(str(folder[0]), heldout=str(folder[0]))
    data.datasets.warn.cache_clear()
    for arguments in (
        {"count": 1},  # no two classes fit
        {"count": 7},
        {"count": 5, "seed": 0},
        {"count": 5, "classes": ["cat"]},
        {"heldout_count": 5},
    ):
        dataset.subset(**arguments)
    assert capsys.readouterr().err == ""
    assert set(dataset.subset(count=5).train_split.labels) == {0}
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: the first 5 training images of ")
    assert "are from 1 of 2 classes; a seed (--subset-seed) selects them at random" in line


def test_classes_of_heldout_images_go_by_name(folder, tmp_path):
    """Folders number their classes; the first of the held-out folder is another one here."""
    path, pixels = folder
    for name in ("ant", "dog"):
        (tmp_path / "held" / name).mkdir(parents=True)
        Image.fromarray(pixels[len(name) - 3]).save(tmp_path / "held" / name / f"{name}.png")
    dataset = data.load(str(path), heldout=str(tmp_path / "held"))
    assert dataset.class_names == ("cat", "dog")
    assert dataset.test_split.labels.tolist() == [-1, 1]
    assert len(dataset.subset(classes=["dog"]).test_split) == 1
    with pytest.raises(ValueError, match="classes must be among those of the held-out images"):
        dataset.subset(classes=["cat"])
    with pytest.raises(ValueError, match="classes must be a list of names, got 'cat'"):
        dataset.subset(classes="cat")
    with pytest.raises(ValueError, match=r"count must be an integer, got 1\.5"):
        dataset.subset(count=1.5)


def test_digest_covers_pixels_and_indices():
    dataset = data.load("digits")
    one, other = dataset.subset(count=5), dataset.subset(count=5, seed=1)
    assert one.train_split.sha256() == data.load("digits").subset(count=5).train_split.sha256()
    assert one.train_split.sha256() != other.train_split.sha256()
    repeated = data.Split(lambda index: one.train_split.pixels, np.arange(5, 10))
    assert repeated.sha256() != one.train_split.sha256()
    wanted = hashlib.sha256(b"(5, 8, 8, 1)float32")
    wanted.update(np.arange(5, dtype="<i8").tobytes() + one.train_split.pixels.tobytes())
    assert one.train_split.sha256() == wanted.hexdigest()


def test_reads_folder_of_images(folder):
    path, pixels = folder
    (path / "cat" / "._001.png").write_text("what macOS adds to a zip")
    dataset = data.load(str(path), heldout=0.25, seed=1)
    assert (len(dataset.train_split), len(dataset.test_split)) == (9, 3)
    assert dataset.class_names == ("cat", "dog")
    assert not set(dataset.train_split.index) & set(dataset.test_split.index)
    # Sorted by path: first all of cat (the odd ones), then all of dog.
    order = [*range(1, 12, 2), *range(0, 12, 2)]
    np.testing.assert_array_equal(
        dataset.train_split.pixels, pixels[order][dataset.train_split.index]
    )
    again = data.load(str(path), heldout=0.25, seed=1)
    np.testing.assert_array_equal(again.test, dataset.test)


def test_format_is_that_of_the_content(tmp_path, rng, capsys):
    """A WebP or BMP file is read whatever its name says; of a GIF, only the first frame."""
    pixels = rng.integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    first, *others = map(Image.fromarray, pixels)
    first.save(tmp_path / "a.png", format="WEBP", lossless=True)
    others[0].save(tmp_path / "b.jpg", format="BMP")
    moving = [image.quantize(256, dither=0) for image in others[1:]]
    moving[0].save(tmp_path / "c.png", format="GIF", save_all=True, append_images=moving[1:])
    train = data.load(str(tmp_path), heldout=0.0).train_split
    np.testing.assert_array_equal(train.pixels[:2], pixels[:2])
    np.testing.assert_array_equal(train.pixels[2], moving[0].convert("RGB"))
    assert "1 of 3 images" in (warning := capsys.readouterr().err)
    assert "are animated; their first frame is used" in warning


def test_reads_heldout_folder(folder, tmp_path):
    path, pixels = folder
    Image.fromarray(pixels[0]).save(tmp_path / "held.png")
    (tmp_path / "more").mkdir()
    (tmp_path / "held.png").rename(tmp_path / "more" / "held.png")
    dataset = data.load(str(path), heldout=str(tmp_path / "more"))
    assert (len(dataset.train_split), len(dataset.test_split)) == (12, 1)
    assert data.count_shared(dataset.test_split.pixels, dataset.train_split.pixels) == 1


def test_gray_folder_has_one_channel_and_resize_crops(tmp_path):
    gradient = np.tile(np.arange(0, 240, 10, dtype=np.uint8), (12, 1))
    Image.fromarray(gradient).save(tmp_path / "a.png")
    Image.fromarray(gradient.T).save(tmp_path / "b.jpg", quality=100)
    dataset = data.load(str(tmp_path), resize=4, heldout="cifar10_sample")
    assert dataset.train.shape == (2, 4, 4, 1)
    # The center square, averaged: columns 6..17 in four groups of three.
    np.testing.assert_allclose(dataset.train_split.pixels[0, 0, :, 0], [70, 100, 130, 160], atol=6)


@pytest.mark.parametrize("suffix", ["npy", "npz"])
@pytest.mark.parametrize("channels", [0, 1, 3])
def test_reads_arrays(tmp_path, rng, suffix, channels):
    shape = (10, 4, 4) + (channels,) * bool(channels)
    pixels = rng.integers(0, 256, shape, dtype=np.uint8)
    path = tmp_path / f"images.{suffix}"
    np.save(path, pixels) if suffix == "npy" else np.savez(path, images=pixels, other=pixels[:1])
    dataset = data.load(str(path))
    assert dataset.train.shape == (8, 4, 4, channels or 1)
    whole = np.concatenate([dataset.train_split.pixels, dataset.test_split.pixels])
    order = np.concatenate([dataset.train_split.index, dataset.test_split.index])
    np.testing.assert_array_equal(whole.reshape(shape), pixels[order])


def test_float_arrays_are_unchanged(tmp_path, rng, capsys):
    pixels = rng.uniform(-1, 1, (10, 4, 4, 3))
    np.save(tmp_path / "images.npy", pixels)
    dataset = data.load(str(tmp_path / "images.npy"))
    assert dataset.train.dtype == np.float32
    np.testing.assert_array_equal(dataset.train, pixels[dataset.train_split.index].astype("f4"))
    assert dataset.is_images
    assert dataset.noise_scale == 1


@pytest.mark.parametrize("most", [1, 255])
def test_images_in_another_range_need_a_flag(tmp_path, rng, most):
    path = str(tmp_path / "images.npy")
    pixels = rng.uniform(0, most, (10, 4, 4, 3)).astype(np.float32)
    np.save(path, pixels)
    with pytest.raises(ValueError, match=rf"\[-1, 1\] .*: --range 0 {most} for images, --scale 1"):
        data.load(path)
    dataset = data.load(path, value_range=(0, most))
    expected = pixels[dataset.train_split.index] * 2 / most - 1
    np.testing.assert_allclose(dataset.train, expected, atol=1e-6)
    assert dataset.is_images
    assert not data.load(path, scale=1).is_images
    assert not data.load("digits", heldout=pathlib.Path(path), scale=1).test_split.is_images
    with pytest.raises(ValueError, match=r"range must hold all values of dataset, got 0 to 0\.5"):
        data.load(path, value_range=(0, 0.5))
    with pytest.raises(ValueError, match="scale must be positive and finite, got -1"):
        data.load(path, scale=-1.0)
    with pytest.raises(ValueError, match="range and scale must not be given together"):
        data.load(path, scale=1.0, value_range=(0, most))


@pytest.mark.parametrize("shape", [(10, 4, 4, 16), (10, 4, 4, 2), (10, 5, 5), (10, 7)])
def test_reads_latents_and_vectors_of_any_scale(tmp_path, rng, shape):
    values = 5 * rng.normal(size=shape).astype(np.float32)
    np.savez(tmp_path / "latents.npz", train=values[:6], test=values[6:], labels=np.arange(10))
    dataset = data.load(str(tmp_path / "latents.npz"), scale=0.18215)
    np.testing.assert_allclose(dataset.train.reshape(values[:6].shape), 0.18215 * values[:6])
    np.testing.assert_allclose(dataset.test.reshape(values[6:].shape), 0.18215 * values[6:])
    assert not dataset.is_images
    assert dataset.noise_scale == pytest.approx(2 * 0.18215 * values[:6].std(), rel=1e-5)
    unscaled = data.load(str(tmp_path / "latents.npz"))
    np.testing.assert_array_equal(unscaled.test.reshape(values[6:].shape), values[6:])


def test_channels_may_come_first(tmp_path, rng):
    values = rng.normal(size=(10, 4, 8, 8)).astype(np.float32)
    path = str(tmp_path / "latents.npy")
    np.save(path, values)
    with pytest.raises(
        ValueError, match=r"must come with --layout NCHW, .* looks like \[N, C, H, W\]"
    ):
        data.load(path)
    dataset = data.load(path, layout="NCHW")
    np.testing.assert_array_equal(
        dataset.train, values[dataset.train_split.index].transpose(0, 2, 3, 1)
    )
    assert data.load(path, layout="NHWC").train.shape == (8, 4, 8, 8)
    with pytest.raises(ValueError, match="layout must be NHWC or NCHW, got CHWN"):
        data.load(path, layout="CHWN")
    with pytest.raises(ValueError, match="must be left out unless arrays are read, got digits"):
        data.load("digits", layout="NHWC")


def test_resizes_arrays_as_folders(tmp_path, rng):
    pixels = rng.integers(0, 256, (6, 12, 10, 3), dtype=np.uint8)
    for number, image in enumerate(pixels):
        path = tmp_path / "folder" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(image).save(path)
    np.save(tmp_path / "images.npy", pixels)
    array, files = (
        data.load(str(tmp_path / name), resize=5).train for name in ("images.npy", "folder")
    )
    np.testing.assert_array_equal(array, files)


def test_counts_duplicates(rng):
    pixels = rng.integers(0, 256, (10, 4, 4, 3), dtype=np.uint8)
    pixels[5] = pixels[7] = pixels[2]
    assert data.count_duplicates(pixels) == 2
    assert data.count_shared(pixels[[2, 3]], pixels[5:]) == 1


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.full((4, 2, 2, 1), np.nan), r"must be finite .* got 16 values that"),
        (np.full((4, 2, 2, 1), 200.0), r"in \[-1, 1\] or other values, got floats in \[200, 200\]"),
        (np.zeros((4, 2, 2, 1), int), "must hold uint8 or float values, got int64"),
        (
            np.zeros((4, 3, 32, 32), np.uint8),
            r"must come with --layout NCHW, .* shape \(4, 3, 32, 32\)",
        ),
        (np.zeros((4, 12), np.uint8), r"must have the shape \[N, H, W\] .* uint8, got \(4, 12\)"),
        (
            np.array([{}, {}, {}]),
            r"must be a readable \.npy file, got .* \(it holds Python objects\)",
        ),
        (
            np.zeros((1, 2, 2, 1), np.uint8),
            r"must leave at least 2 images for training, got 0 of the 1 in",
        ),
    ],
)
def test_rejects_bad_arrays(tmp_path, array, message):
    np.save(tmp_path / "bad.npy", array, allow_pickle=True)
    with pytest.raises(ValueError, match=message) as error:
        _ = data.load(str(tmp_path / "bad.npy")).train
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"not an array", b"PK\x03\x04broken"])
@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_rejects_broken_files(tmp_path, content, suffix):
    path = tmp_path / f"bad.{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"dataset must be a readable .*bad\.np"):
        data.load(str(path))


def test_rejects_several_unnamed_arrays(tmp_path):
    np.savez(tmp_path / "two.npz", a=np.zeros((3, 2, 2)), b=np.zeros((3, 2, 2)))
    with pytest.raises(ValueError, match=r"must hold one array, .*, got \['a', 'b'\]"):
        data.load(str(tmp_path / "two.npz"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such", "dataset must be cifar10_sample, cifar10, .* file, got 'no_such'"),
        ("missing/folder", "dataset must be an existing file or folder, got missing/folder"),
        ("missing/", "dataset must be an existing file or folder, got missing/"),
        (np.zeros((4, 8, 8, 1)), "dataset must be a name or a path, got ndarray"),
        ("missing.npy", "dataset must be an existing file or folder, got missing.npy"),
        ("tfds:no_such", "dataset must be known to TFDS, got 'no_such'"),
    ],
)
def test_rejects_unknown_data_sets(name, message):
    with pytest.raises(ValueError, match=message):
        data.load(name)


def test_rejects_bad_folders(tmp_path):
    with pytest.raises(ValueError, match="must hold PNG or JPEG images, got none in the folder"):
        data.load(str(tmp_path))
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match="at least 2 images for training, got 0 of the 1 in"):
        data.load(str(tmp_path))
    Image.new("RGB", (5, 4)).save(tmp_path / "b.png")
    message = r"one size, got 2 sizes in .* \(a.png is 4x4, b.png is 5x4\); --resize SIDE"
    with pytest.raises(ValueError, match=message):
        data.load(str(tmp_path))
    Image.new("I;16", (4, 4)).save(tmp_path / "b.png")
    with pytest.raises(ValueError, match="it must have 8 bits per channel, got 16"):
        data.load(str(tmp_path))
    (tmp_path / "b.png").write_text("no image")
    with pytest.raises(ValueError, match=r"must hold readable images, got .*b\.png"):
        data.load(str(tmp_path))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"count": 901}, r"count \(--num-train\) must be between 1 and 900, .*, got 901"),
        ({"count": 0}, r"count \(--num-train\) must be between 1 and 900, .*, got 0"),
        ({"heldout_count": 898}, r"heldout_count \(--num-heldout\) must be .* 897, .*, got 898"),
        ({"seed": -1}, r"seed must be 0 or more, got -1"),
        ({"classes": ["ten"]}, r"classes must be among .* digits \(0, 1, 2.*\), got 'ten'"),
    ],
)
def test_rejects_bad_subsets(arguments, message):
    with pytest.raises(ValueError, match=message):
        data.load("digits").subset(**arguments)


def test_rejects_bad_resize(tmp_path):
    with pytest.raises(ValueError, match="resize must be 1 or more, an integer, got 0"):
        data.load(str(tmp_path), resize=0)


def test_resizes_8_bit_images_only(folder, tmp_path):
    path, _ = folder
    small, whole = (data.load("cifar10_sample", resize=side) for side in (16, None))
    means = whole.train.reshape(1000, 16, 2, 16, 2, 3).mean((2, 4))
    assert small.train.shape == means.shape
    assert np.abs(small.train - means).mean() < 0.03  # antialiased, not every second pixel
    assert small.test.shape == (1000, 16, 16, 3)
    with pytest.raises(ValueError, match=r"resize must be left out unless .* 8-bit images, got 8"):
        data.load("digits", resize=8)
    np.save(tmp_path / "floats.npy", np.linspace(-1, 1, 64).reshape(4, 4, 4, 1))
    with pytest.raises(ValueError, match=r"resize must be left out unless .* 8-bit images, got 8"):
        data.load(str(tmp_path / "floats.npy"), resize=8)
    # Held-out images from a folder are resized to match the training images.
    dataset = data.load("cifar10_sample", heldout=str(path), resize=32)
    assert dataset.test.shape == (12, 32, 32, 3)


def test_holds_out_no_training_image_on_request(tmp_path):
    np.save(tmp_path / "images.npy", np.zeros((5, 4, 4, 1), np.uint8))
    loaded = data.load(str(tmp_path / "images.npy"), heldout=0).subset(count=5)
    assert (len(loaded.train), len(loaded.test_split)) == (5, 0)
    assert len(data.load("digits", heldout=0).test) == 897  # the source's own test images
    with pytest.raises(ValueError, match=r"\(--num-heldout\) must be left out without held-out"):
        loaded.subset(heldout_count=3)


@pytest.mark.parametrize("fraction", [1.0, -0.5, float("nan")])
def test_rejects_bad_fractions(fraction):
    with pytest.raises(ValueError, match=r"heldout must be a fraction between 0 and 1"):
        data.load("digits", heldout=fraction)


# TFDS: without TensorFlow, without downloads


@pytest.fixture
def mocked_tfds(monkeypatch, tmp_path):
    """Use the mock data of TFDS, as if the data sets were prepared."""
    tfds = pytest.importorskip("tensorflow_datasets")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    monkeypatch.setattr(tfds.core.DatasetBuilder, "is_prepared", lambda self: True)
    # The mock replaces the reader's __getitems__ by a function that is not bound (TFDS 4.9.10).
    monkeypatch.setattr(
        "tensorflow_datasets.core.data_sources.base.BaseDataSource.__getitems__",
        lambda source, positions: [source[position] for position in positions],
    )
    with tfds.testing.mock_data(num_examples=12):
        yield tfds


def test_celeba_gray_is_cropped_and_gray(mocked_tfds):
    dataset = data.load("celeba_gray").subset(count=5, heldout_count=3)
    assert dataset.train.shape == (5, 32, 32, 1)
    assert dataset.test.shape == (3, 32, 32, 1)
    image = np.zeros((218, 178, 3), np.uint8)
    image[20:198] = [255, 0, 0]  # the center square, all red: luma 0.299 * 255
    np.testing.assert_array_equal(np.unique(folders.square_gray(image, 32)), [76])


def test_canonical_order_follows_ids():
    """TFDS stores images shuffled; the number in `id` is the position in canonical order."""

    facts = [{"id": name} for name in (b"train_2", b"train_10", b"train_0")]

    class Source(list):
        def __getitems__(self, positions):
            return [self[position] for position in positions]

    examples = Source(
        {"image": np.full((2, 2, 1), position, np.uint8), **fact}
        for position, fact in enumerate(facts)
    )
    builder = types.SimpleNamespace(
        name="examples",
        info=types.SimpleNamespace(features={"image": None, "id": None}),
        as_data_source=lambda split, decoders=None: examples,
    )
    split = sources._tfds_split(builder, "train", "dataset", None)
    np.testing.assert_array_equal(split.pixels[:, 0, 0, 0], [2, 0, 1])
    np.testing.assert_array_equal(split.take(np.array([2])).pixels[:, 0, 0, 0], [1])


def test_unprepared_data_say_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    monkeypatch.setitem(__import__("sys").modules, "tensorflow", None)
    with pytest.raises(ValueError, match=r"cifar10 is not prepared in .*pip install") as error:
        data.load("cifar10")
    assert "\n" not in str(error.value)


def test_cifar10_through_tfds_continues_the_sample(prepared_cifar10):
    whole, sample = data.load("cifar10"), data.load()
    assert (len(whole.train_split), len(whole.test_split)) == (50_000, 10_000)
    first = whole.subset(count=1000, heldout_count=1000)
    np.testing.assert_array_equal(first.train_split.pixels, sample.train_split.pixels)
    np.testing.assert_array_equal(first.test_split.pixels, sample.test_split.pixels)
    np.testing.assert_array_equal(first.train_split.labels, sample.train_split.labels)
    cars = whole.subset(classes=["automobile"], count=2000)
    assert set(cars.train_split.labels) == {1}


def test_blocks_give_same_hash_and_counts(monkeypatch, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (50, 4, 4, 1), np.uint8)
    pixels[40] = pixels[3]
    np.save(tmp_path / "images.npy", pixels)

    def facts():
        split = data.load(str(tmp_path / "images.npy"), heldout=0.2).train_split
        blocks = list(split.blocks())
        counts = data.count_duplicates(split.blocks()), data.count_shared(blocks, split.blocks())
        return len(blocks), split.sha256(), *counts

    whole = facts()
    monkeypatch.setattr(data.datasets, "_KEPT", 0)
    monkeypatch.setattr(data.datasets, "_BLOCK", 7)
    parts = facts()
    assert whole[0] == 1
    assert parts[0] == 6
    assert whole[1:] == parts[1:]
