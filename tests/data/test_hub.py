"""Hugging Face data sets, local ones: nothing here reaches the network."""

import io
import sys

import numpy as np
import pytest
from PIL import Image

from cir.data import captions, pictures
from cir.errors import InputError

datasets = pytest.importorskip("datasets")


def noise(seed):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (18, 20, 3), dtype=np.uint8))


def png(seed):
    buffer = io.BytesIO()
    noise(seed).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Five rows of pictures and texts, saved as a data set and as one of two splits."""
    root = tmp_path_factory.mktemp("hub")
    texts = ["a cat", None, "a dog", " ", "a bird"]
    rows = datasets.Dataset.from_dict(
        {"picture": [{"bytes": png(seed), "path": None} for seed in range(5)], "caption": texts, "alt": list("vwxyz")},
        features=datasets.Features(
            {"picture": datasets.Image(), "caption": datasets.Value("string"), "alt": datasets.Value("string")}
        ),
    )
    rows.save_to_disk(root / "one")
    datasets.DatasetDict({"train": rows, "test": rows.select([4])}).save_to_disk(root / "two")
    rows.remove_columns(["picture", "alt"]).to_parquet(root / "parquet" / "train.parquet")
    return root


@pytest.mark.parametrize("path", ["{}/one", "hf:{}/one", "{}/two", "hf:{}/two:train"])
def test_captions_of_a_saved_data_set(saved, path):
    found = captions.load(path.format(saved))
    assert list(found) == ["a cat", "a dog", "a bird"] and found.blank == 2 and not found.bad
    assert list(captions.load(path.format(saved), column="alt", limit=2)) == ["v", "w"]


def test_captions_of_a_folder_of_parquet_both_ways(saved, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    plain = captions.load(saved / "parquet")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    through = captions.load(f"hf:{saved}/parquet")
    assert list(through) == list(plain) and through.fingerprint == plain.fingerprint


@pytest.mark.parametrize("path", ["{}/one", "hf:{}/two"])
def test_pictures_of_a_saved_data_set(saved, path):
    found = pictures.load(path.format(saved))
    assert len(found) == 5 and found.format == "Hugging Face" and found.blocks == ()
    assert [found.text(row) for row in range(5)] == ["a cat", "", "a dog", "", "a bird"]
    for row in (3, 0):
        with found.open(row) as image:
            assert np.array_equal(np.asarray(image), np.asarray(noise(row)))
    assert pictures.load(path.format(saved), column="alt").text(4) == "z"
    assert pictures.load(path.format(saved), column="alt").fingerprint != found.fingerprint
    assert pictures.load(path.format(saved)).fingerprint == found.fingerprint


def test_a_path_in_a_row_is_never_opened(tmp_path):
    noise(0).save(tmp_path / "secret.png")
    cells = [{"bytes": png(1), "path": None}, {"bytes": None, "path": str(tmp_path / "secret.png")}]
    table = datasets.Dataset.from_dict({"image": cells}, features=datasets.Features({"image": datasets.Image()}))
    from cir.data import hub

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hub, "open_dataset", lambda path: table)
        found = pictures.load("hf:set", allow_bad=0.5)
        assert len(found) == 1 and found.bad.counts == {"damaged": 1}
        assert "holds no bytes of a picture" in found.bad.first[0]


@pytest.mark.parametrize(
    ("load", "path", "message"),
    [
        (captions.load, "hf:{}/two:val", "no split 'val'; it has train, test"),
        (pictures.load, "hf:{}/two:val", "no split 'val'; it has train, test"),
        (captions.load, "hf:{}/nowhere", "could not be opened"),
    ],
)
def test_what_is_not_there_is_named(saved, load, path, message, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match=message):
        load(path.format(saved))


def test_other_columns_are_asked_for(saved):
    with pytest.raises(InputError, match=r"no column 'captoin'; did you mean 'caption'\?"):
        captions.load(saved / "one", column="captoin")


def test_the_extra_is_named_where_it_is_absent(saved, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    for load in (captions.load, pictures.load):
        with pytest.raises(InputError, match=r"pip install 'cir\[datasets\]'"):
            load(saved / "one")
