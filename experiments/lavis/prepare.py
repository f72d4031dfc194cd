"""What `small.py` needs from our side: a small world, a job for one of its benchmarks, and a vocabulary of its words.

.venv/bin/python experiments/lavis/prepare.py OUT
"""

import json
import re
import sys
from pathlib import Path

from cir import data
from cir.backbones.lavis import write_job
from cir.prompts import JOINERS
from cir.world import layouts

BENCHMARK = "cirr/val"
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
MORE = "a red circle and two small blue squares is it the same with no stars green not there square top left corner"


def main(out):
    out.mkdir(parents=True, exist_ok=True)
    if not (out / "world").exists():
        layouts.build(out / "world", seed=0, scale=0.05)
    benchmark = data.load(BENCHMARK, out / "world")
    write_job(out / "job.json", benchmark, JOINERS["first_and_second"])
    said = " ".join(text for query in json.loads((out / "job.json").read_text())["queries"] for text in query["texts"])
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    words = dict.fromkeys([*SPECIAL, *"$.,;:'-?!/", *letters, *(f"##{c}" for c in letters)])
    words.update(dict.fromkeys(re.findall(r"[a-z0-9]+", f"{said} {MORE}".lower())))
    (out / "bert-base-uncased").mkdir(exist_ok=True)
    (out / "bert-base-uncased" / "vocab.txt").write_text("\n".join(words) + "\n")
    print(f"{benchmark.name}: {len(benchmark.queries)} queries, {len(benchmark.gallery)} images; {len(words)} words")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
