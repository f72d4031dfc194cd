import base64
import io
import json
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from cir.errors import InputError
from cir.report import gallery
from cir.schema import Benchmark, TargetRanks


def data_of(page):
    return json.loads(re.search(r'id="data">(.*?)</script>', page, re.S)[1])


@pytest.fixture
def page(tmp_path, record, searched):
    benchmark, ranking, ranks = searched
    worse = TargetRanks(ranks.query_ids, np.where(ranks.ranks > 0, ranks.ranks + 5, 0), ranks.tied)
    path = gallery.write(
        tmp_path / "page.html", record("lincir"), benchmark, ranking, ranks, {"image only": worse}, top=7
    )
    return path.read_text()


def test_the_page_shows_each_query_with_its_ranking_written_out(page, searched):
    benchmark, ranking, _ = searched
    data = data_of(page)
    names = [image["id"] for image in data["images"]]
    assert len(names) == len(set(names))
    for row, (query, shown) in enumerate(zip(benchmark.queries, data["queries"], strict=True)):
        assert shown["id"] == query.id
        assert tuple(shown["texts"]) == query.texts
        assert names[shown["reference"]] == query.reference
        assert tuple(names[index] for index in shown["targets"]) == query.targets
        assert [names[index] for index in shown["top"]] == ranking.row(row)[:7]
        best = min(ranking.row(row).index(target) + 1 for target in query.targets)
        assert shown["rank"] == best
        assert shown["beside"] == {"image only": best + 5}


def test_texts_and_ids_cannot_leave_their_place(page):
    assert "<b>circle</b>" not in page
    assert page.count("</script>") == 2  # the data and the script: none from a query's text


def test_the_page_needs_no_other_file_and_no_network(page):
    assert not re.search(r"(?:src|href)\s*=\s*[\"'](?!data:|#)", page)
    assert "http://" not in page and "https://" not in page and "@import" not in page


def test_thumbnails_are_small_and_look_like_the_image(page, searched):
    benchmark, _, _ = searched
    for image in data_of(page)["images"][:5]:
        assert image["src"].startswith("data:image/webp;base64,")
        with Image.open(io.BytesIO(base64.b64decode(image["src"].partition(",")[2]))) as thumb:
            assert max(thumb.size) <= 144
            with Image.open(benchmark.root / benchmark.paths[image["id"]]) as original:
                same = np.asarray(original.resize(thumb.size), float) - np.asarray(thumb.convert("RGB"), float)
        assert np.abs(same).mean() < 12


def test_a_missing_image_leaves_an_empty_frame(tmp_path, record, searched):
    benchmark, ranking, ranks = searched
    (benchmark.root / "0003.png").unlink()
    path = gallery.write(tmp_path / "page.html", record(), benchmark, ranking, ranks, top=30)
    sources = {image["id"]: image["src"] for image in data_of(path.read_text())["images"]}
    assert [name for name, source in sources.items() if not source] == ["0003"]


def test_transparent_images_become_white(tmp_path, searched):
    benchmark, _, _ = searched
    Image.new("RGBA", (50, 50), (255, 0, 0, 0)).save(benchmark.root / "0000.png")
    source = gallery.thumbnail(benchmark, "0000", 50)
    with Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) as thumb:
        assert np.asarray(thumb.convert("RGB")).min() > 250


@pytest.mark.parametrize("path", ["../secret.png", "/etc/passwd"])
def test_paths_stay_inside_the_data_folder(searched, path):
    benchmark, _, _ = searched
    with pytest.raises(InputError, match="outside the data folder"):
        gallery.thumbnail(replace_paths(benchmark, {"0000": path}), "0000", 50)


def replace_paths(benchmark, paths):
    fields = {name: getattr(benchmark, name) for name in Benchmark.__dataclass_fields__}
    return Benchmark(**{**fields, "paths": {**benchmark.paths, **paths}})


def test_more_queries_than_the_limit_are_thinned_evenly_and_the_page_says_so(tmp_path, record, searched):
    benchmark, ranking, ranks = searched
    text = gallery.write(tmp_path / "page.html", record(), benchmark, ranking, ranks, limit=5).read_text()
    assert [query["id"] for query in data_of(text)["queries"]] == ["q0", "q5", "q11", "q17", "q23"]
    assert "19 queries are not shown" in text


def test_hidden_labels_give_rankings_without_hits(tmp_path, record, searched):
    benchmark, ranking, _ = searched
    text = gallery.write(tmp_path / "page.html", record(means=None), benchmark, ranking).read_text()
    assert all(query["rank"] == 0 for query in data_of(text)["queries"])
    assert '<select id="outcome" disabled>' in text


def test_rankings_of_other_queries_are_refused(tmp_path, record, searched):
    benchmark, ranking, ranks = searched
    other = TargetRanks(ranks.query_ids[::-1], ranks.ranks, ranks.tied)
    with pytest.raises(InputError, match="ranks text only holds other queries"):
        gallery.write(tmp_path / "page.html", record(), benchmark, ranking, ranks, {"text only": other})


def test_stamps_and_staleness_are_on_the_page(tmp_path, record, searched):
    benchmark, ranking, ranks = searched
    stamped = record(stale="tie rule fixed")
    stamped = replace(stamped, benchmark=replace(stamped.benchmark, stamps=["subset of 4 queries"]))
    text = gallery.write(tmp_path / "page.html", stamped, benchmark, ranking, ranks).read_text()
    assert "Not comparable: subset of 4 queries." in text
    assert "Stale: tie rule fixed." in text
