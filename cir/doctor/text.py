"""A report for people: one block per split."""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import PurePath

from cir.doctor.findings import Annotation, BadImage, Images, Report, Split, Verdict

SHOWN = 10
"""How many images a block names per verdict; the JSON report names all."""
MEANING: dict[Verdict, str] = {
    "missing": "missing",
    "corrupt": "corrupt",
    "misplaced": "misplaced",
    "ambiguous": "ambiguous",
    "outside": "with a box outside the picture",
}


def lines(report: Report) -> Iterator[str]:
    """Write the report, line by line."""
    for split in report.splits:
        yield from _split(split)
    for folder in report.unreadable:
        yield f"not searched: {folder}; its files may be missing above"


def summary(report: Report) -> str:
    """Say in one line what is not well."""
    splits = [f"{split.name}: {_short(split)}" for split in report.splits if split.status == "incomplete"]
    return "; ".join(splits) or f"{report.name}: nothing of it is under {report.root}"


def _short(split: Split) -> str:
    """Say of one split what is not well."""
    states = [state.state for state in split.annotations if state.state not in ("found", "unneeded")]
    said = [f"{states.count(state)} annotation files {state}" for state in dict.fromkeys(states)]
    said += ["counts other than expected"] * any(not count.right for count in split.counts.values())
    if split.images is not None:
        said += [f"{split.images.count(key):,} images {MEANING[key]}" for key in MEANING if split.images.count(key)]
    return ", ".join(said) or split.problem


def _split(split: Split) -> Iterator[str]:
    if split.status == "not here":
        yield f"{split.name}: not here, none of its annotation files"
        yield from (f"  next         {sentence}" for sentence in split.advice)
        return
    if split.status == "complete" and split.images is not None:
        queries = split.counts["queries"].found
        yield f"{split.name}: {queries:,} queries and {split.images.named:,} images are all there"
    else:
        yield f"{split.name}: not complete"
    if split.base:
        yield f"  base         {split.base}"
    for state in split.annotations:
        yield f"  annotations  {_annotation(state)}"
    if split.problem:
        yield f"  problem      {split.problem}"
    if split.counts:
        counted = (
            f"{key} {count.found:,}" + ("" if count.right else f" (expected {count.expected:,})")
            for key, count in split.counts.items()
        )
        yield f"  counts       {', '.join(counted)}"
    if split.images is not None:
        yield from _images(split.images)
    for note in split.notes:
        yield f"  note         {note}"
    if split.fingerprint:
        yield f"  fingerprint  {split.data_fingerprint} (data), {split.fingerprint} (annotations)"
    for sentence in split.advice:
        yield f"  next         {sentence}"


def _annotation(state: Annotation) -> str:
    where = f": {' or '.join(state.at)}" if state.at and not state.at[0].endswith(state.place) else ""
    return f"{state.place} {'not there, not needed' if state.state == 'unneeded' else state.state}{where}"


def _images(images: Images) -> Iterator[str]:
    """Count, name the first of every kind, and say how they are laid out."""
    shared = f", {images.named:,} images" if images.named != images.files else ""
    yield f"  images       {images.found:,} of {images.files:,} files found{shared}"
    for verdict in MEANING:
        yield from _bad([image for image in images.bad if image.verdict == verdict])
    if images.folders:
        kinds = ", ".join(f"{kind or 'no extension'} {count:,}" for kind, count in images.suffixes.items())
        links = f", {images.links:,} of them links" if images.links else ""
        yield f"  layout       in {_folders(images.folders)}; {kinds}{links}"
    if images.extra:
        yield f"  extra        {images.extra:,} more images in these folders, first {', '.join(images.extra_first[:3])}"


def _bad(bad: list[BadImage]) -> Iterator[str]:
    """Name the first images under one verdict, and where the misplaced ones are."""
    if not bad:
        return
    verdict = bad[0].verdict
    lie = Counter(str(PurePath(image.at[0]).parent) for image in bad) if verdict == "misplaced" else Counter[str]()
    where = f", in {_folders(dict(lie.most_common()))}" if lie else ""
    yield f"  {verdict:<12} {len(bad):,}{where}"
    for image in bad[:SHOWN]:
        at = f", found {' or '.join(image.at)}" if verdict in ("misplaced", "ambiguous") else ""
        trouble = f": {image.trouble}" if image.trouble else ""
        yield f"    {image.id} ({image.place}{at}){trouble}"
    if len(bad) > SHOWN:
        yield f"    and {len(bad) - SHOWN:,} more; --json FILE names all"


def _folders(folders: Mapping[str, int]) -> str:
    """Name the first folders with their counts."""
    first = [f"{folder}/ ({count:,})" for folder, count in list(folders.items())[:3]]
    more = len(folders) - len(first)
    return ", ".join(first) + (f" and {more:,} more folders" if more else "")
