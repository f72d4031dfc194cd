"""`cir list`: nothing that can be named is left out."""

import re

from typer.testing import CliRunner

from cir.cli import app
from cir.data import BENCHMARKS, DATASETS, GROUPS
from cir.protocols import PROTOCOLS


def listed(what):
    result = CliRunner().invoke(app, ["list", what])
    assert result.exit_code == 0, result.output
    return result.stdout


def spelled_out(text):
    """Write `a-{b,c}` as `a-b` and `a-c`."""
    for stem, endings in re.findall(r"(\S+-)\{(\S+)\}", text):
        yield from (stem + ending for ending in endings.split(","))
    yield from text.split()


def test_every_benchmark_with_its_page_and_its_protocols():
    text = listed("benchmarks")
    assert {*BENCHMARKS, *GROUPS} <= set(spelled_out(text))
    for file in DATASETS.values():
        block = text.split(f"{file.SOURCE.title}, {file.SOURCE.page}\n")[1].split("docs/")[0]
        for entry in file.ENTRIES.values():
            assert f"under {', '.join(entry.protocols)}\n" in block
    assert re.search(r"cirr/val +4,181 queries, 2,297 images\n", text)
    assert re.search(r"cirr/test1 +4,148 queries, 2,315 images, labels hidden\n", text)
    assert max(map(len, text.splitlines())) < 170


def test_every_protocol_with_its_sentence():
    text = listed("protocols")
    for name, protocol in PROTOCOLS.items():
        assert f"{name} v{protocol.version}: {', '.join(protocol.metrics)}" in text and protocol.definition in text
    assert "genecis v1: R@1, R@2, R@3, within each query's candidates" in text


def test_siblings_say_what_sets_them_apart():
    for entry in BENCHMARKS.values():
        if len(entry.protocols) > 1:
            sentences = [PROTOCOLS[name].differs or PROTOCOLS[name].definition for name in entry.protocols]
            assert len(set(sentences)) == len(sentences)
