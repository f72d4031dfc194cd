"""The world on disk, in the official layouts of FashionIQ, CIRR and CIRCO, for the ordinary loaders to read.

Beside the official files lie `world.json` (what this is, and its counts: loaders put `world/` before the name of
every benchmark they find it with) and `oracle.json` (per query a full caption of reference and target, for the rows
that bound the table). The train splits of FashionIQ and CIRR come into a world that is there already.
"""

import json
import os
import random
import shutil
import uuid
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from PIL import Image

from cir.errors import InputError
from cir.world import benchmarks, pictures
from cir.world.benchmarks import FAMILY, Gallery, Question, lesson_count
from cir.world.files import write_text
from cir.world.grammar import BENCH, full_caption, noun_phrase
from cir.world.render import draw
from cir.world.scenes import pins

VERSION = 1
CATEGORIES = ("dress", "shirt", "toptee")  # the world's categories: scenes of one, two and three groups

TRAIN_SEEDS = 2**61
"""Where the seeds of the train splits' pictures begin, far above those of the benchmarks."""
_STRIDE = 10_000_019
"""Between the first seeds of two galleries."""

Ticker = Callable[[int], None]


def _shuffled_names(count: int, seed: str, name: Callable[[int], str]) -> list[str]:
    """Name the images so that neither name nor gallery order tells what belongs to what."""
    numbers = list(range(count))
    random.Random(seed).shuffle(numbers)
    return [name(number) for number in numbers]


def _oracle(gallery: Gallery, questions: Sequence[Question], ids: Sequence[str], seed: str) -> dict[str, dict]:
    """Write, per query, full captions of its reference and of its first target, moved objects with their place."""
    rng, captions = random.Random(f"oracle:{seed}"), {}
    for question, name in zip(questions, ids, strict=True):
        reference, target = gallery.scenes[question.reference], gallery.scenes[question.targets[0]]
        still = [shape for shape in pins(question.edits) if any(g.shape == shape for g in reference.groups)]
        captions[name] = {
            "reference": full_caption(reference, rng, BENCH, positions=0.0, say=still),
            "target": full_caption(target, rng, BENCH, positions=0.0, say=pins(question.edits)),
        }
    return captions


def _pictures(gallery: Gallery, paths: Sequence[Path], seeds: int, tick: Ticker) -> None:
    """Draw a gallery; the seeds of its pictures go on from `seeds`."""
    for index, (scene, path) in enumerate(zip(gallery.scenes, paths, strict=True)):
        picture = Image.fromarray(draw(scene, seeds + index)[0])
        if path.suffix == ".jpg":
            picture.save(path, quality=95, subsampling=0)
        else:
            picture.save(path, compress_level=1)
        tick(1)


def _json(path: Path, value: object) -> None:
    write_text(path, json.dumps(value))


def write_circo(root: Path, seed: int, scale: float, tick: Ticker) -> dict:
    """Write CIRCO's layout and return its counts."""
    gallery, questions = benchmarks.circo(seed, scale)
    images = root / "COCO2017_unlabeled" / "unlabeled2017"
    images.mkdir(parents=True)
    names = _shuffled_names(len(gallery.scenes), f"circo:{seed}", lambda n: f"{n * 7 + 100_003:012d}")
    _pictures(gallery, [images / f"{name}.jpg" for name in names], (4 * seed + 1) * _STRIDE, tick)
    listed = [{"id": int(name), "file_name": f"{name}.jpg"} for name in sorted(names)]
    _json(root / "COCO2017_unlabeled" / "annotations" / "image_info_unlabeled2017.json", {"images": listed})
    rng, rows = random.Random(f"concept:{seed}"), []
    for index, question in enumerate(questions):
        concept = noun_phrase(gallery.scenes[question.reference].groups[0], rng, BENCH, keep=(0.0, 0.0, 1.0))
        targets = [int(names[i]) for i in question.targets]
        rows.append(
            {
                "reference_img_id": int(names[question.reference]), "target_img_id": targets[0],
                "relative_caption": question.texts[0], "shared_concept": concept, "gt_img_ids": targets, "id": index,
                "semantic_aspects": [question.kind],
            }
        )  # fmt: skip
    _json(root / "annotations" / "val.json", rows)
    _json(root / "oracle.json", _oracle(gallery, questions, [str(i) for i in range(len(rows))], f"circo:{seed}"))
    return {"val": {"queries": len(rows), "gallery": len(names)}}


