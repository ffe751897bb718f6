"""Tables made by Hugging Face's datasets package, read as images."""

import numpy as np
import pytest
from PIL import Image

from geomem import data
from geomem.experiments import evaluate
from geomem.experiments.evaluate import generated

datasets = pytest.importorskip("datasets")


@pytest.fixture(scope="module")
def tables():
    """Return pixels [9, 6, 6, 3], labels, and a datasets.DatasetDict with them."""
    rng = np.random.default_rng(0)
    pixels, labels = rng.integers(0, 256, (9, 6, 6, 3), dtype=np.uint8), rng.integers(0, 2, 9)
    features = datasets.Features(
        {"picture": datasets.Image(), "kind": datasets.ClassLabel(names=["cat", "dog"])}
    )

    def table(rows):
        pictures = [Image.fromarray(image) for image in pixels[rows]]
        columns = {"picture": pictures, "kind": labels[rows].tolist()}
        return datasets.Dataset.from_dict(columns, features=features)

    both = datasets.DatasetDict({"train": table(slice(0, 6)), "test": table(slice(6, 9))})
    return pixels, labels, both


@pytest.mark.parametrize("form", ["saved", "parquet"])
def test_reads_both_splits_and_labels(tables, tmp_path, form):
    pixels, labels, both = tables
    if form == "saved":
        both.save_to_disk(tmp_path / "set")
    else:
        for name, table in both.items():
            (tmp_path / "set").mkdir(exist_ok=True)
            table.to_parquet(tmp_path / "set" / f"{name}-00000-of-00001.parquet")
    dataset = data.load(f"hf:{tmp_path / 'set'}")
    np.testing.assert_array_equal(dataset.train_split.pixels, pixels[:6])
    np.testing.assert_array_equal(dataset.test_split.pixels, pixels[6:])
    np.testing.assert_array_equal(dataset.train_split.labels, labels[:6])
    assert dataset.class_names == ("cat", "dog")
    assert data.load(f"hf:{tmp_path / 'set'}", resize=3).train.shape == (6, 3, 3, 3)


def _write(folder, **labels):
    """A folder with train.parquet and test.parquet, each of (class names, labels)."""
    folder.mkdir()
    picture = Image.fromarray(np.zeros((4, 4, 3), np.uint8))
    for name, (names, values) in labels.items():
        columns, kinds = {"image": [picture] * len(values)}, {"image": datasets.Image()}
        if names:
            columns["kind"], kinds["kind"] = values, datasets.ClassLabel(names=names)
        table = datasets.Dataset.from_dict(columns, features=datasets.Features(kinds))
        table.to_parquet(folder / f"{name}.parquet")
    return f"hf:{folder}"


def test_classes_go_by_name_and_may_be_missing(tmp_path):
    cats = ["cat", "dog"], [0, 0, 1]
    source = _write(tmp_path / "swapped", train=cats, test=(["dog", "cat"], [0, 1]))
    assert data.load(source).test_split.labels.tolist() == [1, 0]
    for number, test in enumerate(((["cat", "dog"], [-1, -1]), (None, [0, 0]))):
        dataset = data.load(_write(tmp_path / f"unknown{number}", train=cats, test=test))
        assert dataset.test_split.labels is None
        assert dataset.class_names == ("cat", "dog")
    dataset = data.load(_write(tmp_path / "none", train=(["cat", "dog"], [None] * 3)), heldout=0.3)
    assert dataset.class_names == ()
    for number, values in enumerate(([0, -1, 1], [0, None, 1])):
        source = _write(tmp_path / f"some{number}", train=(["cat", "dog"], values))
        with pytest.raises(ValueError, match=r"dataset must have a class in each row, got .* 1 of"):
            data.load(source)
    with pytest.raises(ValueError, match=r"dataset must have the same classes in all .* got 'fox'"):
        data.load(_write(tmp_path / "other", train=cats, test=(["fox"], [0, 0])))


def test_one_file_is_split(tables, tmp_path):
    tables[2]["train"].to_parquet(tmp_path / "images.parquet")
    dataset = data.load(f"hf:{tmp_path / 'images.parquet'}")
    assert (len(dataset.train), len(dataset.test)) == (5, 1)


def test_rejects_tables_without_images(tmp_path):
    datasets.Dataset.from_dict({"text": ["a", "b"]}).to_parquet(tmp_path / "text.parquet")
    with pytest.raises(ValueError, match=r"one column of images, got 0 in hf:.* \(text\)"):
        data.load(f"hf:{tmp_path / 'text.parquet'}")
    empty = datasets.Dataset.from_dict(
        {"image": [None, None]}, features=datasets.Features({"image": datasets.Image()})
    )
    empty.to_parquet(tmp_path / "empty.parquet")
    with pytest.raises(ValueError, match=r"must hold readable images, got row 0 \(it holds no"):
        data.load(f"hf:{tmp_path / 'empty.parquet'}")


@pytest.mark.parametrize("content", [None, b"not parquet"])
def test_rejects_damaged_files(tmp_path, content):
    path = tmp_path / "x.parquet"
    path.write_bytes(content) if content else None
    with pytest.raises(ValueError, match=r"must be a saved data set or Parquet files") as error:
        data.load(f"hf:{path}")
    assert "\n" not in str(error.value)


def test_evaluate_resizes_the_training_images_too(tables, tmp_path):
    tables[2]["train"].to_parquet(tmp_path / "images.parquet")
    (tmp_path / "samples").mkdir()
    for name in ("a.png", "b.png"):
        Image.fromarray(tables[0][0]).save(tmp_path / "samples" / name)
    config = evaluate.Config(
        samples=str(tmp_path / "samples"), dataset=f"hf:{tmp_path}/images.parquet", resize=3
    )
    assert generated.load(config).dataset.train.shape == (6, 3, 3, 3)
