"""Pictures with captions to train on, as webdataset shards: what methods that learn from images see of the world.

Fresh scenes, none of which any benchmark shows, drawn with seeds of their own, and described in the training half of
the lexicon. A shard is an uncompressed tar of pairs `000123.png`, `000123.txt`; equal calls write equal bytes (as far
as the installed Pillow writes equal PNG).
"""

import io
import os
import random
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

from PIL import Image

from cir.world import benchmarks
from cir.world.grammar import TRAIN, description
from cir.world.render import draw
from cir.world.scenes import Scene, sample_scene

COUNT, SHARD = 8_000, 1_000
"""Pictures of a full world, and pictures per shard."""
SEEDS = 2**62
"""Where the seeds of these pictures begin, far above those of the benchmarks and of the tiny CLIP's pre-training."""

Key = tuple[str, tuple]


def shards(scale: float = 1.0) -> dict[str, range]:
    """Say which pictures, by number, lie in which file."""
    count = max(1, round(COUNT * scale))
    starts = range(0, count, SHARD)
    return {f"world-{i:05d}.tar": range(first, min(first + SHARD, count)) for i, first in enumerate(starts)}


def missing(folder: Path, scale: float = 1.0) -> int:
    """Count the pictures that `write` would draw."""
    return sum(len(numbers) for name, numbers in shards(scale).items() if not (folder / name).exists())


def write(folder: Path, seed: int = 0, scale: float = 1.0, tick: Callable[[int], None] = lambda n: None) -> list[Path]:
    """Write the shards that are not there yet, each whole or not at all; returns the paths of all.

    A shard depends on nothing but world seed, scale and its own number, so an interrupted call is finished by the next.
    """
    wanted = shards(scale)
    shown = known(seed, scale) if missing(folder, scale) else set()
    for name, numbers in wanted.items():
        if not (folder / name).exists():
            _write_shard(folder / name, scenes(numbers, seed, shown), seed, tick)
    return [folder / name for name in wanted]


def known(seed: int, scale: float = 1.0) -> set[Key]:
    """Collect what the pictures of the three benchmarks show."""
    built = [benchmarks.circo(seed, scale), benchmarks.cirr(seed, scale)]
    built += [benchmarks.fashioniq(seed, category, scale) for category in range(3)]
    return {scene.key for gallery, _ in built for scene in gallery.scenes}


def scenes(numbers: range, seed: int, shown: set[Key]) -> Iterator[tuple[int, Scene, str]]:
    """Draw scenes that nothing in `shown` equals, and their captions; the mix of one to three groups stays."""
    rng = random.Random(f"pictures:{seed}:{numbers.start}")
    for number in numbers:
        scene = sample_scene(rng)
        while scene.key in shown:
            scene = sample_scene(rng, groups=len(scene.groups))
        yield number, scene, description(scene, rng, TRAIN)


def _write_shard(path: Path, drawn: Iterator[tuple[int, Scene, str]], seed: int, tick: Callable[[int], None]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with tarfile.open(partial, "w", format=tarfile.USTAR_FORMAT) as tar:
            for number, scene, caption in drawn:
                _add(tar, f"{number:06d}.png", _png(scene, SEEDS + seed * 10_000_019 + number))
                _add(tar, f"{number:06d}.txt", caption.encode())
                tick(1)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _png(scene: Scene, seed: int) -> bytes:
    content = io.BytesIO()
    Image.fromarray(draw(scene, seed)[0]).save(content, "png", compress_level=1)
    return content.getvalue()


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)  # a fresh one: time, owner and group are zero
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))
