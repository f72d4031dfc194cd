"""Text triplets that rtd_triplets_world compares with the world's own: by rules, and with the wrong targets.

    python experiments/ablations/triplets.py        writes datasets/world/triplets, half a minute; what is there is kept

Everything follows from the world's captions and triplets and from seed 0.
"""

import argparse
import json
import random
from pathlib import Path

from cir import records
from cir.commands.triplets import by_rules, job
from cir.data import triplets
from cir.language.templates import TEMPLATES, parse

COUNT = 16_000
"""Triplets of each kind: as many as the world's own."""
SEED = 0
FOREIGN = {
    "noun": "owl piano sofa bridge lemonade castle bicycle violin dolphin teapot umbrella waterfall",
    "nouns": "balloons dogs skyscrapers bananas horses mushrooms lanterns pirates",
    "modifier": "wooden ancient fluffy rusty silky elegant wet noisy",
}
"""Words that neither the world's captions nor the tiny CLIP's pre-training hold."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--world", type=Path, default=Path("datasets/world"))
    parser.add_argument("--count", type=int, default=COUNT)
    given = parser.parse_args()
    write(given.world, given.count)


def write(world: Path, count: int = COUNT) -> list[Path]:
    """Write what is not there yet into the folder `triplets` of a world; returns all the files."""
    out, captions = world / "triplets", world / "corpus" / "captions.txt"
    out.mkdir(parents=True, exist_ok=True)
    files = {
        "templates-one-sentence.txt": one_sentence(),
        "templates-replace-only.txt": replace_only(),
        "words-foreign.txt": "".join(f"{kind}: {word}\n" for kind, words in FOREIGN.items() for word in words.split()),
    }
    for name, text in files.items():
        records.replace_file(out / name, text.encode())
    one, replace, words = (out / name for name in files)
    for name, sentences, vocabulary in (
        ("rules", None, None),
        ("one-sentence", one, None),
        ("replace-only", replace, None),
        ("foreign-words", None, words),
    ):
        path = out / f"{name}.jsonl"
        if not path.exists():
            by_rules(job(str(captions), path, count=count, seed=SEED), sentences, vocabulary, "builtin")
    shuffled = out / "shuffled-targets.jsonl"
    if not shuffled.exists():
        records.replace_file(shuffled, shuffled_targets(world / "corpus" / "triplets.jsonl", count).encode())
    return [*sorted(out.glob("*.jsonl"))]


def one_sentence() -> str:
    """Take the first sentence of each form."""
    return "".join(f"{form}: {sentences[0]}\n" for form, sentences in parse(TEMPLATES, "templates").items())


def replace_only() -> str:
    """Take the sentences of one form."""
    return "".join(f"replace: {sentence}\n" for sentence in parse(TEMPLATES, "templates")["replace"])


def shuffled_targets(path: Path, count: int) -> str:
    """Give each of the first triplets another one's target: what the words say no longer leads to it."""
    rows = list(triplets.load(path))[:count]
    targets = [row.target for row in rows]
    random.Random(SEED).shuffle(targets)
    return "".join(
        json.dumps({"reference_caption": row.reference, "conditioning_caption": row.text, "target_caption": target})
        + "\n"
        for row, target in zip(rows, targets, strict=True)
    )


if __name__ == "__main__":
    main()
