"""What the world's models are scored on: fresh scenes, captions of them, and neighbours one edit away."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cir.world.files import write_text
from cir.world.grammar import BENCH, TRAIN, caption, full_caption
from cir.world.render import draw
from cir.world.scenes import KINDS, Scene, edited, propose_many, sample_scene


class FreshScenes:
    """Scenes that no model was trained on, the same for all; ask for `captions` first, then for `choice`, each once."""

    def __init__(self, count: int) -> None:
        self.rng = random.Random("measure")
        self.scenes = [sample_scene(self.rng) for _ in range(count)]

    def captions(self) -> Iterator[tuple[str, list[str]]]:
        """Write a caption of every scene, kind by kind: full ones in either half of the lexicon, then noisy ones."""
        writers: dict[str, Callable[[Scene], str]] = {
            "full/train": lambda scene: full_caption(scene, self.rng, TRAIN, positions=0.0),
            "full/bench": lambda scene: full_caption(scene, self.rng, BENCH, positions=0.0),
            "noisy/train": lambda scene: caption(scene, self.rng, TRAIN),
        }
        for name, write in writers.items():
            yield name, [write(scene) for scene in self.scenes]

    def choice(self) -> tuple[list[str], list[Float[Tensor, "b 3 h w"]]]:
        """Write full captions and draw two rivals of every scene, each one edit away."""
        texts = [full_caption(scene, self.rng, TRAIN, positions=0.0) for scene in self.scenes]
        return texts, [pictures([self._neighbour(scene) for scene in self.scenes], seed) for seed in (2, 3)]

    def pictures(self) -> Float[Tensor, "b 3 h w"]:
        """Draw the scenes."""
        return pictures(self.scenes, 1)

    def _neighbour(self, scene: Scene) -> Scene:
        while True:
            edits = propose_many(scene, (self.rng.choice([kind for kind in KINDS if kind != "move"]),), self.rng)
            if edits:
                return edited(scene, edits, self.rng)


def pictures(scenes: list[Scene], seed: int) -> Float[Tensor, "b 3 h w"]:
    """Draw scenes, pixels from 0 to 255."""
    drawn = np.stack([draw(scene, seed * 1_000_003 + index)[0] for index, scene in enumerate(scenes)])
    return torch.from_numpy(drawn).permute(0, 3, 1, 2).float()


def share(right: Tensor) -> float:
    """Share of rows that are right."""
    return float(right.float().mean())


def write_scores(out: Path, scores: dict[str, float]) -> None:
    """Write `scores.csv`."""
    write_text(out / "scores.csv", "".join(f"{name},{value:.4f}\n" for name, value in scores.items()))
