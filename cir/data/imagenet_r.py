"""Domain conversion on ImageNet-R as Pic2Word asks for it (Saito et al., CVPR 2023, arXiv:2302.03084, section 4.1).

`imgnet_real_query.txt` and `imgnet_targets.txt` hold a path `imgnet/...` and a label a line; the images lie where the
paths say. A photograph and the name of a domain ask for images of the photograph's class in that domain. Labels are
the class + 1000 * domain; the 10,000 photographs stand in the gallery too, as domain 6, and compete.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from cir.data import layout, lists
from cir.data.entry import Entry, Source
from cir.data.reduce import settle
from cir.errors import InputError
from cir.schema import Benchmark, Query

QUERIES, TARGETS = "imgnet_real_query.txt", "imgnet_targets.txt"
COLUMNS = ("path", "label")
DOMAINS = ("cartoon", "origami", "toy", "sculpture")
"""In the order of their labels."""
CLASSES = 1000
PHOTOGRAPHS = 6
"""The domain of the images that ask."""
COUNTS = {
    "imagenet_r/cartoon": {"queries": 10000, "gallery": 16983, "targets": 186300, "unanswered": 2350},
    "imagenet_r/origami": {"queries": 10000, "gallery": 16983, "targets": 27500, "unanswered": 4700},
    "imagenet_r/toy": {"queries": 10000, "gallery": 16983, "targets": 75550, "unanswered": 2800},
    "imagenet_r/sculpture": {"queries": 10000, "gallery": 16983, "targets": 59800, "unanswered": 2900},
}
"""`targets`: right images summed over the queries; `unanswered`: queries whose class the domain does not have."""
PROTOCOLS = ("imagenet_r/share", "imagenet_r/hit")
TEMPLATE = "a {text} of $"
"""Pic2Word's sentence for this task."""
SOURCE = Source(
    title="ImageNet-R domain conversion",
    folders=("imgnet", "imagenet_r"),
    annotations="github.com/google-research/composed_image_retrieval, data/imgnet/ (Apache-2.0)",
    images="ImageNet-R, github.com/hendrycks/imagenet-r, and 10,000 photographs of the ImageNet validation set, "
    "image-net.org (an account, non-commercial)",
    page="docs/benchmarks/imagenet_r.md",
)


def load(root: Path, domain: str, *, protocol: str = PROTOCOLS[0], allow_missing: bool = False) -> Benchmark:
    """Load the 10,000 photographs asking for one domain; the gallery is every line of the target list.

    Image ids are the paths of the lists, `imgnet/real/n04086273/ILSVRC2012_val_00015728.JPEG`.
    """
    base, file = layout.find(root, SOURCE.folders, (TARGETS,))
    labels = labelled(file)
    queries = _queries(labelled(base / QUERIES), _right(labels, DOMAINS.index(domain)), domain)
    name, unanswered = f"imagenet_r/{domain}", sum(not query.targets for query in queries)
    found = {**layout.count(queries, list(labels)), "unanswered": unanswered}
    identity = layout.identify(name, base, found, COUNTS[name], allow_missing=allow_missing)
    queries, stamps = settle(queries, labels.keys(), identity.stamps)
    return Benchmark(
        name=identity.name,
        version="1",
        split=domain,
        protocol=protocol,
        queries=queries,
        gallery=tuple(labels),
        root=base,
        paths={image: image.removeprefix("imgnet/") for image in labels},
        open_targets=True,
        template=TEMPLATE,
        notes=(
            "gallery: every image of the target list, the photographs that ask included",
            f"{unanswered:,} queries have no right image and count as 0",
        ),
        stamps=stamps,
    )


def labelled(file: Path) -> dict[str, int]:
    """Read a list of images and labels, in its order; InputError for a label that is none and for an image twice."""
    table: dict[str, int] = {}
    for number, (image, label) in enumerate(lists.read(file, COLUMNS), 1):
        if not (label.isascii() and label.isdigit() and len(label) < 6):
            raise InputError(f"{file}, line {number}: expected a label such as 2002 behind the path, got {label!r}")
        if image in table:
            raise InputError(f"{file}, line {number}: {image!r} was listed before; expected each image once")
        table[image] = int(label)
    return table


def _right(labels: Mapping[str, int], domain: int) -> dict[int, tuple[str, ...]]:
    """List the images of each class in a domain."""
    found: dict[int, list[str]] = {}
    for image, label in labels.items():
        if label // CLASSES == domain:
            found.setdefault(label % CLASSES, []).append(image)
    return {number: tuple(images) for number, images in found.items()}


def _queries(photographs: Mapping[str, int], right: Mapping[int, tuple[str, ...]], domain: str) -> tuple[Query, ...]:
    """Ask with every photograph; the queries of a class share one tuple of targets."""
    return tuple(
        Query(id=f"{domain}/{index:05d}", reference=image, texts=(domain,), targets=right.get(label, ()))
        for index, (image, label) in enumerate(photographs.items())
    )


ENTRIES = {
    name: Entry(
        partial(load, domain=name.rpartition("/")[2]),
        protocols=PROTOCOLS,
        files=((QUERIES,), (TARGETS,)),
        counts=counts,
    )
    for name, counts in COUNTS.items()
}
GROUPS = {"imagenet_r": tuple(ENTRIES)}