def write_cirr(root: Path, seed: int, scale: float, tick: Ticker) -> dict:
    """Write CIRR's layout and return its counts."""
    gallery, questions = benchmarks.cirr(seed, scale)
    (root / "dev").mkdir(parents=True)
    names = _shuffled_names(len(gallery.scenes), f"cirr:{seed}", lambda n: f"dev-{n // 2}-{n % 4}-img{n % 2}")
    _pictures(gallery, [root / "dev" / f"{name}.png" for name in names], (4 * seed + 2) * _STRIDE, tick)
    _json(root / "cirr" / "image_splits" / "split.rc2.val.json", {n: f"./dev/{n}.png" for n in sorted(names)})
    rows = _cirr_rows(questions, names, 10_000)
    _json(root / "cirr" / "captions" / "cap.rc2.val.json", rows)
    _json(root / "oracle.json", _oracle(gallery, questions, [str(row["pairid"]) for row in rows], f"cirr:{seed}"))
    return {"val": {"queries": len(rows), "gallery": len(names)}}


def _cirr_rows(questions: Sequence[Question], names: Sequence[str], first: int) -> list[dict]:
    """Write pairs as CIRR's caption files have them; `first` is the first `pairid`."""
    rows = []
    for index, question in enumerate(questions):
        members = [names[i] for i in question.subset]
        reference, target = names[question.reference], names[question.targets[0]]
        rows.append(
            {
                "pairid": first + 3 * index, "reference": reference, "target_hard": target,
                "target_soft": {target: 1.0}, "caption": question.texts[0], "tags": [question.kind],
                "img_set": {"id": index, "members": members, "reference_rank": members.index(reference),
                            "target_rank": members.index(target)},
            }
        )  # fmt: skip
    return rows


def write_cirr_train(root: Path, seed: int, scale: float, taken: Collection[tuple], tick: Ticker) -> dict:
    """Write CIRR's train split, its images in a hundred folders, and return its counts."""
    gallery, questions = benchmarks.cirr_train(seed, scale, taken)
    label = f"cirr:train:{seed}"
    names = _shuffled_names(len(gallery.scenes), label, lambda n: f"train-{n // 2}-{n % 4}-img{n % 2}")
    places = {name: f"train/{int(name.split('-')[1]) % 100}/{name}.png" for name in sorted(names)}
    for folder in {Path(place).parent for place in places.values()}:
        (root / folder).mkdir(parents=True)
    _pictures(gallery, [root / places[name] for name in names], _train_seeds(seed, 0), tick)
    listed = {name: f"./{place}" for name, place in places.items()}
    _json(root / "cirr" / "image_splits" / "split.rc2.train.json", listed)
    _json(root / "cirr" / "captions" / "cap.rc2.train.json", _cirr_rows(questions, names, 50_000))
    return {"train": {"queries": len(questions), "gallery": len(names)}}


def write_fashioniq(root: Path, seed: int, scale: float, tick: Ticker) -> dict:
    """Write FashionIQ's layout and return its counts."""
    (root / "images").mkdir(parents=True)
    counts: dict[str, dict] = {}
    oracle: dict[str, dict] = {}
    for index, category in enumerate(CATEGORIES):
        gallery, questions = benchmarks.fashioniq(seed, index, scale)
        label = f"fashioniq:{seed}:{category}"
        names = _shuffled_names(len(gallery.scenes), label, lambda n, i=index: f"B{i}{n * 37 + 11:08X}")  # type: ignore[misc]
        seeds = (40 * seed + 3 + index) * _STRIDE
        _pictures(gallery, [root / "images" / f"{name}.png" for name in names], seeds, tick)
        _json(root / "image_splits" / f"split.{category}.val.json", sorted(names))
        rows = _fashioniq_rows(questions, names)
        _json(root / "captions" / f"cap.{category}.val.json", rows)
        ids = [f"{category}/{row:04d}" for row in range(len(rows))]
        oracle |= _oracle(gallery, questions, ids, label)
        counts[category] = {"val": {"queries": len(rows), "gallery": len(names)}}
    _json(root / "oracle.json", oracle)
    return counts


def _fashioniq_rows(questions: Sequence[Question], names: Sequence[str]) -> list[dict]:
    """Write pairs as FashionIQ's caption files have them."""
    return [
        {"target": names[q.targets[0]], "candidate": names[q.reference], "captions": list(q.texts), "tags": [q.kind]}
        for q in questions
    ]


