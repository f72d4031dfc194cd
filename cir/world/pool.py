"""Pictures to pre-train on: a pool of rendered scenes on disk, with the ground truth the auxiliary losses read."""

import os
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import overload

import numpy as np
from jaxtyping import Int64, UInt8

from cir.errors import RunError
from cir.world.render import PATCH, SIDE, draw
from cir.world.scenes import KINDS, Scene, edited, lay_out, propose_many, sample_scene

GRID = SIDE // PATCH


@dataclass(frozen=True, eq=False)
class Pool(Sequence[Scene]):
    """Scenes, their pictures, and for each patch the group it shows (-1: background)."""

    scenes: list[Scene]
    pictures: UInt8[np.ndarray, "n 64 64 3"]
    patches: Int64[np.ndarray, "n 8 8"]
    fingerprint: str

    def __len__(self) -> int:
        """Count the scenes."""
        return len(self.scenes)

    @overload
    def __getitem__(self, index: int) -> Scene: ...

    @overload
    def __getitem__(self, index: slice) -> list[Scene]: ...

    def __getitem__(self, index: int | slice) -> Scene | list[Scene]:
        """Look up scenes."""
        return self.scenes[index]


def scenes(count: int, seed: int, single: bool) -> list[Scene]:
    """Draw scenes; unless `single` (one object each), every odd one is a one-edit neighbour of the one before."""
    rng = random.Random(f"{seed}:{single}")
    drawn: list[Scene] = []
    while len(drawn) < count:
        scene = sample_scene(rng, groups=1 if single else None)
        if single:
            drawn.append(one_object(scene, rng))
            continue
        edits = propose_many(scene, (rng.choice(KINDS),), rng)
        if edits:
            drawn += [scene, edited(scene, edits, rng)]
    return drawn[:count]


def one_object(scene: Scene, rng: random.Random) -> Scene:
    """Keep one object of a scene."""
    return lay_out(scene.background, (replace(scene.groups[0], count=1),), rng)


def load(folder: Path, count: int, seed: int, single: bool) -> Pool:
    """Render the pool, or map what an earlier call rendered."""
    drawn = scenes(count, seed, single)
    name = f"{'single' if single else 'pairs'}-{count}-{seed}"
    pictures_path, patches_path = folder / f"{name}.pictures.npy", folder / f"{name}.patches.npy"
    if not (pictures_path.exists() and patches_path.exists()):
        folder.mkdir(parents=True, exist_ok=True)
        pictures = np.empty((count, SIDE, SIDE, 3), np.uint8)
        patches = np.empty((count, GRID, GRID), np.int8)
        for index, scene in enumerate(drawn):
            pictures[index], patches[index] = draw(scene, seed * 10_000_019 + index)
        for path, array in ((pictures_path, pictures), (patches_path, patches)):
            partial = path.with_name(f".{os.getpid()}.{path.name}")
            with partial.open("wb") as file:
                np.save(file, array)
            os.replace(partial, path)
    pictures = np.load(pictures_path, mmap_mode="r")
    if pictures.shape != (count, SIDE, SIDE, 3):
        raise RunError(f"{pictures_path}: expected {count} pictures, found {pictures.shape}; delete it and run again")
    return Pool(drawn, pictures, np.load(patches_path).astype(np.int64), name)
