"""What methods train on: captions, text triplets, pictures, concepts, all in the training half of the lexicon.

Fresh scenes, and no content word or edit sentence of the benchmark: a gain on the benchmark is not familiarity with
its phrasing.
"""

import json
import random
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cir.world import concepts, pictures
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


@dataclass(frozen=True)
class Corpus:
    """The files of a world's training data."""

    captions: Path
    """One caption per line, for methods that learn from texts (LinCIR)."""
    triplets: Path
    """Text triplets in JSON lines (RTD)."""
    concepts: Path
    """One noun phrase per line, the class names of the world (SEARLE)."""
    phrases: Path
    """Sentences around each concept in JSON lines (SEARLE)."""
    images: Path
    """Folder of webdataset shards, pictures with captions (methods that learn from images)."""


def write(folder: Path, seed: int = 0, scale: float = 1.0, tick: Callable[[int], None] = lambda n: None) -> Corpus:
    """Write what is not there yet; `scale` shrinks all but the list of concepts, `tick` hears of every picture."""
    found = Corpus(
        captions=folder / "captions.txt",
        triplets=folder / "triplets.jsonl",
        concepts=folder / "concepts.txt",
        phrases=folder / "phrases.jsonl",
        images=folder / "images",
    )
    listed = concepts.concepts(seed)
    lines: dict[Path, Iterable[str]] = {
        found.captions: captions(max(1, round(CAPTIONS * scale)), seed),
        found.triplets: map(json.dumps, triplets(max(1, round(TRIPLETS * scale)), seed)),
        found.concepts: (concept.text for concept in listed),
        found.phrases: concepts.rows(listed, seed, max(4, round(concepts.SENTENCES * scale))),
    }
    for path, rows in lines.items():
        if not path.exists():
            write_text(path, "\n".join(rows) + "\n")
    pictures.write(found.images, seed, scale, tick)
    return found
