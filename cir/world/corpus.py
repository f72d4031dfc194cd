"""What the demo trains on: captions for LinCIR and text triplets for RTD, in the training half of the lexicon.

Fresh scenes, and no content word or edit sentence of the benchmark: a gain on the benchmark is not familiarity with
its phrasing.
"""

import json
import random
from collections.abc import Iterator
from pathlib import Path

from cir.world.files import write_text
from cir.world.grammar import TRAIN, caption, edits_text, full_caption
from cir.world.scenes import KINDS, edited, pins, propose_many, sample_scene

CAPTIONS, TRIPLETS = 24_000, 16_000


def captions(count: int, seed: int) -> Iterator[str]:
    """Write captions of fresh scenes."""
    rng = random.Random(f"captions:{seed}")
    for _ in range(count):
        yield caption(sample_scene(rng), rng, TRAIN)


def triplets(count: int, seed: int) -> Iterator[dict[str, str]]:
    """Write text triplets: a reference caption, one to three edits in words, the caption of the edited scene."""
    rng = random.Random(f"triplets:{seed}")
    written = 0
    while written < count:
        scene = sample_scene(rng)
        kinds = tuple(rng.choice(KINDS) for _ in range(rng.choices((1, 2, 3), (0.6, 0.3, 0.1))[0]))
        edits = propose_many(scene, kinds, rng)
        if not edits:
            continue
        target, moved = edited(scene, edits, rng), pins(edits)
        written += 1
        yield {
            "reference_caption": full_caption(scene, rng, TRAIN, positions=0.1, say=moved),
            "conditioning_caption": edits_text(scene, edits, rng, TRAIN),
            "target_caption": full_caption(target, rng, TRAIN, positions=0.1, say=moved),
        }


def write(folder: Path, seed: int = 0) -> tuple[Path, Path]:
    """Write `captions.txt` and `triplets.jsonl`; files that are there already are kept."""
    text, triplet = folder / "captions.txt", folder / "triplets.jsonl"
    if not text.exists():
        write_text(text, "\n".join(captions(CAPTIONS, seed)) + "\n")
    if not triplet.exists():
        write_text(triplet, "".join(json.dumps(row) + "\n" for row in triplets(TRIPLETS, seed)))
    return text, triplet