def write_fashioniq_train(root: Path, seed: int, scale: float, taken: Collection[tuple], tick: Ticker) -> dict:
    """Write FashionIQ's train split, its images among those of val, and return its counts."""
    (root / "images").mkdir(parents=True)
    counts: dict[str, dict] = {}
    for index, category in enumerate(CATEGORIES):
        gallery, questions = benchmarks.fashioniq_train(seed, index, scale, taken)
        label = f"fashioniq:train:{seed}:{category}"
        names = _shuffled_names(len(gallery.scenes), label, lambda n, i=index: f"B{i + 5}{n * 37 + 11:08X}")  # type: ignore[misc]
        paths = [root / "images" / f"{name}.png" for name in names]
        _pictures(gallery, paths, _train_seeds(seed, 1 + index), tick)
        _json(root / "image_splits" / f"split.{category}.train.json", sorted(names))
        _json(root / "captions" / f"cap.{category}.train.json", _fashioniq_rows(questions, names))
        counts[category] = {"train": {"queries": len(questions), "gallery": len(names)}}
    return counts


def _train_seeds(seed: int, part: int) -> int:
    return TRAIN_SEEDS + (4 * seed + part) * _STRIDE


WRITERS = {"FashionIQ": write_fashioniq, "CIRR": write_cirr, "CIRCO": write_circo}
TRAIN_WRITERS = {"FashionIQ": write_fashioniq_train, "CIRR": write_cirr_train}


def build(root: Path, seed: int = 0, scale: float = 1.0, tick: Ticker = lambda n: None) -> bool:
    """Write the world's three benchmarks under `root`; what an equal call wrote before is kept. Says whether it wrote.

    `scale` shrinks the number of queries of each kind (1.0: at least 40 of each in every benchmark). The folder
    appears whole or not at all.
    """
    wanted = {"version": VERSION, "seed": seed, "scale": scale}
    stamp = root / "world.json"
    if stamp.exists():
        found = json.loads(stamp.read_text(encoding="utf-8"))
        if {key: found.get(key) for key in wanted} == wanted:
            return False
    elif root.exists() and any(root.iterdir()):
        raise InputError(
            f"{root}: expected an empty folder or an earlier world, found other files; choose another --out"
        )
    partial = root.with_name(f".{root.name}.{uuid.uuid4().hex[:8]}")
    partial.mkdir(parents=True)
    try:
        counts = {name.lower(): write(partial / name, seed, scale, tick) for name, write in WRITERS.items()}
        _json(partial / "world.json", wanted | {"counts": counts})
        if root.exists():
            shutil.rmtree(root)
        os.replace(partial, root)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return True


def lacking(root: Path) -> dict[str, int]:
    """Say which train splits a world lacks, by folder, and how many pictures they have."""
    found = json.loads((root / "world.json").read_text(encoding="utf-8"))
    parts = {"FashionIQ": len(CATEGORIES), "CIRR": 1}
    return {
        name: count * lesson_count(name.lower(), found["scale"]) // (FAMILY // 2) * FAMILY
        for name, count in parts.items()
        if "train" not in found["counts"][name.lower()].get(CATEGORIES[0], found["counts"][name.lower()])
    }


def add_train(root: Path, tick: Ticker = lambda n: None) -> bool:
    """Add the train splits that a world lacks, from its own seed and size; says whether there were any.

    Nothing that is there changes but `world.json`, whose counts gain the split last: an interrupted call is finished by
    the next. No picture shows what a picture of the world's benchmarks shows.
    """
    wanted = lacking(root)
    if not wanted:
        return False
    found = json.loads((root / "world.json").read_text(encoding="utf-8"))
    taken = pictures.known(found["seed"], found["scale"])
    partial = root / f".train.{uuid.uuid4().hex[:8]}"
    try:
        for name in wanted:
            added = TRAIN_WRITERS[name](partial / name, found["seed"], found["scale"], taken, tick)
            for file in [path for path in partial.rglob("*") if path.is_file()]:
                place = root / file.relative_to(partial)
                place.parent.mkdir(parents=True, exist_ok=True)
                os.replace(file, place)
            found["counts"][name.lower()] = _merged(found["counts"][name.lower()], added)
            _json(root / "world.json", found)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return True


def _merged(counts: dict, added: dict) -> dict:
    """Put counts into nested counts."""
    return counts | {
        key: _merged(counts[key], value) if isinstance(counts.get(key), dict) else value for key, value in added.items()
    }
