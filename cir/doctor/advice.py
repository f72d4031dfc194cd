"""What to do next, in sentences: which file from where, which command, which form."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from cir.data.entry import Source
from cir.doctor.archives import Packed
from cir.doctor.findings import Split


def sought(split: Split) -> list[str]:
    """List the files of a split that an archive may hold: annotations and images that are missing."""
    images = split.images.bad if split.images else ()
    places = [state.place for state in split.annotations if state.state == "missing"]
    return [*places, *(image.place for image in images if image.verdict == "missing")]


def lines(split: Split, source: Source, name: str, root: Path, packed: Sequence[Packed]) -> list[str]:
    """Write the advice for one split, most urgent first."""
    said = [*_annotations(split, source), *_packed(packed, split), *_images(split, source)]
    if _movable(split):
        command = f"cir data check {shlex.quote(name)} --root {shlex.quote(str(root))} --fix-layout OUT"
        said.append(f"to leave the files where they lie and get the official layout as links: {command}")
    if split.images is not None:
        said.append("to go on without what is missing or corrupt: data.allow_missing=true; the numbers are stamped")
    return [*said, f"layout and traps: {source.page}"]


def _annotations(split: Split, source: Source) -> list[str]:
    """Say where annotation files come from, and what is wrong with those that are there."""
    by_state = {state: [one for one in split.annotations if one.state == state] for state in _STATES}
    base = split.base or f"{source.folders[0]}/ under the root"
    said = []
    if by_state["missing"]:
        listed = ", ".join(one.place for one in by_state["missing"])
        said.append(f"get the annotations: {source.annotations}; put {listed} into {base}")
    said += [f"move {one.at[0]} to {one.place} in {base}" for one in by_state["misplaced"]]
    said += [
        f"{one.place} may be {' or '.join(one.at)}, which differ: keep the right one" for one in by_state["ambiguous"]
    ]
    if by_state["broken"]:
        listed = ", ".join(one.at[0] for one in by_state["broken"])
        said.append(f"download {listed} again: {source.annotations}")
    if any(not count.right for count in split.counts.values()):
        said.append(
            "the counts are not the expected ones: annotations of another version or cut short, or a gallery that is "
            f"read off a folder; the complete ones: {source.annotations}"
        )
    return said


_STATES = ("missing", "misplaced", "ambiguous", "broken")


def _packed(packed: Sequence[Packed], split: Split) -> list[str]:
    """Say what to unpack, and where."""
    said = []
    for archive in packed:
        if archive.trouble:
            said.append(f"{archive.file} cannot be opened ({archive.trouble}); download it again")
            continue
        many = f"{archive.count:,}" if archive.counted else "some"
        where = "/".join(part for part in (split.base, archive.folder) if part) or "the dataset's folder"
        said.append(f"unpack {archive.file} in {where}: it holds {many} of the missing files")
    return said


def _images(split: Split, source: Source) -> list[str]:
    """Say where images come from, and what to do about those that are not well."""
    if split.images is None:
        return ["the images are looked at when the annotations are there"]
    said, images = [], split.images
    if images.count("missing"):
        said.append(f"get the images: {source.images}; put them under {split.base}")
    if images.count("corrupt"):
        said.append("copy or download the corrupt images again")
    if images.count("ambiguous"):
        said.append("of the files that may be an ambiguous image, keep the right one, and put it into its place")
    if images.count("outside"):
        said.append("boxes lie outside their pictures: these are smaller copies; get the original pictures")
    return said


def _movable(split: Split) -> bool:
    """Say whether links would help: something is there under another place."""
    images = split.images is not None and split.images.count("misplaced") > 0
    return images or any(state.state == "misplaced" for state in split.annotations)
